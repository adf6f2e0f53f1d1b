"""Faults for as long as there is time; each command prints figures. `python tests/crash/long.py --help`; see README.md.

All is done to files in a new folder, which is deleted at the end. The exit code is 1 when anything went wrong.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from wfe_sql import ExecutionPointer, PointerStatus, StoreError, WfeError, WorkflowInstance, WorkflowStatus, connect
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_event, full_instance, full_pointer, full_subscription

WRITER = Path(__file__).with_name("writer.py")
OLD_FILE = Path(__file__).parents[1] / "data" / "wfe-sqlite-1.0.0.db"
OF_A_YOUNG_STORE = {"overdue", "statistics"}


def say(**figures: Any) -> None:
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items()), flush=True)


async def findings(provider: SqlPersistenceProvider) -> list[str]:
    """Return what is wrong with a store, but for work that is due and statistics that are old."""
    return [found.message for found in await provider.check() if found.kind not in OF_A_YOUNG_STORE]


async def dumped(provider: SqlPersistenceProvider) -> list[str]:
    async with aclosing(provider.dump()) as lines:
        return [line async for line in lines]


def killed_writer(url: Path, prefix: str, writers: int, after: int) -> dict[str, int]:
    """Run writers in a process that is killed once it acknowledged so much; return the last step of each workflow."""
    acknowledged: dict[str, int] = {}
    command: list[str | Path] = [sys.executable, WRITER, url, prefix, str(writers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for number, line in enumerate(writer.stdout):
            if line.endswith("\n"):
                id_, step = line.split()
                acknowledged[id_] = int(step)
            if number == after:
                writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    return acknowledged


def is_whole(instance: WorkflowInstance) -> bool:
    """Tell whether a workflow is as the writer stores it at one of its steps."""
    step = instance.data["step"]
    return [pointer.retry_count for pointer in instance.execution_pointers] == [step] * (step + 1)


async def kills(folder: Path, count: int) -> bool:
    """Kill a process with 64 writers, at a random moment, again and again on one file."""
    units = lost = in_part = 0
    file = folder / "store.db"
    for number in range(count):
        acknowledged = killed_writer(file, str(number), 64, random.randrange(600))
        async with connect(file) as provider:
            stored = {each.id: each for each in await provider.get_workflow_instances(list(acknowledged))}
        units += sum(step + 1 for step in acknowledged.values())
        lost += sum(id_ not in stored or stored[id_].data["step"] < step for id_, step in acknowledged.items())
        in_part += sum(not is_whole(instance) for instance in stored.values())
    async with connect(file) as provider:
        wrong = await findings(provider)
    say(kills=count, acknowledged=units, lost=lost, in_part=in_part, findings=wrong)
    return not (lost or in_part or wrong)


def opens(folder: Path, count: int) -> bool:
    """Kill a process while it opens a file of the reference's first release, which brings it up to date."""
    file = folder / "old.db"

    async def look() -> tuple[list[str], list[str]]:
        async with connect(file) as provider:
            return await dumped(provider), await findings(provider)

    async def only_open() -> None:
        async with connect(file):
            pass

    def renew() -> None:
        for left in folder.iterdir():
            left.unlink()
        shutil.copy(OLD_FILE, file)

    def open_in_child() -> int:
        renew()
        child = os.fork()
        if not child:
            asyncio.run(only_open())
            os._exit(0)
        return child

    connect(":memory:")  # reads the queries, so that children spend their time on the file
    takes = []
    for _ in range(5):
        began = time.monotonic()
        os.waitpid(open_in_child(), 0)
        takes.append(time.monotonic() - began)
    expected = asyncio.run(look())
    ended = Counter[str]()
    for _ in range(count):
        child = open_in_child()
        time.sleep(random.uniform(0, min(takes)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        ended["killed" if os.WIFSIGNALED(status) else "was done before"] += 1
        ended["right" if asyncio.run(look()) == expected else "wrong"] += 1
    say(opening_takes=f"{min(takes) * 1000:.0f} ms", **ended)
    return not ended["wrong"]


async def logs(folder: Path, count: int) -> bool:
    """Cut the log of a killed writer at a random byte; what is there then must be how things stood at one moment."""
    file, cut = folder / "store.db", folder / "cut" / "store.db"
    cut.parent.mkdir()
    killed_writer(file, "w", 1, 60)  # more, and SQLite would have copied the log into the file
    log = Path(f"{file}-wal").read_bytes()
    results, counts = Counter[str](), set[int]()
    for _ in range(count):
        for left in cut.parent.iterdir():
            left.unlink()
        shutil.copy(file, cut)
        Path(f"{cut}-wal").write_bytes(log[: random.randrange(len(log))])
        async with connect(cut) as provider:
            ids = (await provider.list_workflows(limit=10_000)).items
            stored = await provider.get_workflow_instances([each.id for each in ids])
            wrong = await findings(provider)
        numbers = {int(instance.id.rpartition("-")[2]): instance.data["step"] for instance in stored}
        in_order = sorted(numbers) == list(range(len(numbers)))
        earlier = all(step == 4 for number, step in numbers.items() if number < len(numbers) - 1)
        sound = in_order and earlier and all(map(is_whole, stored)) and not wrong
        results["one moment" if sound else "wrong"] += 1
        counts.add(sum(step + 1 for step in numbers.values()))
    say(cut_logs=count, log_bytes=len(log), units_found=f"{min(counts)} to {max(counts)}", **results)
    return not results["wrong"]


def kind_of_change(before: list[str], after: list[str]) -> str:
    """Say what a changed dump differs in: text of the application's, other values, or rows."""
    if len(before) != len(after):
        return "rows"
    texts = {"data", "description", "reference", "event_data", "subscription_data", "message", "persistence_data"}
    texts |= {"context_item", "outcome", "extension_attributes", "step_name", "name", "event_name", "event_key"}
    columns = set[str]()
    for one, other in zip(before, after, strict=True):
        rows = json.loads(one)["row"], json.loads(other)["row"]
        columns |= {column for column in rows[0] if rows[0][column] != rows[1][column]}
    return "free text" if columns <= texts else f"other values ({', '.join(sorted(columns - texts))})"


async def flips(folder: Path, count: int) -> bool:
    """Flip one byte of a store; then read all of it, and check it."""
    file, copy = folder / "store.db", folder / "copy.db"
    async with connect(file) as provider:
        for number in range(20):
            ids = [f"pointer-{number}-{step}" for step in range(3)]
            pointers = [
                full_pointer(id=ids[0], children=[ids[1]], scope=[], predecessor_id=None),
                full_pointer(id=ids[1], step_id=4, children=[], scope=[ids[0]], predecessor_id=ids[0]),
                ExecutionPointer(id=ids[2], step_id=5, status=PointerStatus.PendingPredecessor, predecessor_id=ids[0]),
            ]
            workflow = full_instance(id=f"workflow-{number}", name=f"order-{number}", execution_pointers=pointers)
            await provider.create_new_workflow(workflow)
            await provider.create_event(full_event(id=f"event-{number}"))
            await provider.create_event_subscription(
                full_subscription(id=f"s-{number}", workflow_id=workflow.id, execution_pointer_id=ids[1])
            )
        expected, always = await dumped(provider), await findings(provider)
    whole = file.read_bytes()
    results = Counter[str]()
    for _ in range(count):
        for left in folder.glob("copy.db*"):
            left.unlink()
        flipped, place = bytearray(whole), random.randrange(len(whole))
        flipped[place] ^= 1 << random.randrange(8)
        copy.write_bytes(flipped)
        results[await what_comes_of(copy, expected, set(always))] += 1
    say(flipped_bytes=count, **dict(results.most_common()))
    return not any(result.startswith(("raw", "unseen: rows")) for result in results)


async def what_comes_of(file: Path, expected: list[str], always: set[str]) -> str:
    try:
        async with connect(file) as provider:
            wrong = set(await findings(provider)) - always
            with suppress(WfeError):
                lines = await dumped(provider)
                ids = [f"workflow-{number}" for number in range(20)]
                await provider.get_workflow_instances(ids)
                if lines == expected:
                    return "right answers"
                return "wrong answers, found by check" if wrong else f"unseen: {kind_of_change(expected, lines)}"
            return "our errors"
    except WfeError:
        return "our errors"
    except Exception as error:
        return f"raw {type(error).__name__}"


async def disk(folder: Path, megabytes: int) -> bool:
    """Write with 64 writers until there is no room; make room, and go on. 0 MB is as much as the folder takes."""
    file, acknowledged, errors = folder / "store.db", list[str](), Counter[str]()
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def write(name: str) -> None:
        for number in range(100_000):
            pointers = [ExecutionPointer(step_id=step) for step in range(5)]
            id_ = f"{name}-{number}"
            instance = WorkflowInstance(
                id=id_, workflow_definition_id="d", version=1, data="x" * 500, execution_pointers=pointers
            )
            try:
                await provider.create_new_workflow(instance)
            except StoreError as error:
                errors[type(error).__name__] += 1
                return
            acknowledged.append(id_)

    async with connect(file) as provider:
        resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes << 20 or limits[0], limits[1]))
        try:
            await asyncio.gather(*(write(f"w{writer}") for writer in range(64)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            ballast.unlink()
        await provider.next_definition_sequence("afterwards")
    async with connect(file) as provider:
        stored = {instance.id for instance in await provider.get_workflow_instances(acknowledged)}
        wrong = await findings(provider)
        count = (await provider.stats()).rows["workflows"]
    lost = len(set(acknowledged) - stored)
    say(acknowledged=len(acknowledged), lost=lost, stored=count, errors=dict(errors), findings=wrong)
    return not lost and count == len(acknowledged) and not wrong


async def soak(folder: Path, minutes: float) -> bool:
    """Work, and each minute purge, back up and check; say each minute what it all takes."""
    file, ends = folder / "store.db", time.monotonic() + minutes * 60
    done, wrong = 0, list[str]()

    async def work(name: str) -> None:
        nonlocal done
        number = 0
        while time.monotonic() < ends:
            number += 1
            instance = full_instance(id=f"{name}-{number}", name="", status=WorkflowStatus.Runnable)
            await provider.create_new_workflow(instance)
            loaded = await provider.get_workflow_instance(instance.id)
            loaded.status = WorkflowStatus.Complete
            await provider.persist_workflow(loaded)
            done += 1

    async def look_after() -> None:
        minute, began = 0, time.monotonic()
        while time.monotonic() < ends:
            minute += 1
            await asyncio.sleep(max(0, min(began + minute * 60, ends) - time.monotonic()))
            purged = await provider.purge_workflows(WorkflowStatus.Complete, timedelta(0))
            await provider.backup(folder / "backup.db")
            wrong.extend(await findings(provider))
            (folder / "backup.db").unlink()
            log = Path(f"{file}-wal").stat().st_size
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            say(
                minute=minute,
                finished=done,
                purged=purged,
                memory=f"{pages * resource.getpagesize() >> 20} MB",
                descriptors=len(list(Path("/proc/self/fd").iterdir())),
                threads=threading.active_count(),
                log=f"{log >> 10} KB",
                file=f"{file.stat().st_size >> 10} KB",
            )

    async with connect(file) as provider:
        await asyncio.gather(look_after(), *(work(f"w{writer}") for writer in range(16)))
    say(findings=wrong)
    return not wrong


COMMANDS: dict[str, tuple[Callable[[Path, Any], Awaitable[bool] | bool], str, float]] = {
    "kills": (kills, "count", 500),
    "opens": (opens, "count", 500),
    "logs": (logs, "count", 200),
    "flips": (flips, "count", 300),
    "disk": (disk, "megabytes", 2),
    "soak": (soak, "minutes", 30.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="Where the files are made, such as a small file system.")
    parser.add_argument("--seed", type=int, help="Flip, cut and kill at the same places as another run with this seed.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (function, option, default) in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__)
        command.add_argument(f"--{option}", type=type(default), default=default, help=f"{default} unless it is said")
    arguments = parser.parse_args()
    function, option, _ = COMMANDS[arguments.command]
    random.seed(arguments.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = function(Path(folder), getattr(arguments, option))
        is_right = result if isinstance(result, bool) else asyncio.run(_wait_for(result))
    say(took=f"{time.monotonic() - began:.0f} s", ends="well" if is_right else "badly")
    return 0 if is_right else 1


async def _wait_for(result: Awaitable[bool]) -> bool:
    return await result


if __name__ == "__main__":
    sys.exit(main())
