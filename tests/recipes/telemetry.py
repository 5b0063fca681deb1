"""Traces and metrics of agents and their sessions, on the console or at a collector.

Strands makes spans of agents, models and tools, strands-psycopg of restores, writes and waits for leases, and
opentelemetry-instrumentation-psycopg of each statement. Strands' spans hold what was said, those of sessions do not.
"""

from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from strands.telemetry import StrandsTelemetry


def to_console() -> None:
    """Write spans, and metrics once a minute, to standard output."""
    StrandsTelemetry().setup_console_exporter().setup_meter(enable_console_exporter=True)


def to_collector() -> None:
    """Send spans and metrics to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names; needs strands-agents[otel]."""
    StrandsTelemetry().setup_otlp_exporter().setup_meter(enable_otlp_exporter=True)


def with_statements() -> None:
    """Make each statement a span too; call this before the first repository is used."""
    PsycopgInstrumentor().instrument()
