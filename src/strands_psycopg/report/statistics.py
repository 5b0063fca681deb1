"""Statistics of all sessions, computed by the server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.repository import PostgresSessionRepository, session_tables

# A limit, because models may call tools that do not exist, by arbitrary names.
_MAX_TOOLS = 1000

# All queries see one snapshot.
_REPEATABLE_READ = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

# Times and durations are numeric, since extra_float_digits may round the text of a floating-point number.
_DATABASE_AND_TIME = """
    SELECT pg_catalog.current_database(), extract(epoch FROM pg_catalog.now()),
        pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')
"""

_TOTALS = """
    SELECT pg_catalog.count(DISTINCT session_id),
        (pg_catalog.percentile_cont(ARRAY[0.5, 0.95, 1]) WITHIN GROUP (ORDER BY latency_ms))::numeric[],
        (pg_catalog.percentile_cont(ARRAY[0.5, 0.95, 1]) WITHIN GROUP (ORDER BY first_byte_ms))::numeric[]
    FROM {message_figures}
    WHERE %(since)s::date IS NULL OR created_at >= %(since)s::date::timestamp AT TIME ZONE 'UTC'
"""

_DAYS = """
    SELECT pg_catalog.to_char(day, 'YYYY-MM-DD'), sessions, turns, messages, tool_calls, tool_failures, input_tokens,
        output_tokens, cache_read_tokens, cache_write_tokens
    FROM {daily_figures}
    WHERE %(since)s::date IS NULL OR day >= %(since)s
    ORDER BY day
"""

_TOOLS = """
    SELECT pg_catalog.left(tool_name, 255), pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE status = 'error'),
        pg_catalog.count(*) FILTER (WHERE result_message_id IS NULL),
        (pg_catalog.percentile_cont(ARRAY[0.5, 0.95, 1]) WITHIN GROUP (ORDER BY seconds))::numeric[]
    FROM {tool_calls}
    WHERE %(since)s::date IS NULL OR called_at >= %(since)s::date::timestamp AT TIME ZONE 'UTC'
    GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %(max_tools)s
"""

_LONGEST = """
    SELECT s.session_id, s.owner, s.title, coalesce(g.multi_agents, 0), coalesce(v.storage_bytes, 0),
        extract(epoch FROM s.first_active_at), extract(epoch FROM s.last_active_at), s.turns, s.messages, s.tool_calls,
        s.tool_failures, s.input_tokens, s.output_tokens, s.cache_read_tokens, s.cache_write_tokens
    FROM {session_figures} AS s LEFT JOIN (
        SELECT session_id, pg_catalog.count(*) AS multi_agents FROM {multi_agents} GROUP BY session_id
    ) AS g ON g.session_id = s.session_id LEFT JOIN (
        SELECT session_id, pg_catalog.sum(size)::bigint AS storage_bytes FROM {session_storage} GROUP BY session_id
    ) AS v ON v.session_id = s.session_id
    WHERE %(since)s::date IS NULL OR s.last_active_at >= %(since)s::date::timestamp AT TIME ZONE 'UTC'
    ORDER BY s.messages DESC, s.session_id LIMIT %(longest)s
"""

# The total for progress bars.
QUERY_COUNT = 4


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Counts of a session, a day, or all sessions.

    Attributes:
        turns: User messages without a tool result.
        messages: All messages.
        tool_calls: Tool calls that models requested.
        tool_failures: Tool results whose status is ``error``.
        input_tokens: Input tokens, like the other tokens as counted by the provider.
        output_tokens: Output tokens.
        cache_read_tokens: Tokens read from a cache; some providers include them in the input tokens, others do not.
        cache_write_tokens: Tokens written to a cache.
    """

    turns: int
    messages: int
    tool_calls: int
    tool_failures: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int


# The statements return them in this order.
_NAMES = tuple(Figures.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class DayFigures(Figures):
    """Figures of a day.

    Attributes:
        day: The day, in UTC.
        sessions: Number of sessions with a message on that day.
    """

    day: date
    sessions: int


@dataclass(frozen=True, kw_only=True)
class SessionFigures(Figures):
    """Figures of a session's whole history.

    Attributes:
        session_id: The session.
        owner: Whose session it is; None if nobody's.
        title: Its title, as it is stored.
        multi_agents: The number of its graphs and swarms.
        storage_bytes: The size of the values in its storage.
        first_active_at: When the session was created, in UTC.
        last_active_at: When the session was last written to, in UTC.
    """

    session_id: str
    owner: str | None = None
    title: str | None = None
    multi_agents: int = 0
    storage_bytes: int = 0
    first_active_at: datetime
    last_active_at: datetime


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The distribution of durations, in seconds.

    Attributes:
        median: The median.
        p95: The 95th percentile.
        longest: The maximum.
    """

    median: float
    p95: float
    longest: float


@dataclass(frozen=True, kw_only=True)
class ToolFigures:
    """Figures of a tool.

    Attributes:
        name: The first 255 characters of its name; None for calls without one.
        calls: Number of calls.
        failures: Number of calls with a result whose status is ``error``.
        without_result: Number of calls without a result.
        latency: The time from a call until its result was stored; None if no call has a result.
    """

    name: str | None
    calls: int
    failures: int
    without_result: int
    latency: Latency | None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Figures of all sessions in a period.

    Attributes:
        database: The database's name.
        schema: The schema of the tables.
        table_prefix: The prefix of the table names.
        read_at: When the figures were read, by the server's clock.
        since: The first day, in UTC; None for the whole history.
        until: The last day, which is that of ``read_at``.
        sessions: Number of sessions with a message in the period.
        total: The sums over all days.
        model_latency: Latency of model responses, where their metadata contains it.
        first_byte: Time to the first byte of model responses, where their metadata contains it.
        days: The days with at least one message, in order.
        tools: The tools, most called first; at most 1,000.
        longest: The sessions with the most messages among those that were active in the period.
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
    """Return the statistics of all sessions in a period.

    The server reads every stored message, whatever the period is: 10 to 20 seconds for a million messages on two cores.
    It takes no lock that blocks writers, and needs only the SELECT privilege on tables and views. The views see
    messages as they are stored: of those that a ``payload_codec`` has encrypted, only numbers and times.

    Args:
        repository: Where the sessions are stored.
        since: The first day, in UTC.
        days: The number of days up to and including today, instead of ``since``.
        longest: The maximum number of sessions in ``Statistics.longest``.
        progress: Called with 1 after each of the ``QUERY_COUNT`` queries.

    Raises:
        DatabaseUnavailableError: The database could not be reached in time.
        SchemaError: Tables or views are missing.
        DatabaseError: The database refused a query, for example because a privilege is missing.
        ValueError: ``since`` and ``days`` are both given, ``days`` is less than 1, or ``longest`` negative.
    """
    if since is not None and days is not None:
        raise ValueError("since and days cannot be combined")
    if days is not None and days < 1:
        raise ValueError(f"days must be 1 or more, not {days}")
    if longest < 0:
        raise ValueError(f"longest must be 0 or more, not {longest}")
    database = session_tables(repository).database
    totals, each_day, each_tool, each_session = map(database.statement, (_TOTALS, _DAYS, _TOOLS, _LONGEST))

    def read(cursor: Cursor[TupleRow]) -> Statistics:
        cursor.execute(_REPEATABLE_READ)
        name, now, today = cursor.execute(_DATABASE_AND_TIME).fetchall()[0]
        until = date.fromisoformat(today)
        first = since if days is None else until - timedelta(days=min(days, until.toordinal()) - 1)
        parameters = {"since": first, "max_tools": _MAX_TOOLS, "longest": longest}

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
                name=tool, calls=calls, failures=failures, without_result=without_result, latency=_latency(seconds, 1.0)
            )
            for tool, calls, failures, without_result, seconds in rows(each_tool)
        )
        longest_sessions = tuple(
            SessionFigures(
                session_id=session_id,
                owner=owner,
                title=title,
                multi_agents=multi_agents,
                storage_bytes=storage_bytes,
                first_active_at=_time(started),
                last_active_at=_time(ended),
                **_figures(counts),
            )
            for session_id, owner, title, multi_agents, storage_bytes, started, ended, *counts in rows(each_session)
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
            longest=longest_sessions,
        )

    return database.transact("reading the statistics", read, response_timeout=float("inf"))


def _figures(counts: Sequence[Any]) -> dict[str, int]:
    return dict(zip(_NAMES, map(int, counts), strict=True))


def _latency(percentiles: Sequence[Decimal] | None, unit: float) -> Latency | None:
    if percentiles is None:
        return None
    median, p95, longest = (float(each) * unit for each in percentiles)
    return Latency(median=median, p95=p95, longest=longest)


def _time(seconds: Decimal) -> datetime:
    return datetime.fromtimestamp(float(seconds), timezone.utc)
