"""Figures of all sessions, counted by the server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.repository import PostgresSessionRepository, session_tables

# Models call tools that do not exist, by any name.
_MOST_TOOLS = 1000

# All figures are of one moment.
_BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

_PLACE = """
    SELECT current_database(), extract(epoch FROM now())::double precision,
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')
"""

_TOTALS = """
    SELECT count(DISTINCT session_id), percentile_cont(ARRAY[0.5, 0.95, 1]) WITHIN GROUP (ORDER BY latency_ms),
        percentile_cont(ARRAY[0.5, 0.95, 1]) WITHIN GROUP (ORDER BY first_byte_ms)
    FROM {message_figures}
    WHERE %(since)s::date IS NULL OR created_at >= %(since)s::date::timestamp AT TIME ZONE 'UTC'
"""

_DAYS = """
    SELECT to_char(day, 'YYYY-MM-DD'), sessions, turns, messages, tool_calls, tool_failures, input_tokens,
        output_tokens, cache_read_tokens, cache_write_tokens
    FROM {daily_figures}
    WHERE %(since)s::date IS NULL OR day >= %(since)s
    ORDER BY day
"""

_TOOLS = """
    SELECT left(tool_name, 255), count(*), count(*) FILTER (WHERE status = 'error'),
        count(*) FILTER (WHERE result_message_id IS NULL),
        percentile_cont(ARRAY[0.5, 0.95, 1]) WITHIN GROUP (ORDER BY seconds)
    FROM {tool_calls}
    WHERE %(since)s::date IS NULL OR called_at >= %(since)s::date::timestamp AT TIME ZONE 'UTC'
    GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %(most)s
"""

_LONGEST = """
    SELECT session_id, extract(epoch FROM first_active_at)::double precision,
        extract(epoch FROM last_active_at)::double precision, turns, messages, tool_calls, tool_failures, input_tokens,
        output_tokens, cache_read_tokens, cache_write_tokens
    FROM {session_figures}
    WHERE %(since)s::date IS NULL OR last_active_at >= %(since)s::date::timestamp AT TIME ZONE 'UTC'
    ORDER BY messages DESC, session_id LIMIT %(longest)s
"""

# How many there are, for whoever shows progress.
QUERIES = 4


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is counted of a session, a day, or all of them.

    Attributes:
        turns: Messages of users that bring no result of a tool.
        messages: All messages.
        tool_calls: What models asked for.
        tool_failures: Results whose status is ``error``.
        input_tokens: As the provider counted, as are the others.
        output_tokens: What models wrote.
        cache_read_tokens: Read from a cache; some providers count them among the input, others beside it.
        cache_write_tokens: Written to a cache.
    """

    turns: int
    messages: int
    tool_calls: int
    tool_failures: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int


# In the order in which the statements give them.
_NAMES = tuple(Figures.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class DayFigures(Figures):
    """Figures of a day.

    Attributes:
        day: In UTC.
        sessions: How many had a message on it.
    """

    day: date
    sessions: int


@dataclass(frozen=True, kw_only=True)
class SessionFigures(Figures):
    """Figures of a session, from its beginning on.

    Attributes:
        session_id: The session.
        first_active_at: When it was created, in UTC.
        last_active_at: When it was last written, in UTC.
    """

    session_id: str
    first_active_at: datetime
    last_active_at: datetime


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long something took, in seconds.

    Attributes:
        median: Half of the times are shorter.
        p95: 95 of 100 times are shorter.
        longest: None is longer.
    """

    median: float
    p95: float
    longest: float


@dataclass(frozen=True, kw_only=True)
class ToolFigures:
    """Figures of a tool.

    Attributes:
        name: The first 255 characters of its name; None for calls without one.
        calls: How often a model asked for it.
        failures: How many of those have a result whose status is ``error``.
        unanswered: How many have no result.
        latency: Until the result was stored; None if there is none.
    """

    name: str | None
    calls: int
    failures: int
    unanswered: int
    latency: Latency | None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Figures of all sessions in a time.

    Attributes:
        database: The database's name.
        schema: Where the tables are.
        table_prefix: What their names begin with.
        read_at: When the figures were read, by the server's clock.
        since: The first day, in UTC; None for all.
        until: The last day, which is that of ``read_at``.
        sessions: How many had a message in that time.
        total: The sums over all days.
        model_latency: Of the models' answers, as far as their metadata tell.
        first_byte: Of the first bytes of those.
        days: Each day with a message, in order.
        tools: The tools, the most called first; 1,000 at most.
        longest: The sessions with the most messages among those that were active in that time.
    """

    database: str
    schema: str
    table_prefix: str
    read_at: datetime
    since: date | None
    until: date
    sessions: int
    total: Figures
    model_latency: Latency | None
    first_byte: Latency | None
    days: tuple[DayFigures, ...]
    tools: tuple[ToolFigures, ...]
    longest: tuple[SessionFigures, ...]


def read_statistics(
    repository: PostgresSessionRepository,
    *,
    since: date | None = None,
    days: int | None = None,
    longest: int = 100,
    progress: Callable[[int], None] = lambda _: None,
) -> Statistics:
    """Read what all sessions of a time amount to.

    The server reads every message for it, whatever the time: 10 to 20 seconds for a million on two cores. It takes no
    lock that a writer waits for, and needs no right but SELECT on tables and views.

    Args:
        repository: Where the sessions are.
        since: The first day, in UTC.
        days: Instead: how many days, of which the last is today.
        longest: How many of the longest sessions to give at most.
        progress: Called with 1 after each of ``QUERIES`` queries.

    Raises:
        DatabaseUnavailableError: The database could not be reached in time.
        SchemaError: Tables or views are missing.
        DatabaseError: The database refused a query; for lack of a right, for example.
        ValueError: ``since`` and ``days`` are both given, ``days`` is less than 1, or ``longest`` negative.
    """
    if since is not None and days is not None:
        raise ValueError("since and days exclude each other")
    if days is not None and days < 1:
        raise ValueError(f"days must be 1 or more, not {days}")
    if longest < 0:
        raise ValueError(f"longest must be 0 or more, not {longest}")
    database = session_tables(repository).database
    totals, each_day, each_tool, each_session = map(database.statement, (_TOTALS, _DAYS, _TOOLS, _LONGEST))

    def read(cursor: Cursor[TupleRow]) -> Statistics:
        cursor.execute(_BEGIN)
        name, now, today = cursor.execute(_PLACE).fetchall()[0]
        until = date.fromisoformat(today)
        first = since if days is None else until - timedelta(days=min(days, until.toordinal()) - 1)
        parameters = {"since": first, "most": _MOST_TOOLS, "longest": longest}

        def rows(statement: bytes) -> list[TupleRow]:
            found = cursor.execute(statement, parameters).fetchall()
            progress(1)
            return found

        by_day = tuple(
            DayFigures(day=date.fromisoformat(day), sessions=int(sessions), **_figures(counts))
            for day, sessions, *counts in rows(each_day)
        )
        sessions, model_latency, first_byte = rows(totals)[0]
        tools = tuple(
            ToolFigures(
                name=tool, calls=calls, failures=failures, unanswered=unanswered, latency=_latency(seconds, 1.0)
            )
            for tool, calls, failures, unanswered, seconds in rows(each_tool)
        )
        of_sessions = tuple(
            SessionFigures(
                session_id=session_id, first_active_at=_time(begun), last_active_at=_time(ended), **_figures(counts)
            )
            for session_id, begun, ended, *counts in rows(each_session)
        )
        return Statistics(
            database=name,
            schema=database.schema,
            table_prefix=database.table_prefix,
            read_at=_time(now),
            since=first,
            until=until,
            sessions=sessions,
            total=Figures(**{name: sum(getattr(day, name) for day in by_day) for name in _NAMES}),
            model_latency=_latency(model_latency, 0.001),
            first_byte=_latency(first_byte, 0.001),
            days=by_day,
            tools=tools,
            longest=of_sessions,
        )

    return database.transact("reading the statistics", read, response_timeout=float("inf"))


def _figures(counts: Sequence[Any]) -> dict[str, int]:
    return dict(zip(_NAMES, map(int, counts), strict=True))


def _latency(percentiles: Sequence[float] | None, unit: float) -> Latency | None:
    if percentiles is None:
        return None
    median, p95, longest = (each * unit for each in percentiles)
    return Latency(median=median, p95=p95, longest=longest)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
