"""OpenTelemetry's instrumentation of psycopg sees the library's statements, and their place in the caller's trace."""

import json

from support import processes

_SCRIPT = """
import sys
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
PsycopgInstrumentor().instrument(tracer_provider=provider)

import asyncio
from strands_psycopg import PostgresSessionRepository

tracer = provider.get_tracer("test")
with PostgresSessionRepository(sys.argv[1]) as repository:
    with tracer.start_as_current_span("request") as request:
        repository.read_session("s")
        asyncio.run(repository._database.workers.run_async(lambda: repository.read_session("s")))
ids = {each.context.trace_id for each in exporter.get_finished_spans()}
statements = [each for each in exporter.get_finished_spans() if each.name != "request"]
print(len(ids), len(statements))
"""


def test_statements_are_spans_of_the_callers_trace(dsn: str) -> None:
    status, printed, errors = processes.run_younger(_SCRIPT, dsn)

    assert (status, printed) == (0, "1 2\n"), errors


_OWN = """
import json, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from strands_psycopg import PostgresSessionRepository, SessionConflictError
from support.agents import build

with PostgresSessionRepository(sys.argv[1]) as repository:
    build(repository)("before a provider is set")
    exporter, provider, reader = InMemorySpanExporter(), TracerProvider(), InMemoryMetricReader()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))

    with repository.lease("s"):
        agent, stale = build(repository), build(repository)
        agent("confidential")
        held = reader.get_metrics_data()
    try:
        stale("confidential, too")
    except Exception:
        pass
    after = reader.get_metrics_data()

spans = exporter.get_finished_spans()
names = {each.context.span_id: each.name for each in spans}
print(json.dumps([
    [each.name, names.get(each.parent and each.parent.span_id, ""), dict(each.attributes), each.status.status_code.name]
    for each in spans if each.name.startswith(("session.", "lease."))
]))
for data in (held, after):
    print(json.dumps({
        metric.name.removeprefix("strands_psycopg."): [getattr(point, "value", getattr(point, "count", None))
                                                       for point in metric.data.data_points]
        for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
        if scope.scope.name == "strands_psycopg"
    }))
print("confidential" in str([(each.attributes, each.events, each.status.description) for each in spans
                             if each.name.startswith("session.")]))
"""


def test_restores_writes_and_leases_are_spans_and_metrics(dsn: str) -> None:
    status, printed, errors = processes.run_younger(_OWN, dsn)

    assert status == 0, errors
    spans, held, after, is_confidential = printed.splitlines()
    assert is_confidential == "False"
    lease, restored, _, *written = json.loads(spans)
    assert lease == [
        "lease.wait",
        "",
        {"session.id": "s", "strands_psycopg.attempts": 1, "strands_psycopg.bytes": 1},
        "UNSET",
    ]
    agent = {"session.id": "s", "gen_ai.agent.id": "default"}
    assert restored == ["session.restore", "", agent | {"strands_psycopg.attempts": 1}, "UNSET"]
    *stored, conflict = written
    assert len(stored) == 2
    for name, parent, attributes, code in stored:
        assert (name, code) == ("session.write", "UNSET")
        assert parent  # a span of the agent's turn
        size = attributes.pop("strands_psycopg.bytes")
        assert size > len("confidential")
        assert attributes == agent | {"strands_psycopg.attempts": 1}
    assert (conflict[0], conflict[3]) == ("session.write", "ERROR")

    while_held, afterwards = json.loads(held), json.loads(after)
    assert while_held["leases.held"] == [1]
    assert while_held["write.duration"] == [2]
    assert while_held["pool.waiting"] == [0]
    assert while_held["pool.in_use"] == [0]
    assert "conflicts" not in while_held
    assert afterwards["leases.held"] == [0]
    assert afterwards["conflicts"] == [1]
