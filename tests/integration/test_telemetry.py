"""Spans and metrics of OpenTelemetry, through its own exporters in memory."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from wfe_sql import EventAlreadyExistsError, connect, telemetry
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_event


class Exported:
    """The spans and metrics of one provider."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        self.tracing = TracerProvider()
        self.tracing.add_span_processor(SimpleSpanProcessor(self._spans))
        self.metering = MeterProvider([self._metrics])

    def spans(self) -> tuple[Any, ...]:
        return self._spans.get_finished_spans()

    def points(self) -> dict[str, list[Any]]:
        """The points of each metric."""
        data = self._metrics.get_metrics_data()
        assert data is not None
        (scope,) = (scope for resource in data.resource_metrics for scope in resource.scope_metrics)
        assert scope.scope.name == "wfe_sql"
        return {metric.name: list(metric.data.data_points) for metric in scope.metrics}

    def close(self) -> None:
        self.tracing.shutdown()
        self.metering.shutdown()


@pytest.fixture
def exported() -> Iterator[Exported]:
    exported = Exported()
    yield exported
    exported.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def provider(
    database: str, exported: Exported, request: pytest.FixtureRequest
) -> AsyncIterator[SqlPersistenceProvider]:
    on_unit = telemetry.on_unit(exported.tracing, exported.metering)
    if database == "sqlite":
        url, options = str(request.getfixturevalue("tmp_path") / "x.db"), {}
    else:
        url, options = request.getfixturevalue("postgres_url"), {"schema": request.getfixturevalue("schema")}
    async with connect(url, on_unit=on_unit, **options) as provider:
        yield provider


async def test_a_span_is_named_by_its_query_and_a_child_of_the_callers(
    provider: SqlPersistenceProvider, exported: Exported, database: str
) -> None:
    tracer = exported.tracing.get_tracer("host")

    async def step(number: int) -> None:
        with tracer.start_as_current_span(f"step {number}"):
            await provider.create_event(full_event(id=f"secret {number}"))
            await provider.get_event(f"secret {number}")

    await asyncio.gather(*(step(number) for number in range(3)))
    spans = exported.spans()
    steps = {span.context.span_id: span for span in spans if span.name.startswith("step")}
    ours = [span for span in spans if span.instrumentation_scope.name == "wfe_sql"]
    assert sorted(span.name for span in ours) == ["create_event"] * 3 + ["get_event"] * 3
    for span in ours:
        step_ = steps[span.parent.span_id]
        assert span.kind is SpanKind.CLIENT
        assert span.status.status_code is StatusCode.UNSET
        assert span.attributes["db.system.name"] == database
        assert span.attributes["wfe_sql.queries"] == (span.name,)
        assert span.attributes["wfe_sql.rows"] == 1
        assert step_.start_time - 1_000_000 <= span.start_time < span.end_time <= step_.end_time + 1_000_000
    assert "secret" not in repr([span.to_json() for span in ours])


async def test_a_unit_that_failed(provider: SqlPersistenceProvider, exported: Exported) -> None:
    await provider.create_event(full_event(id="e1"))
    with pytest.raises(EventAlreadyExistsError):
        await provider.create_event(full_event(id="e1"))
    *_, span = exported.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "EventAlreadyExistsError"


async def test_metrics(provider: SqlPersistenceProvider, exported: Exported, database: str) -> None:
    await asyncio.gather(*(provider.create_event(full_event(id=f"e{number}")) for number in range(4)))
    with pytest.raises(EventAlreadyExistsError):
        await provider.create_event(full_event(id="e1"))
    points = exported.points()
    assert points.keys() == {"wfe_sql.units", "db.client.operation.duration", "wfe_sql.unit.wait_time"}
    of_query = {"db.system.name": database, "db.operation.name": "create_event"}
    assert [(dict(point.attributes), point.value) for point in points["wfe_sql.units"]] == [
        (of_query, 4),
        ({**of_query, "error.type": "EventAlreadyExistsError"}, 1),
    ]
    for name in ("db.client.operation.duration", "wfe_sql.unit.wait_time"):
        assert [point.count for point in points[name]] == [4, 1]
    assert 0 < points["db.client.operation.duration"][0].sum < 4 * 60
