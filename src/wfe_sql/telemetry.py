"""Spans and metrics of OpenTelemetry for units of work; needs `wfe-sql[otel]`.

    provider = wfe_sql.connect(url, on_unit=telemetry.on_unit())

The names are those of the semantic conventions for databases (https://opentelemetry.io/docs/specs/semconv/database/),
where these have one. The attributes contain no stored value and no id.
"""

import time
from collections.abc import Callable

from wfe_sql.models import UnitStats

try:
    from opentelemetry import metrics, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError as error:
    raise ImportError(
        "wfe_sql.telemetry needs opentelemetry-api, which is not installed: pip install 'wfe-sql[otel]'"
    ) from error

_NAME = "wfe_sql"

_SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0]
"""Bounds of the histogram buckets."""


def on_unit(
    tracer_provider: trace.TracerProvider | None = None, meter_provider: metrics.MeterProvider | None = None
) -> Callable[[UnitStats], None]:
    """Return a function for the option `on_unit` of `connect`, which records a span and metrics for each unit of work.

    A span is named after the first query of its unit, is a child of the span of the call, and lasts from the call until
    its answer. The metrics are the counter `wfe_sql.units` and the histograms
    `db.client.operation.duration` (that whole time) and `wfe_sql.unit.wait_time` (until it was sent), in seconds.

    Args:
        tracer_provider: Where spans go; the global one when None.
        meter_provider: Where metrics go; the global one when None.
    """
    tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
    meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
    units = meter.create_counter("wfe_sql.units", "{unit}", "Units of work that have ended.")
    duration, waiting = (
        meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS)
        for name, description in (
            ("db.client.operation.duration", "From the call until its answer."),
            ("wfe_sql.unit.wait_time", "From the call until it was sent to the database."),
        )
    )

    def record(unit: UnitStats) -> None:
        ended_at = time.time_ns()
        took = unit.waited + unit.worked
        attributes: dict[str, str] = {"db.system.name": unit.database, "db.operation.name": unit.queries[0]}
        if unit.outcome != "ok":
            attributes["error.type"] = unit.outcome
        units.add(1, attributes)
        duration.record(took, attributes)
        waiting.record(unit.waited, attributes)
        span = tracer.start_span(
            unit.queries[0],
            kind=SpanKind.CLIENT,
            start_time=ended_at - int(took * 1e9),
            attributes={
                **attributes,
                "wfe_sql.queries": unit.queries,
                "wfe_sql.rows": unit.rows,
                "wfe_sql.units_together": unit.units_together,
                "wfe_sql.waited": unit.waited,
                "wfe_sql.writes": unit.writes,
            },
        )
        if unit.outcome != "ok":
            span.set_status(Status(StatusCode.ERROR, unit.outcome))
        span.end(ended_at)

    return record
