"""The tables of the package strands-postgresql-session-manager, 0.1 and 0.2.

They are ``sessions``, ``agents`` and ``messages``, and since 0.2 ``multi_agents``. Documents are JSON in 0.1 and JSONB
in 0.2, encoded as in Strands' files. Times are UTC, without a time zone.
"""

import json
from collections.abc import Callable, Generator, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any

from psycopg import Connection, sql
from psycopg_pool import ConnectionPool
from strands.types.session import Session, SessionAgent
from typing_extensions import LiteralString

from strands_psycopg.closeable import Closeable
from strands_psycopg.database import Database
from strands_psycopg.errors import SchemaError, TransferError
from strands_psycopg.transfer.rows import Row, SessionRow, multi_agent_row, session_row
from strands_psycopg.transfer.sources import ImportIssues, SourceMessage, UnreadableError, agent_rows

_HAS_MULTI_AGENTS = "SELECT pg_catalog.to_regclass(%(table)s) IS NOT NULL"

_IDS = """
    SELECT session_id FROM {sessions} WHERE %(after)s::text IS NULL OR session_id > %(after)s
    ORDER BY session_id LIMIT %(limit)s
"""

_SESSION = "SELECT session_type, created_at, updated_at FROM {sessions} WHERE session_id = %(session_id)s"

# Includes agents that have messages but no row, which 0.1 does not prevent.
_AGENT_IDS = """
    SELECT agent_id FROM {agents} WHERE session_id = %(session_id)s
    UNION SELECT agent_id FROM {messages} WHERE session_id = %(session_id)s
"""

_AGENT = """
    SELECT state::text, conversation_manager_state::text, _internal_state::text, created_at, updated_at
    FROM {agents} WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
"""

_MESSAGES = """
    SELECT message_id, message::text, redact_message::text, created_at, updated_at FROM {messages}
    WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND message_id > %(after)s
    ORDER BY message_id LIMIT %(limit)s
"""

_MULTI_AGENTS = """
    SELECT multi_agent_id, state::text, created_at, updated_at FROM {multi_agents} WHERE session_id = %(session_id)s
"""

_TABLES = ("sessions", "agents", "messages", "multi_agents")

_IDS_PAGE = 1_000
_MESSAGES_PAGE = 200


class PostgresqlSessionManagerTables(Closeable):
    """The tables of strands-postgresql-session-manager as a source for ``import_sessions``; a context manager.

    Args:
        conninfo: The tables' database, as for ``PostgresSessionRepository``. If it is a pool that the importing
            repository uses too, it needs a second connection.
        schema: The tables' schema; ``public`` if None.
        retry_timeout: For how many seconds a statement is retried while the database is unreachable.

    Raises:
        TypeError: ``conninfo`` is of a wrong type.
        ValueError: The DSN cannot be parsed, or the schema does not match ``[a-z_][a-z0-9_]{0,39}``.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str] | ConnectionPool[Connection[Any]],
        *,
        schema: str | None = None,
        retry_timeout: float = 30.0,
    ) -> None:
        self._database = Database(
            conninfo,
            schema=schema,
            # These tables have no prefix.
            table_prefix="_",
            retry_timeout=retry_timeout,
            response_timeout=30.0,
            pool_options={} if isinstance(conninfo, ConnectionPool) else {"max_size": 1},
        )
        self._ids, self._session, self._agent_ids, self._agent, self._messages, self._multi_agents = (
            self._statement(template) for template in (_IDS, _SESSION, _AGENT_IDS, _AGENT, _MESSAGES, _MULTI_AGENTS)
        )

    def _statement(self, template: LiteralString) -> bytes:
        tables = {table: sql.Identifier(self._database.schema, table) for table in _TABLES}
        return sql.SQL(template).format(**tables).as_bytes(None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._database.address} schema={self._database.schema}>"

    def close(self) -> None:
        """Close the pool, unless it is the caller's."""
        self._database.close()

    def sessions(self) -> Generator["_TablesSession", None, None]:
        """Yield the sessions, ordered by id in the collation of their table.

        Raises:
            TransferError: The tables are missing, or have no sessions.
        """
        # A quoted name with its schema, because the schema may not be in the search path.
        table = self._statement("{multi_agents}").decode()
        has_multi_agents: bool = self._fetch("inspecting the tables", _HAS_MULTI_AGENTS.encode(), table=table)[0][0]
        after = None
        while True:
            rows = self._fetch("listing sessions", self._ids, after=after, limit=_IDS_PAGE)
            for (session_id,) in rows:
                yield _TablesSession(self, session_id, has_multi_agents=has_multi_agents)
            if not rows and after is None:
                raise TransferError(
                    f"the tables in schema {self._database.schema!r} have no sessions; name the database "
                    "(--tables-dsn) and schema (--tables-schema) that has them"
                )
            if len(rows) < _IDS_PAGE:
                return
            after = rows[-1][0]

    def _read_session(self, session_id: str) -> SessionRow:
        """Return a session's own row."""
        rows = self._fetch("reading a session", self._session, session_id=session_id)
        if not rows:
            raise UnreadableError("is missing")
        session_type, created_at, updated_at = rows[0]
        record = {"session_id": session_id, "session_type": session_type, **_format_times(created_at, updated_at)}
        return session_row(Session.from_dict(record))

    def _read_agent_ids(self, session_id: str) -> list[str]:
        """Return the sorted ids of a session's agents."""
        rows = self._fetch("listing agents", self._agent_ids, session_id=session_id)
        return sorted(agent_id for (agent_id,) in rows)

    def _read_agent(self, session_id: str, agent_id: str) -> SessionAgent:
        """Return an agent."""
        rows = self._fetch("reading an agent", self._agent, session_id=session_id, agent_id=agent_id)
        if not rows:
            raise UnreadableError("is missing, although it has messages")
        state, manager_state, internal_state, created_at, updated_at = rows[0]
        return SessionAgent.from_dict(
            {
                "agent_id": agent_id,
                "state": _parse_document(state) or {},
                "conversation_manager_state": _parse_document(manager_state) or {},
                "_internal_state": _parse_document(internal_state) or {},
                **_format_times(created_at, updated_at),
            }
        )

    def _read_messages(self, session_id: str, agent_id: str) -> Iterator[SourceMessage]:
        """Yield an agent's messages, fetched page by page."""
        after = -1
        while True:
            rows = self._fetch(
                "reading messages",
                self._messages,
                session_id=session_id,
                agent_id=agent_id,
                after=after,
                limit=_MESSAGES_PAGE,
            )
            for index, message, redaction, created_at, updated_at in rows:
                name = self._row_name("messages", session_id, agent_id, index)
                yield SourceMessage(index, name, partial(_message_record, message, redaction, created_at, updated_at))
            if len(rows) < _MESSAGES_PAGE:
                return
            after = rows[-1][0]

    def _read_multi_agents(self, session_id: str) -> list[tuple[Any, ...]]:
        """Return the rows of a session's multi-agents."""
        return self._fetch("reading multi-agents", self._multi_agents, session_id=session_id)

    def _row_name(self, table: str, *key: object) -> str:
        """Return a row's name for error messages."""
        return f"row {', '.join(map(repr, key))} of the table {self._database.schema}.{table}"

    def _fetch(self, operation: str, statement: bytes, **parameters: object) -> list[tuple[Any, ...]]:
        schema = self._database.schema
        try:
            return self._database.fetch(f"{operation} in schema {schema!r}", statement, parameters).rows
        except SchemaError as error:
            raise TransferError(
                f"the schema {schema!r} has no tables sessions, agents and messages as created by "
                "strands-postgresql-session-manager; name the schema that has them (schema= or --tables-schema)"
            ) from error


class _TablesSession:
    raw = False

    def __init__(self, tables: PostgresqlSessionManagerTables, session_id: str, *, has_multi_agents: bool) -> None:
        self._tables = tables
        self.session_id = session_id
        self._has_multi_agents = has_multi_agents

    def rows(self, issues: ImportIssues) -> Iterator[Row]:
        """Yield the rows, as ``SourceSession.rows`` does."""
        tables, session_id = self._tables, self.session_id
        session = issues.parse_or_skip(
            tables._row_name("sessions", session_id), lambda: tables._read_session(session_id)
        )
        if session is None:
            return
        yield session
        for agent_id in tables._read_agent_ids(session_id):
            yield from agent_rows(
                issues,
                session,
                tables._row_name("agents", session_id, agent_id),
                partial(tables._read_agent, session_id, agent_id),
                partial(tables._read_messages, session_id, agent_id),
            )
        for multi_agent_id, state, created_at, updated_at in (
            tables._read_multi_agents(session_id) if self._has_multi_agents else ()
        ):
            row = issues.parse_or_skip(
                tables._row_name("multi_agents", session_id, multi_agent_id),
                partial(_encode_multi_agent, multi_agent_id, state, created_at, updated_at),
            )
            if row is not None:
                yield row


def _encode_multi_agent(multi_agent_id: str, state: str | None, created_at: datetime, updated_at: datetime) -> Row:
    times = _format_times(created_at, updated_at)
    return multi_agent_row(multi_agent_id, _parse_document(state) or {}, times["created_at"], times["updated_at"])


def _message_record(
    message: str | None, redaction: str | None, created_at: datetime, updated_at: datetime
) -> dict[str, Any]:
    return {
        "message": _parse_document(message),
        "redact_message": _parse_document(redaction),
        **_format_times(created_at, updated_at),
    }


def _parse_document(text: str | None) -> Any:
    # A missing document is SQL's NULL or JSON's null.
    return None if text is None else json.loads(text)


def _format_times(created_at: datetime, updated_at: datetime) -> dict[str, str]:
    times = {"created_at": created_at, "updated_at": updated_at}
    return {
        name: (time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time).isoformat()
        for name, time in times.items()
    }
