"""A host that dies without warning: what it was told is stored is stored, whole; the rest is not there at all."""

import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from wfe_sql import connect

pytestmark = pytest.mark.slow

WRITER = Path(__file__).parent / "writer.py"


@pytest.mark.parametrize("acknowledged_before_the_kill", [1, 57, 300])
async def test_what_was_acknowledged_is_there(
    url: str, assert_sound: Callable[[], Awaitable[None]], acknowledged_before_the_kill: int
) -> None:
    acknowledged: dict[str, int] = {}
    for round_ in range(3):
        with subprocess.Popen([sys.executable, WRITER, url, str(round_)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for number, line in enumerate(writer.stdout):
                if not line.endswith("\n"):
                    break  # the kill cut it off
                workflow_id, step = line.split()
                acknowledged[workflow_id] = int(step)
                if number == acknowledged_before_the_kill:
                    writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL

        await assert_sound()
        async with connect(url) as provider:
            for instance in await provider.get_workflow_instances(list(acknowledged)):
                step = instance.data["step"]
                assert step >= acknowledged.pop(instance.id)
                assert [pointer.retry_count for pointer in instance.execution_pointers] == [step] * (step + 1)
            assert acknowledged == {}
