from contextlib import nullcontext

from strands_psycopg import telemetry


def test_without_a_provider_nothing_is_recorded() -> None:
    with telemetry.span("session.write", "s") as span:
        assert telemetry.current_counts() is None
    assert span is None
    assert isinstance(telemetry.span("session.write", "s"), nullcontext)
