"""Many hosts on one store, each a process; some are killed, and some are stopped for longer than their leases."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import Event, ScheduledCommand, connect
from wfe_sql.testing import full_subscription, sample_instance

pytestmark = pytest.mark.slow

HOST = Path(__file__).with_name("host.py")
LEASE, FALLBACK = 1.0, 10.0

Ask = Callable[[str], list[Any]]


class Hosts:
    """Host processes of one job, and all that they say."""

    def __init__(self, job: str, url: str, log: Path) -> None:
        self._job, self._url, self._names = job, url, count()
        self._log = log
        self._running: list[subprocess.Popen[str]] = []

    def start(self, number: int) -> None:
        for _ in range(number):
            with self._log.open("a") as log:
                command: list[str | Path] = [sys.executable, HOST, self._job, self._url, f"host-{next(self._names)}"]
                self._running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, text=True))

    def go(self) -> None:
        """Let those start together that wait for it."""
        while sum("ready" in said for said in self.said()) < len(self._running):
            assert not any(host.poll() for host in self._running)
            time.sleep(0.01)
        for host in self._running:
            assert host.stdin is not None
            host.stdin.close()

    def kill_one(self) -> None:
        host = self._running.pop(random.randrange(len(self._running)))
        host.kill()
        assert host.stdin is not None
        host.stdin.close()
        assert host.wait() == -signal.SIGKILL

    def stop_one_for_longer_than_its_lease(self) -> None:
        host = random.choice(self._running)
        host.send_signal(signal.SIGSTOP)
        time.sleep(LEASE * 1.3)
        host.send_signal(signal.SIGCONT)

    def end(self) -> None:
        while self._running:
            self.kill_one()

    def wait(self) -> None:
        assert [host.wait() for host in self._running] == [0] * len(self._running)

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]


LEFT = """
    SELECT
        (SELECT count(*) FROM workflows WHERE status = 'Runnable')
        + (SELECT count(*) FROM events WHERE NOT is_processed)
        + (SELECT count(*) FROM scheduled_commands)
"""


@pytest.mark.parametrize(
    ("backend", "workflows", "events", "commands"),
    [
        ("sqlite", 2_000, 800, 800),
        ("postgres", 2_000, 800, 800),
        ("pooler, transaction", 1_000, 400, 400),
        ("pooler, transaction, tracked", 1_000, 400, 400),
    ],
)
async def test_nothing_is_lost_and_nothing_done_twice(
    url: str,
    tmp_path: Path,
    ask: Ask,
    assert_sound: Callable[[], Awaitable[None]],
    workflows: int,
    events: int,
    commands: int,
) -> None:
    now = datetime.now(UTC)
    async with connect(url) as provider:
        await asyncio.gather(
            *(provider.create_new_workflow(sample_instance(id=f"w{number}")) for number in range(workflows)),
            *(
                provider.create_event(Event(id=f"e{n}", event_name="e", event_key="", event_data=None, event_time=now))
                for n in range(events)
            ),
            *(provider.schedule_command(ScheduledCommand.process_workflow(f"w{n}", n)) for n in range(commands)),
        )
    hosts, began, killed, stopped = Hosts("work", url, tmp_path / "log"), time.monotonic(), 0, 0
    hosts.start(4)
    try:
        while ask(LEFT) != [(0,)]:
            assert time.monotonic() - began < 120
            if killed <= stopped:
                time.sleep(random.uniform(0.3, 0.8))
                hosts.kill_one()
                hosts.start(1)
                killed += 1
            else:
                hosts.stop_one_for_longer_than_its_lease()
                stopped += 1
    finally:
        hosts.end()
    took = time.monotonic() - began

    said = hosts.said()
    lost = sum("lost" in line for line in said)
    busy = sum("busy" in line for line in said)
    effects = Counter(key for (key,) in ask("SELECT event_key FROM event_subscriptions"))
    handled = Counter(line["command"] for line in said if "began" in line)
    print(
        f"\n{workflows} workflows, {events} events, {commands} commands in {took:.1f} s by 4 processes x 8 tasks; "
        f"{killed} killed, {stopped} stopped; {lost} late writes fenced off, {busy} times busy, "
        f"{sum(handled.values()) - commands} commands handled again"
    )
    assert killed >= 1
    assert effects == Counter(f"w{number}" for number in range(workflows))
    assert set(handled) == {f"w{number}" for number in range(commands)}
    assert overlaps(said) == []
    await assert_sound()


async def test_no_event_waits_for_longer_than_it_may(url: str, tmp_path: Path, ask: Ask) -> None:
    """By four hosts that wait for work, some of which are killed: what those held waits until their leases are over."""
    number = int(os.environ.get("WFE_SQL_TEST_EVENTS", "1000"))
    hosts, killed = Hosts("wait", url, tmp_path / "log"), 0
    async with connect(url) as provider:
        hosts.start(4)
        try:
            async with asyncio.timeout(60):
                while sum("waits" in line for line in hosts.said()) < 4:
                    await asyncio.sleep(0.1)
            for first in range(0, number, 10):  # slower than hosts handle them, so that none waits for another
                await asyncio.sleep(random.uniform(0, 0.3))
                await asyncio.gather(*(provider.create_event(timed_event(n)) for n in range(first, first + 10)))
                if first % 500 == 250:
                    hosts.kill_one()
                    hosts.start(1)
                    killed += 1
            async with asyncio.timeout(60):
                while ask("SELECT count(*) FROM events WHERE NOT is_processed") != [(0,)]:
                    await asyncio.sleep(0.1)
        finally:
            hosts.end()
    waited: dict[str, float] = {}
    for line in hosts.said():
        if "waited" in line:
            waited.setdefault(line["event"], line["waited"])
    in_order = sorted(waited.values())
    print(
        f"\n{number} events, {killed} hosts killed: half begun within {in_order[number // 2] * 1000:.1f} ms, "
        f"99 % within {in_order[number * 99 // 100] * 1000:.1f} ms, all within {in_order[-1] * 1000:.0f} ms"
    )
    assert killed >= 1
    assert set(waited) == {f"e{n}" for n in range(number)}
    assert in_order[-1] < FALLBACK + LEASE


def timed_event(number: int) -> Event:
    """Return an event with the moment in it, by the clock that all processes have."""
    now = time.monotonic()
    return Event(id=f"e{number}", event_name="e", event_key="", event_data=now, event_time=datetime.now(UTC))


def overlaps(said: list[dict[str, Any]]) -> list[str]:
    """Commands that two handled at once inside a lease.

    A lease is renewed at every third, so where a second handler began less than half a lease after the first, the first
    must have ended before.
    """
    began: dict[str, list[float]] = defaultdict(list)
    ended: dict[str, list[float]] = defaultdict(list)
    for line in said:
        if "began" in line:
            began[line["command"]].append(line["began"])
        elif "ended" in line:
            ended[line["command"]].append(line["ended"])
    return [
        command
        for command, starts in began.items()
        for first, second in pairwise(sorted(starts))
        if second - first < LEASE / 2 and not any(first <= end <= second for end in ended[command])
    ]


def test_overlaps_are_found() -> None:
    def line(kind: str, at: float) -> dict[str, Any]:
        return {"command": "w1", kind: at}

    assert overlaps([line("began", 1.0), line("began", 1.1), line("ended", 1.2)]) == ["w1"]
    assert overlaps([line("began", 1.0), line("ended", 1.05), line("began", 1.1)]) == []
    assert overlaps([line("began", 1.0), line("began", 2.1), line("ended", 2.2)]) == []


async def test_eight_processes_open_an_empty_store_at_once(
    url: str, tmp_path: Path, assert_sound: Callable[[], Awaitable[None]]
) -> None:
    hosts = Hosts("open", url, tmp_path / "log")
    hosts.start(8)
    hosts.go()
    hosts.wait()
    assert sorted(line["number"] for line in hosts.said() if "number" in line) == list(range(1, 9))
    await assert_sound()


async def test_eight_processes_draw_from_one_sequence(url: str, tmp_path: Path) -> None:
    async with connect(url):
        pass
    hosts = Hosts("draw", url, tmp_path / "log")
    hosts.start(8)
    hosts.go()
    hosts.wait()
    numbers = [line["number"] for line in hosts.said() if "number" in line]
    assert len(numbers) >= 20_000
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


async def test_one_of_sixteen_wins_each_token(url: str, ask: Ask) -> None:
    async with connect(url) as provider:
        free = {"external_token": None, "external_worker_id": None, "external_token_expiry": None}
        await asyncio.gather(
            *(provider.create_event_subscription(full_subscription(id=f"s{n}", **free)) for n in range(1_000))
        )
    hosts = [
        subprocess.Popen(
            [sys.executable, HOST, "race", url, f"host-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for number in range(4)
    ]
    won: dict[str, list[str]] = {}
    for number in range(1_000):
        for host in hosts:
            assert host.stdin is not None
            host.stdin.write(f"s{number}\n")
        said = [json.loads(host.stdout.readline()) for host in hosts if host.stdout]
        won[f"s{number}"] = [token for line in said for token in line["won"]]
    for host in hosts:
        host.communicate()
    assert [len(tokens) for tokens in won.values()] == [1] * 1_000
    assert {id_: tokens[0] for id_, tokens in won.items()} == dict(
        ask("SELECT id, external_token FROM event_subscriptions")
    )
    winners = Counter(tokens[0].rpartition("-")[0] for tokens in won.values())
    print(f"\ntokens won: {dict(sorted(winners.items()))}")
    assert len(winners) > 1
