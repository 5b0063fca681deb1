from contextlib import nullcontext

from opentelemetry.metrics import CallbackOptions

from strands_psycopg import telemetry


def test_without_a_provider_nothing_is_recorded() -> None:
    with telemetry.span("session.write", "s") as span:
        assert telemetry.current_counts() is None
    assert span is None
    assert isinstance(telemetry.span("session.write", "s"), nullcontext)


class Pool:
    """While it is read, another one is opened, as by another thread."""

    def usage(self) -> telemetry.PoolUsage:
        self.another = Pool()
        telemetry.observe_pool(self.another)
        return telemetry.PoolUsage("test", 1, 0)


def test_pools_are_read_while_another_one_is_opened() -> None:
    pool = Pool()
    telemetry.observe_pool(pool)
    usages = [
        each.value for each in telemetry._observe_in_use(CallbackOptions()) if each.attributes == {"pool": "test"}
    ]
    assert usages == [1]
