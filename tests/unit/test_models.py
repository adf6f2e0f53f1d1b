import subprocess
import sys
from uuid import UUID

from wfe_sql.models import new_id


def test_ids_are_random_uuids_of_version_4() -> None:
    ids = [new_id() for _ in range(1_000)]
    assert len(set(ids)) == 1_000
    assert {UUID(id_).version for id_ in ids} == {4}
    assert all(str(UUID(id_)) == id_ for id_ in ids)


FORK = """
import os
from wfe_sql.models import new_id
new_id()
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, new_id().encode())
    os._exit(0)
print(new_id(), os.read(reader, 36).decode())
"""


def test_a_forked_process_makes_ids_of_its_own() -> None:
    ended = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    parents, childs = ended.stdout.split()
    assert parents != childs
