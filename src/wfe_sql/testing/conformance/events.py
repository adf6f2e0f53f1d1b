"""What `EventRepository` promises."""

from datetime import timedelta

import pytest

from wfe_sql.errors import EventAlreadyExistsError, EventNotFoundError
from wfe_sql.models import Event
from wfe_sql.repositories import EventRepository
from wfe_sql.testing.samples import TIME, full_event

MICROSECOND = timedelta(microseconds=1)


@pytest.mark.asyncio
class TestEventRepository:
    """Create, find and mark events."""

    async def test_every_field_comes_back(self, provider: EventRepository) -> None:
        stored = full_event()
        assert await provider.create_event(stored) == stored.id
        assert await provider.get_event(stored.id) == stored

    async def test_defaults_come_back(self, provider: EventRepository) -> None:
        stored = Event(event_name="paid", event_key="", event_data=None)
        await provider.create_event(stored)
        assert await provider.get_event(stored.id) == stored

    async def test_create_with_an_id_in_use(self, provider: EventRepository) -> None:
        stored = full_event()
        await provider.create_event(stored)
        with pytest.raises(EventAlreadyExistsError, match=stored.id):
            await provider.create_event(full_event(id=stored.id, event_data="other"))
        assert await provider.get_event(stored.id) == stored

    async def test_unknown_ids(self, provider: EventRepository) -> None:
        for call in (
            provider.get_event("nothing"),
            provider.mark_event_processed("nothing"),
            provider.mark_event_unprocessed("nothing"),
        ):
            with pytest.raises(EventNotFoundError, match="nothing"):
                await call

    async def test_marks(self, provider: EventRepository) -> None:
        stored = full_event(is_processed=False)
        await provider.create_event(stored)
        for _ in range(2):
            await provider.mark_event_processed(stored.id)
            assert (await provider.get_event(stored.id)).is_processed
            assert await provider.get_runnable_events(TIME) == []
        for _ in range(2):
            await provider.mark_event_unprocessed(stored.id)
            assert await provider.get_event(stored.id) == stored
            assert await provider.get_runnable_events(TIME) == [stored.id]

    async def test_found_up_to_a_time(self, provider: EventRepository) -> None:
        for id_, time in {"c": TIME, "b": TIME, "a": TIME + MICROSECOND, "d": TIME - MICROSECOND}.items():
            await provider.create_event(full_event(id=id_, event_time=time, is_processed=False))
        await provider.create_event(full_event(id="processed"))
        await provider.create_event(full_event(id="other key", event_key="k2", is_processed=False))
        assert await provider.get_runnable_events(TIME) == ["d", "b", "c", "other key"]
        assert await provider.get_runnable_events(TIME, limit=3) == ["d", "b", "c"]
        assert await provider.get_runnable_events(TIME - MICROSECOND) == ["d"]
        assert await provider.get_events("paid", "k1", TIME) == ["d", "b", "c", "processed"]
        assert await provider.get_events("paid", "k1", TIME + MICROSECOND) == ["d", "b", "c", "processed", "a"]
        assert await provider.get_events("paid", "k2", TIME) == ["other key"]
        assert await provider.get_events("shipped", "k1", TIME) == []

    async def test_whole_seconds_and_milliseconds_sort_as_time(self, provider: EventRepository) -> None:
        second = TIME.replace(microsecond=0)
        offsets = [0, 1, 999, 1_000, 1_001, 500_000, 500_001, 999_999, 1_000_000]
        for microseconds in offsets:
            time = second + microseconds * MICROSECOND
            await provider.create_event(full_event(id=f"{microseconds:07}", event_time=time, is_processed=False))
        for count, microseconds in enumerate(offsets, start=1):
            found = await provider.get_runnable_events(second + microseconds * MICROSECOND)
            assert found == [f"{offset:07}" for offset in offsets[:count]]
