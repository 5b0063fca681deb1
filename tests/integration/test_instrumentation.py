"""OpenTelemetry's instrumentation of psycopg sees the library's statements, and their place in the caller's trace."""

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
    status, printed, errors = processes.interpret(_SCRIPT, dsn)

    assert (status, printed) == (0, "1 2\n"), errors
