"""A host that stands still inside a handler for longer than its lease, and another that takes over meanwhile."""

import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import ScheduledCommand, connect

pytestmark = pytest.mark.slow

HOST = Path(__file__).with_name("host.py")
LEASE = 0.6
COMMANDS = 120


async def test_no_command_is_handled_while_another_host_holds_it(
    url: str, tmp_path: Path, ask: Callable[[str], list[Any]]
) -> None:
    async with connect(url) as provider:
        for number in range(COMMANDS):
            await provider.schedule_command(ScheduledCommand.process_workflow(f"w{number:03}", number))
    log, stalls, began = tmp_path / "log", 0, time.monotonic()

    def said() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]

    with log.open("a") as output:
        stalling, steady = (
            subprocess.Popen([sys.executable, HOST, job, url, job], stdout=output) for job in ("stall", "handle")
        )
        try:
            while ask("SELECT count(*) FROM scheduled_commands") != [(0,)]:
                assert time.monotonic() - began < 60
                lines = said()
                stopped = [line for line in lines if "stopped" in line]
                if len(stopped) > stalls:
                    taken = [line for line in lines if line.get("host") == "handle" and "began" in line]
                    at = next((at for at, line in enumerate(taken) if line["command"] == stopped[-1]["stopped"]), None)
                    if at is not None and len(taken) > at + 1:  # the other is in the middle of the same batch
                        stalls += 1
                        stalling.send_signal(signal.SIGCONT)
                time.sleep(0.005)
        finally:
            for host in (stalling, steady):
                host.kill()
                host.wait()
    lines = said()
    lost = sum("lost" in line for line in lines)
    print(f"\n{COMMANDS} commands, {stalls} stalls of more than the lease, {lost} commands dropped after them")
    assert stalls >= 2
    assert {line["command"] for line in lines if "began" in line} == {f"w{number:03}" for number in range(COMMANDS)}
    assert handled_by_two(lines) == []
    assert lost >= stalls


def handled_by_two(said: list[dict[str, Any]]) -> list[str]:
    """Commands that a second handler began on though the first had begun so lately that its lease was not over.

    A handler begins with a third of the lease left at least; half of that is for a machine that is busy.
    """
    began: dict[str, list[float]] = defaultdict(list)
    for line in said:
        if "began" in line:
            began[line["command"]].append(line["began"])
    return [
        command
        for command, times in began.items()
        if any(second - first < LEASE / 6 for first, second in pairwise(sorted(times)))
    ]
