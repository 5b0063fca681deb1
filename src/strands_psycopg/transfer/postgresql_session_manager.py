"""The tables of the package strands-postgresql-session-manager, 0.1 and 0.2.

``sessions``, ``agents`` and ``messages``, and since 0.2 ``multi_agents``. Documents are JSON in 0.1 and JSONB in 0.2,
encoded as in Strands' files; times have no zone and are UTC.
"""

import json
from collections.abc import Callable, Generator, Iterator
from datetime import datetime, timezone
from functools import partial
from types import TracebackType
from typing import Any

from psycopg import Connection, sql
from psycopg_pool import ConnectionPool
from strands.types.session import Session, SessionAgent
from typing_extensions import LiteralString, Self

from strands_psycopg.database import Database
from strands_psycopg.errors import SchemaError, TransferError
from strands_psycopg.transfer.rows import Row, SessionRow, multi_agent_row, session_row
from strands_psycopg.transfer.sources import ImportIssues, SourceMessage, UnreadableError, agent_rows

_HAS_MULTI_AGENTS = "SELECT to_regclass(%(table)s) IS NOT NULL"

_IDS = """
    SELECT session_id FROM {sessions} WHERE %(after)s::text IS NULL OR session_id > %(after)s
    ORDER BY session_id LIMIT %(limit)s
"""

_SESSION = "SELECT session_type, created_at, updated_at FROM {sessions} WHERE session_id = %(session_id)s"

# Also those that have messages and no row, which 0.1 does not prevent.
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


class PostgresqlSessionManagerTables:
    """The sessions in another package's tables, as a source for ``import_sessions``; a context manager.

    Args:
        conninfo: Their database, as for ``PostgresSessionRepository``. A pool that the importing repository uses too
            needs a second connection.
        schema: Their schema; ``public`` if None.
        retry_timeout: For how many seconds a statement is tried again while the database is away.

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
            # Their tables have none.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pool, unless it is the caller's."""
        self._database.close()

    def sessions(self) -> Generator["_TablesSession", None, None]:
        """Give the sessions, sorted as their table sorts them.

        Raises:
            TransferError: The tables are not there.
        """
        # Asked for by name in the schema's own quotes, since the schema may not be in the search path.
        table = self._statement("{multi_agents}").decode()
        has_multi_agents: bool = self._rows("looking at the tables", _HAS_MULTI_AGENTS.encode(), table=table)[0][0]
        after = None
        while True:
            rows = self._rows("listing sessions", self._ids, after=after, limit=_IDS_PAGE)
            for (session_id,) in rows:
                yield _TablesSession(self, session_id, has_multi_agents=has_multi_agents)
            if len(rows) < _IDS_PAGE:
                return
            after = rows[-1][0]

    def read_session(self, session_id: str) -> SessionRow:
        """Read a session's own row. For its ``_TablesSession``, as are the following."""
        rows = self._rows("reading a session", self._session, session_id=session_id)
        if not rows:
            raise UnreadableError("is missing")
        session_type, created_at, updated_at = rows[0]
        record = {"session_id": session_id, "session_type": session_type, **_times(created_at, updated_at)}
        return session_row(Session.from_dict(record))

    def read_agent_ids(self, session_id: str) -> list[str]:
        """Read which agents there are."""
        rows = self._rows("listing agents", self._agent_ids, session_id=session_id)
        return sorted(agent_id for (agent_id,) in rows)

    def read_agent(self, session_id: str, agent_id: str) -> SessionAgent:
        """Read an agent."""
        rows = self._rows("reading an agent", self._agent, session_id=session_id, agent_id=agent_id)
        if not rows:
            raise UnreadableError("is missing, though it has messages")
        state, manager_state, internal_state, created_at, updated_at = rows[0]
        return SessionAgent.from_dict(
            {
                "agent_id": agent_id,
                "state": _document(state) or {},
                "conversation_manager_state": _document(manager_state) or {},
                "_internal_state": _document(internal_state) or {},
                **_times(created_at, updated_at),
            }
        )

    def read_messages(self, session_id: str, agent_id: str) -> Iterator[SourceMessage]:
        """Read an agent's messages, page by page."""
        after = -1
        while True:
            rows = self._rows(
                "reading messages",
                self._messages,
                session_id=session_id,
                agent_id=agent_id,
                after=after,
                limit=_MESSAGES_PAGE,
            )
            for index, message, redaction, created_at, updated_at in rows:
                name = self.name("messages", session_id, agent_id, index)
                yield SourceMessage(index, name, partial(_message, message, redaction, created_at, updated_at))
            if len(rows) < _MESSAGES_PAGE:
                return
            after = rows[-1][0]

    def read_multi_agents(self, session_id: str) -> list[tuple[Any, ...]]:
        """Read the rows of multi-agents."""
        return self._rows("reading multi-agents", self._multi_agents, session_id=session_id)

    def name(self, table: str, *key: object) -> str:
        """Give a name to a row."""
        return f"row {', '.join(map(repr, key))} of the table {self._database.schema}.{table}"

    def _rows(self, operation: str, statement: bytes, **parameters: object) -> list[tuple[Any, ...]]:
        schema = self._database.schema
        try:
            return self._database.fetch(f"{operation} in schema {schema!r}", statement, parameters).rows
        except SchemaError as error:
            raise TransferError(
                f"the schema {schema!r} has no tables sessions, agents and messages such as "
                "strands-postgresql-session-manager makes; name the schema that has"
            ) from error


class _TablesSession:
    def __init__(self, tables: PostgresqlSessionManagerTables, session_id: str, *, has_multi_agents: bool) -> None:
        self._tables = tables
        self.session_id = session_id
        self._has_multi_agents = has_multi_agents

    def rows(self, issues: ImportIssues) -> Iterator[Row]:
        """Give the rows, as every source does."""
        tables, session_id = self._tables, self.session_id
        session = issues.parsed(tables.name("sessions", session_id), lambda: tables.read_session(session_id))
        if session is None:
            return
        yield session
        for agent_id in tables.read_agent_ids(session_id):
            yield from agent_rows(
                issues,
                session,
                tables.name("agents", session_id, agent_id),
                partial(tables.read_agent, session_id, agent_id),
                partial(tables.read_messages, session_id, agent_id),
            )
        for multi_agent_id, state, created_at, updated_at in (
            tables.read_multi_agents(session_id) if self._has_multi_agents else ()
        ):
            row = issues.parsed(
                tables.name("multi_agents", session_id, multi_agent_id),
                partial(_multi_agent, multi_agent_id, state, created_at, updated_at),
            )
            if row is not None:
                yield row


def _multi_agent(multi_agent_id: str, state: str | None, created_at: datetime, updated_at: datetime) -> Row:
    return multi_agent_row(multi_agent_id, _document(state) or {}, **_times(created_at, updated_at))


def _message(message: str | None, redaction: str | None, created_at: datetime, updated_at: datetime) -> dict[str, Any]:
    return {"message": _document(message), "redact_message": _document(redaction), **_times(created_at, updated_at)}


def _document(text: str | None) -> Any:
    # Their NULL is SQL's or JSON's.
    return None if text is None else json.loads(text)


def _times(created_at: datetime, updated_at: datetime) -> dict[str, str]:
    moments = {"created_at": created_at, "updated_at": updated_at}
    return {
        name: (moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment).isoformat()
        for name, moment in moments.items()
    }
