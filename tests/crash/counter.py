"""Does the steps of some workflows until it is killed, or all are done; prints a line for each step that is stored.

A step's effect is a counter in the application's own table. The step and its effect are one unit of work.
"""

import asyncio
import sys
from pathlib import Path

from wfe_sql import WorkflowInstance, WorkflowStatus, connect

APP_SQL = Path(__file__).parent / "app_sql"
WORKFLOWS = 8


async def main(url: str, steps: int) -> None:
    async with connect(url, app_sql=APP_SQL) as provider:
        ids = [f"w{number}" for number in range(WORKFLOWS)]
        if not await provider.get_workflow_instances(ids):
            async with provider.unit() as unit:
                unit.run("create_counters")
                for id_ in ids:
                    unit.create_new_workflow(
                        WorkflowInstance(id=id_, workflow_definition_id="count", version=1, data={"steps": 0})
                    )

        async def work(instance: WorkflowInstance) -> None:
            while instance.data["steps"] < steps:
                instance.data = {"steps": instance.data["steps"] + 1}
                if instance.data["steps"] == steps:
                    instance.status = WorkflowStatus.Complete
                async with provider.unit() as unit:
                    unit.persist_workflow(instance)
                    unit.run("count_step", workflow_id=instance.id)
                print(instance.id, flush=True)

        await asyncio.gather(*map(work, await provider.get_workflow_instances(ids)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
