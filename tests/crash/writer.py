"""Creates and persists workflows until it is killed; prints an id and a step when that is acknowledged.

The state of step n is: data["step"] is n, and there are n + 1 pointers with retry_count n.
"""

import asyncio
import sys

from wfe_sql import ExecutionPointer, WorkflowInstance, connect


async def main(url: str, prefix: str, writers: str = "16") -> None:
    async with connect(url) as provider:

        async def write(worker: int) -> None:
            for number in range(1_000_000):
                instance = WorkflowInstance(
                    id=f"{prefix}-{worker}-{number}", workflow_definition_id="crash", version=1, data=None
                )
                for step in range(5):
                    instance.data = {"step": step}
                    instance.execution_pointers = [
                        ExecutionPointer(step_id=at, retry_count=step) for at in range(step + 1)
                    ]
                    if step == 0:
                        await provider.create_new_workflow(instance)
                    else:
                        await provider.persist_workflow(instance)
                    print(instance.id, step, flush=True)

        await asyncio.gather(*(write(worker) for worker in range(int(writers))))


asyncio.run(main(*sys.argv[1:]))
