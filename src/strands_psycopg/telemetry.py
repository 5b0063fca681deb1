"""Spans and metrics with the API of OpenTelemetry, which cost next to nothing while no provider is set.

Attributes are named as in OpenTelemetry's semantic conventions, and ``strands_psycopg.*`` where these have no name.
None holds a message's content.

The spans are ``session.restore``, ``session.write`` and ``lease.wait``. The metrics are ``pool.in_use``,
``pool.waiting``, ``write.duration``, ``retries``, ``conflicts``, ``leases.held`` and ``leases.lost``; each name begins
with ``strands_psycopg.``.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

from opentelemetry import metrics, trace

_tracer = trace.get_tracer("strands_psycopg")
_meter = metrics.get_meter("strands_psycopg")

write_duration = _meter.create_histogram(
    "strands_psycopg.write.duration", unit="s", description="Duration of a manager's write, with its retries"
)
retries = _meter.create_counter("strands_psycopg.retries", description="Attempts that failed and were repeated")
conflicts = _meter.create_counter("strands_psycopg.conflicts", description="Writes refused as conflicts")
leases_lost = _meter.create_counter("strands_psycopg.leases.lost", description="Leases lost to another holder")


class PoolUsage(NamedTuple):
    """How much a pool is in use.

    Attributes:
        name: The pool's name.
        in_use: The number of connections that are checked out or being made.
        waiting: The number of calls that wait for a connection.
    """

    name: str
    in_use: int
    waiting: int


_T = TypeVar("_T")


class _Pool(Protocol):
    def usage(self) -> PoolUsage:
        """Return how much the pool is in use now."""


class _Leases(Protocol):
    def count(self) -> int:
        """Return how many are held."""


_pools: WeakKeyDictionary[_Pool, None] = WeakKeyDictionary()
_leases: WeakKeyDictionary[_Leases, None] = WeakKeyDictionary()


def observe_pool(pool: _Pool) -> None:
    """Include a pool in the metrics, for as long as it is referred to."""
    _pools[pool] = None


def observe_leases(leases: _Leases) -> None:
    """Include the number of leases in the metrics, for as long as they are referred to."""
    _leases[leases] = None


def _living(observed: WeakKeyDictionary[_T, None]) -> list[_T]:
    """Return what is observed and still referred to; other threads may add to it meanwhile."""
    return [each for reference in observed.keyrefs() if (each := reference()) is not None]


def _observe_in_use(_options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
    for usage in [pool.usage() for pool in _living(_pools)]:
        yield metrics.Observation(usage.in_use, {"pool": usage.name})


def _observe_waiting(_options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
    for usage in [pool.usage() for pool in _living(_pools)]:
        yield metrics.Observation(usage.waiting, {"pool": usage.name})


def _observe_leases(_options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
    yield metrics.Observation(sum(leases.count() for leases in _living(_leases)))


_meter.create_observable_gauge(
    "strands_psycopg.pool.in_use", [_observe_in_use], description="Connections of a pool that are in use"
)
_meter.create_observable_gauge(
    "strands_psycopg.pool.waiting", [_observe_waiting], description="Calls that wait for a connection of a pool"
)
_meter.create_observable_gauge(
    "strands_psycopg.leases.held", [_observe_leases], description="Leases that this process holds"
)


class SpanCounts:
    """Counts of the statements within a recorded span.

    Attributes:
        attempts: The number of attempts, at least one for each statement or transaction.
        bytes: The size of what was sent to be stored, in characters of JSON.
    """

    def __init__(self) -> None:
        self.attempts = 0
        self.bytes = 0


_counts: ContextVar[SpanCounts | None] = ContextVar("_counts", default=None)


def current_counts() -> SpanCounts | None:
    """Return the counts of the innermost span of this module; None if nothing is recorded."""
    return _counts.get()


def span(name: str, session_id: str, agent_id: str | None = None) -> AbstractContextManager[None]:
    """Return a context manager that makes a block a span, under the current one."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # none is set
        return nullcontext()
    return _recorded_span(name, session_id, agent_id)


@contextmanager
def _recorded_span(name: str, session_id: str, agent_id: str | None) -> Iterator[None]:
    with _tracer.start_as_current_span(name) as current:
        current.set_attribute("session.id", session_id)
        if agent_id is not None:
            current.set_attribute("gen_ai.agent.id", agent_id)
        counts = SpanCounts()
        token = _counts.set(counts)
        try:
            yield
        finally:
            _counts.reset(token)
            current.set_attribute("strands_psycopg.attempts", counts.attempts)
            if counts.bytes:
                current.set_attribute("strands_psycopg.bytes", counts.bytes)
