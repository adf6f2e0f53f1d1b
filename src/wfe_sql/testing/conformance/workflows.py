"""What `WorkflowRepository` promises."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from wfe_sql.errors import StoreError, WorkflowAlreadyExistsError, WorkflowNotFoundError
from wfe_sql.models import ExecutionPointer, PointerStatus, WorkflowInstance, WorkflowStatus
from wfe_sql.repositories import WorkflowRepository
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import full_instance, full_pointer, sample_instance


@pytest.mark.asyncio
class TestWorkflowRepository:
    """Create, persist, poll and load workflows, and number them."""

    async def test_every_field_comes_back(self, provider: WorkflowRepository) -> None:
        stored = full_instance()
        assert await provider.create_new_workflow(stored) == stored.id
        assert await provider.get_workflow_instance(stored.id) == stored
        assert await provider.get_workflow_instance_by_name(stored.name) == stored
        assert await provider.get_workflow_instances([stored.id]) == [stored]

    async def test_defaults_come_back(self, provider: WorkflowRepository) -> None:
        stored = WorkflowInstance(workflow_definition_id="order", version=1, data=None)
        await provider.create_new_workflow(stored)
        stored.name = stored.id
        assert await provider.get_workflow_instance(stored.id) == stored

    async def test_an_empty_name_is_stored_as_the_id(self, provider: WorkflowRepository) -> None:
        id_ = await provider.create_new_workflow(sample_instance(name=""))
        assert (await provider.get_workflow_instance_by_name(id_)).id == id_

    async def test_persist_overwrites_everything_but_the_create_time(self, provider: WorkflowRepository) -> None:
        before = sample_instance()
        await provider.create_new_workflow(before)
        after = full_instance(id=before.id, create_time=before.create_time + timedelta(days=1))
        await provider.persist_workflow(after)
        after.create_time = before.create_time
        assert await provider.get_workflow_instance(before.id) == after

    async def test_persist_can_clear_every_optional_field(self, provider: WorkflowRepository) -> None:
        stored = full_instance()
        await provider.create_new_workflow(stored)
        bare = WorkflowInstance(
            id=stored.id,
            name=stored.name,
            workflow_definition_id="order",
            version=1,
            data=None,
            next_execution=None,
            create_time=stored.create_time,
        )
        await provider.persist_workflow(bare)
        assert await provider.get_workflow_instance(stored.id) == bare

    async def test_persist_with_an_empty_name_leaves_the_stored_one(self, provider: WorkflowRepository) -> None:
        stored = sample_instance(name="kept")
        await provider.create_new_workflow(stored)
        stored.name = ""
        await provider.persist_workflow(stored)
        assert (await provider.get_workflow_instance(stored.id)).name == "kept"

    async def test_persist_can_rename(self, provider: WorkflowRepository) -> None:
        stored = sample_instance(name="old")
        await provider.create_new_workflow(stored)
        stored.name = "new"
        await provider.persist_workflow(stored)
        assert (await provider.get_workflow_instance_by_name("new")).id == stored.id
        with pytest.raises(WorkflowNotFoundError, match="old"):
            await provider.get_workflow_instance_by_name("old")

    async def test_pointers_keep_their_order(self, provider: WorkflowRepository) -> None:
        first, second, third, fourth = (ExecutionPointer(id=id_, step_id=0) for id_ in "dbca")
        stored = sample_instance(execution_pointers=[first, second, third])
        await provider.create_new_workflow(stored)
        assert await provider.get_workflow_instance(stored.id) == stored
        for order in ([third, first, second], [third, fourth, first], [fourth], [], [second, fourth, first, third]):
            stored.execution_pointers = order
            await provider.persist_workflow(stored)
            assert await provider.get_workflow_instance(stored.id) == stored
            assert await provider.get_workflow_instance_by_name(stored.name) == stored
            assert await provider.get_workflow_instances([stored.id]) == [stored]

    async def test_a_changed_pointer_is_stored(self, provider: WorkflowRepository) -> None:
        stored = full_instance()
        await provider.create_new_workflow(stored)
        stored.execution_pointers[1].retry_count += 1
        stored.execution_pointers[1].status = PointerStatus.Failed
        stored.execution_pointers[2].persistence_data["cursor"]["list"].append("deep inside")
        await provider.persist_workflow(stored)
        assert await provider.get_workflow_instance(stored.id) == stored

    async def test_what_is_stored_is_what_was_passed_at_the_call(self, provider: WorkflowRepository) -> None:
        stored = sample_instance(data={"step": 1})
        await provider.create_new_workflow(stored)
        persisting = asyncio.ensure_future(provider.persist_workflow(stored))
        await asyncio.sleep(0)
        stored.data["step"] = 2
        await persisting
        assert (await provider.get_workflow_instance(stored.id)).data == {"step": 1}

    @pytest.mark.parametrize("steps", range(6))
    async def test_a_cancelled_persist_gives_no_false_conflict(self, provider: WorkflowRepository, steps: int) -> None:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        for cancelled in ([0], [1], [0, 1], [0, 2], [1, 2]):
            tasks = []
            for number in range(3):
                stored.data = number
                tasks.append(asyncio.create_task(provider.persist_workflow(stored)))
                await asyncio.sleep(0)
            for _ in range(steps):
                await asyncio.sleep(0)
            for number in cancelled:
                tasks[number].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for number, outcome in enumerate(outcomes):
                assert outcome is None or (number in cancelled and isinstance(outcome, asyncio.CancelledError))
            stored.data = "after"
            await provider.persist_workflow(stored)
            assert await provider.get_workflow_instance(stored.id) == stored

    async def test_a_failed_persist_before_another(self, provider: WorkflowRepository) -> None:
        await provider.create_new_workflow(sample_instance(name="taken"))
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        name, stored.name = stored.name, "taken"
        first = asyncio.create_task(provider.persist_workflow(stored))
        await asyncio.sleep(0)
        stored.name, stored.data = name, "second"
        second = asyncio.create_task(provider.persist_workflow(stored))
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(outcomes[0], WorkflowAlreadyExistsError)
        assert outcomes[1] is None
        assert await provider.get_workflow_instance(stored.id) == stored

    async def test_loaded_objects_are_independent(self, provider: WorkflowRepository) -> None:
        stored = full_instance()
        await provider.create_new_workflow(stored)
        one, other = await provider.get_workflow_instances([stored.id, stored.id])
        one.execution_pointers[0].children.append("c3")
        one.data["changed"] = True
        assert other == stored

    async def test_create_with_an_id_in_use(self, provider: WorkflowRepository) -> None:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        twin = sample_instance(id=stored.id, name="another", execution_pointers=[ExecutionPointer(step_id=9)])
        with pytest.raises(WorkflowAlreadyExistsError, match=rf"\bid\b.*{stored.id}"):
            await provider.create_new_workflow(twin)
        assert await provider.get_workflow_instance(stored.id) == stored

    async def test_create_with_a_name_in_use(self, provider: WorkflowRepository) -> None:
        stored = sample_instance(name="order-1")
        await provider.create_new_workflow(stored)
        twin = sample_instance(name="order-1")
        with pytest.raises(WorkflowAlreadyExistsError, match=r"\bname\b.*order-1"):
            await provider.create_new_workflow(twin)
        with pytest.raises(WorkflowNotFoundError):
            await provider.get_workflow_instance(twin.id)

    async def test_create_without_a_name_where_the_id_is_a_name(self, provider: WorkflowRepository) -> None:
        await provider.create_new_workflow(sample_instance(name="taken"))
        with pytest.raises(WorkflowAlreadyExistsError, match=r"\bname\b.*taken"):
            await provider.create_new_workflow(sample_instance(id="taken", name=""))

    async def test_persist_to_a_name_in_use(self, provider: WorkflowRepository) -> None:
        first, second = sample_instance(name="first"), sample_instance(name="second")
        await asyncio.gather(*(provider.create_new_workflow(instance) for instance in (first, second)))
        second.name, second.data = "first", "changed"
        second.execution_pointers = []
        with pytest.raises(WorkflowAlreadyExistsError, match=r"\bname\b.*first"):
            await provider.persist_workflow(second)
        loaded = await provider.get_workflow_instance(second.id)
        assert (loaded.name, loaded.data, len(loaded.execution_pointers)) == ("second", {"amount": 1}, 1)

    async def test_persist_of_an_unknown_id(self, provider: WorkflowRepository) -> None:
        unknown = sample_instance()
        with pytest.raises(WorkflowNotFoundError, match=unknown.id):
            await provider.persist_workflow(unknown)
        with pytest.raises(WorkflowNotFoundError):
            await provider.get_workflow_instance(unknown.id)

    async def test_a_pointer_of_another_workflow(self, provider: WorkflowRepository) -> None:
        owner = sample_instance(execution_pointers=[ExecutionPointer(id="p1", step_id=0)])
        other = sample_instance()
        await asyncio.gather(*(provider.create_new_workflow(instance) for instance in (owner, other)))
        thief = sample_instance(execution_pointers=[full_pointer(), full_pointer(id="p1")])
        with pytest.raises(StoreError, match="p1"):
            await provider.create_new_workflow(thief)
        thief.id = other.id
        with pytest.raises(StoreError, match="p1"):
            await provider.persist_workflow(thief)
        assert await provider.get_workflow_instances([owner.id, other.id]) == [owner, other]

    async def test_unknown_ids_and_names(self, provider: WorkflowRepository) -> None:
        with pytest.raises(WorkflowNotFoundError, match="nothing"):
            await provider.get_workflow_instance("nothing")
        with pytest.raises(WorkflowNotFoundError, match="nothing"):
            await provider.get_workflow_instance_by_name("nothing")

    async def test_many_instances_come_in_the_order_asked_for(self, provider: WorkflowRepository) -> None:
        stored = [full_instance(id=f"w{number}") for number in range(5)]
        await asyncio.gather(*(provider.create_new_workflow(instance) for instance in stored))
        ids = ["w3", "unknown", "w0", "w4", "w3"]
        assert await provider.get_workflow_instances(ids) == [stored[3], stored[0], stored[4], stored[3]]
        assert await provider.get_workflow_instances([]) == []

    async def test_ten_thousand_ids(self, provider: WorkflowRepository) -> None:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        ids = [f"unknown-{number}" for number in range(10_000)]
        ids[7_777] = stored.id
        assert await provider.get_workflow_instances(ids) == [stored]

    async def test_runnable_instances(self, provider: WorkflowRepository, clock: ManualClock) -> None:
        now = int(clock().timestamp() * 1000)
        due = {"c": 0, "b": now - 1, "d": now, "a": now}
        for id_, next_execution in due.items():
            await provider.create_new_workflow(sample_instance(id=id_, next_execution=next_execution))
        await provider.create_new_workflow(sample_instance(id="later", next_execution=now + 1))
        await provider.create_new_workflow(sample_instance(id="never", next_execution=None))
        for status in (WorkflowStatus.Suspended, WorkflowStatus.Complete, WorkflowStatus.Terminated):
            await provider.create_new_workflow(sample_instance(id=str(status), status=status))
        assert await provider.get_runnable_instances(clock()) == ["c", "b", "a", "d"]
        assert await provider.get_runnable_instances(clock(), limit=2) == ["c", "b"]
        assert await provider.get_runnable_instances(clock() + timedelta(microseconds=999)) == ["c", "b", "a", "d"]
        assert await provider.get_runnable_instances(clock() + timedelta(milliseconds=1)) == [
            *["c", "b", "a", "d"],
            "later",
        ]
        assert await provider.get_runnable_instances(clock() - timedelta(microseconds=1)) == ["c", "b"]

    async def test_sequences_count_from_one(self, provider: WorkflowRepository) -> None:
        assert [await provider.next_definition_sequence("a") for _ in range(3)] == [1, 2, 3]
        assert await provider.next_definition_sequence("b") == 1
        assert await provider.next_definition_sequence("a") == 4

    async def test_sequences_have_no_gap_and_no_duplicate(self, provider: WorkflowRepository) -> None:
        numbers = await asyncio.gather(*(provider.next_definition_sequence("a") for _ in range(200)))
        assert sorted(numbers) == list(range(1, 201))

    async def test_many_callers_at_once(self, provider: WorkflowRepository) -> None:
        instances = [full_instance() for _ in range(64)]

        async def live(instance: WorkflowInstance) -> None:
            await provider.create_new_workflow(instance)
            for step in range(5):
                instance.data = {"step": step}
                instance.execution_pointers.append(full_pointer(step_id=step))
                await provider.persist_workflow(instance)
                assert await provider.get_workflow_instance(instance.id) == instance

        await asyncio.gather(*(live(instance) for instance in instances))

    async def test_a_unit_that_fails_fails_alone(self, provider: WorkflowRepository) -> None:
        taken = sample_instance(name="taken")
        await provider.create_new_workflow(taken)
        names = [f"order-{number}" if number % 3 else "taken" for number in range(30)]
        outcomes = await asyncio.gather(
            *(
                provider.create_new_workflow(sample_instance(id=str(number), name=name))
                for number, name in enumerate(names)
            ),
            return_exceptions=True,
        )
        for number, outcome in enumerate(outcomes):
            if number % 3:
                assert (await provider.get_workflow_instance(str(number))).name == names[number]
            else:
                assert isinstance(outcome, WorkflowAlreadyExistsError)
                with pytest.raises(WorkflowNotFoundError):
                    await provider.get_workflow_instance(str(number))

    async def test_two_providers_share_a_store(
        self, provider: WorkflowRepository, another_provider: Callable[[], Awaitable[WorkflowRepository]]
    ) -> None:
        other = await another_provider()
        stored = sample_instance(name="shared")
        await provider.create_new_workflow(stored)
        assert await other.get_workflow_instance(stored.id) == stored
        with pytest.raises(WorkflowAlreadyExistsError, match=r"\bname\b.*shared"):
            await other.create_new_workflow(sample_instance(name="shared"))
        numbers = await asyncio.gather(*(each.next_definition_sequence("a") for each in (provider, other) * 10))
        assert sorted(numbers) == list(range(1, 21))
