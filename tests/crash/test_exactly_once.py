"""A step and its effect in the application's own table are one unit: it happens once, however often hosts die."""

import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path

import pytest

from crash.counter import APP_SQL, WORKFLOWS
from wfe_sql import WorkflowInstance, connect

pytestmark = pytest.mark.slow

COUNTER = Path(__file__).with_name("counter.py")


async def _state(url: str) -> tuple[list[WorkflowInstance], dict[str, int]]:
    async with connect(url, app_sql=APP_SQL) as provider:
        instances = await provider.get_workflow_instances([f"w{number}" for number in range(WORKFLOWS)])
        counters = await provider.fetch("list_counters") if instances else []
        return instances, {row["workflow_id"]: row["steps"] for row in counters}


@pytest.mark.parametrize(("backend", "kills"), [("sqlite", 50), ("postgres", 12)], indirect=["backend"])
async def test_a_step_s_effect_is_there_exactly_once(
    url: str, assert_sound: Callable[[], Awaitable[None]], kills: int
) -> None:
    steps = kills * 8
    chance = random.Random(kills)
    command = [sys.executable, str(COUNTER), url, str(steps)]
    acknowledged = 0
    for _ in range(kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as host:
            assert host.stdout is not None
            acknowledged += len(list(islice(host.stdout, chance.randint(0, 40))))
            host.kill()
            acknowledged += sum(line.endswith("\n") for line in host.stdout)
        instances, counters = await _state(url)
        done = {instance.id: instance.data["steps"] for instance in instances}
        assert {id_: count for id_, count in done.items() if count} == counters
        assert sum(counters.values()) >= acknowledged
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    instances, counters = await _state(url)
    assert {instance.status for instance in instances} == {"Complete"}
    assert counters == {f"w{number}": steps for number in range(WORKFLOWS)}
    await assert_sound()
