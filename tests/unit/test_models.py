import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from time import time_ns
from uuid import RFC_4122, UUID

import pytest

from wfe_sql import models
from wfe_sql.models import new_id

MS = 1_000_000
"""Nanoseconds."""


def assert_sorted(ids: list[str]) -> None:
    assert all(earlier < later for earlier, later in pairwise(ids))


def millisecond_of(id_: str) -> int:
    return UUID(id_).int >> 80


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The system's clock, in nanoseconds: a list of one time, in the far future."""
    now = [time_ns() + 10**18]
    with monkeypatch.context() as patched:
        patched.setattr(models, "time_ns", lambda: now[0])
        yield now
    models._begin_ids(0)  # otherwise the ids of later tests would stay in that future


def test_ids_are_uuids_of_version_7() -> None:
    before = time_ns() // MS
    ids = [new_id() for _ in range(1_000)]
    after = time_ns() // MS
    for id_ in ids:
        uuid = UUID(id_)
        assert (uuid.version, uuid.variant, str(uuid)) == (7, RFC_4122, id_)
        assert before <= millisecond_of(id_) <= after


def test_ids_made_later_sort_later() -> None:
    assert_sorted([new_id() for _ in range(100_000)])


def test_ids_of_one_millisecond_sort_in_the_order_in_which_they_were_made(clock: list[int]) -> None:
    ids = [new_id() for _ in range(10_000)]
    assert {millisecond_of(id_) for id_ in ids} == {clock[0] // MS}
    assert_sorted(ids)


def test_each_millisecond_begins_at_random(clock: list[int]) -> None:
    ids = []
    for _ in range(1_000):
        ids.append(new_id())
        clock[0] += MS
    assert_sorted(ids)
    assert len({UUID(id_).int & (2**80 - 1) for id_ in ids}) == 1_000
    changing = [UUID(ids[0]).int ^ UUID(id_).int for id_ in ids]
    bits = sum(any(change >> bit & 1 for change in changing) for bit in range(80))
    assert bits >= 73


def test_a_clock_that_goes_backwards_does_not_break_the_order(clock: list[int]) -> None:
    ids = [new_id()]
    for step in (-1, -MS, -3_600_000 * MS, 3_600_000 * MS, 10 * MS):
        clock[0] += step
        ids += [new_id() for _ in range(100)]
    assert_sorted(ids)
    assert millisecond_of(ids[-1]) == clock[0] // MS


def test_an_id_that_one_thread_was_given_sorts_before_those_that_others_ask_for_then() -> None:
    made: list[str] = []

    def make(_: int) -> list[tuple[str, str]]:
        pairs = []
        for _ in range(5_000):
            latest = made[-1] if made else ""
            made.append(new_id())
            pairs.append((latest, made[-1]))
        return pairs

    with ThreadPoolExecutor(4) as threads:
        pairs = [pair for made_by_one in threads.map(make, range(4)) for pair in made_by_one]
    assert len(set(made)) == 20_000
    assert all(earlier < later for earlier, later in pairs)


PROCESSES = """
import sys
from wfe_sql.models import new_id
sys.stdin.readline()
print("\\n".join(new_id() for _ in range(50_000)))
"""


@pytest.mark.slow
def test_processes_make_ids_of_their_own() -> None:
    command = [sys.executable, "-c", PROCESSES]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ids = [id_ for process in processes for id_ in process.communicate()[0].split()]
    assert len(set(ids)) == len(ids) == 200_000


FORKS = """
import os
from time import time_ns
from wfe_sql import models
from wfe_sql.models import new_id

now = time_ns()
models.time_ns = lambda: now
print(new_id(), flush=True)
for _ in range(4):
    if os.fork() == 0:
        print(*(new_id() for _ in range(1_000)), flush=True)
        os._exit(0)
    os.wait()
print(*(new_id() for _ in range(1_000)))
"""


def test_forked_processes_make_ids_of_their_own() -> None:
    """In the same millisecond, a child must not continue its parent's count."""
    ended = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True)
    first, *ids = ended.stdout.split()
    assert len(set(ids)) == len(ids) == 5_000
    assert all(first < id_ for id_ in ids)


FORK_MEANWHILE = """
import os, signal, threading
from time import time_ns
from wfe_sql import models
from wfe_sql.models import new_id

asked, go_on = threading.Event(), threading.Event()

def slow_clock():
    asked.set()
    go_on.wait(30)
    return time_ns()

models.time_ns = slow_clock
thread = threading.Thread(target=new_id)
thread.start()
assert asked.wait(30)
child = os.fork()
models.time_ns = time_ns
if child == 0:
    signal.alarm(30)
    new_id()
    os._exit(0)
go_on.set()
thread.join()
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_process_that_is_forked_while_a_thread_makes_an_id_makes_ids() -> None:
    ended = subprocess.run([sys.executable, "-c", FORK_MEANWHILE], capture_output=True, text=True, check=True)
    assert ended.stdout == "0\n"
