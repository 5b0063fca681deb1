"""The table of multi-agents: graphs and swarms."""

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from strands_psycopg.arguments import check_id
from strands_psycopg.database import Database
from strands_psycopg.errors import SessionConflictError, SessionExistsError, SessionNotFoundError, owner_error
from strands_psycopg.payload import Payloads
from strands_psycopg.repository.annotations import check_owner
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.refusals import check_lease, retry_if_suppressed

_CREATE = """
    WITH t AS (
        INSERT INTO {multi_agents} AS a (
            session_id, multi_agent_id, state, state_exact, write_id, created_at, updated_at
        )
        SELECT %(session_id)s::text, %(multi_agent_id)s::text, %(state)s::jsonb, %(state_exact)s::text,
            %(write_id)s::uuid, pg_catalog.now(), pg_catalog.now()
        WHERE {may_write} AND NOT {of_another_owner}
        ON CONFLICT (session_id, multi_agent_id) DO UPDATE SET write_id = EXCLUDED.write_id
        WHERE a.write_id = EXCLUDED.write_id
        RETURNING a.multi_agent_id
    ), {touch_session_of_t}
    SELECT {allowed_at}, t.multi_agent_id IS NOT NULL, {of_another_owner},
        t.multi_agent_id IS NULL AND fence.holds AND NOT {of_another_owner} AND NOT EXISTS (
            SELECT true FROM {multi_agents} WHERE session_id = %(session_id)s AND multi_agent_id = %(multi_agent_id)s
        ) AS suppressed
    FROM {fence_of_insert} LEFT JOIN t ON true
"""

_READ = """
    SELECT state::text, state_exact, write_id::text, {owned} FROM {multi_agents}
    WHERE session_id = %(session_id)s AND multi_agent_id = %(multi_agent_id)s
"""

_LIST = """
    SELECT multi_agent_id, {updated_at_text}, state::text, state_exact FROM {multi_agents}
    WHERE session_id = %(session_id)s
    ORDER BY created_at, multi_agent_id
"""

_UPDATE = """
    WITH {fence}, {touch_session}, t AS (
        UPDATE {multi_agents}
        SET state = %(state)s, state_exact = %(state_exact)s, write_id = %(write_id)s, updated_at = pg_catalog.now()
        WHERE session_id = %(session_id)s AND multi_agent_id = %(multi_agent_id)s AND {unchanged} AND {fence_holds}
        RETURNING multi_agent_id
    )
    SELECT {allowed_at}, a.multi_agent_id IS NOT NULL, t.multi_agent_id IS NOT NULL,
        t.multi_agent_id IS NULL AND fence.holds AND a.multi_agent_id IS NOT NULL AND {unchanged} AS suppressed
    FROM fence LEFT JOIN t ON true
    LEFT JOIN {multi_agents} AS a ON a.session_id = %(session_id)s AND a.multi_agent_id = %(multi_agent_id)s
"""


class ListedMultiAgent(NamedTuple):
    """A multi-agent in a list.

    Attributes:
        multi_agent_id: Its id.
        updated_at: When its state was last stored, in UTC.
        state: The state that it serialized.
    """

    multi_agent_id: str
    updated_at: datetime
    state: dict[str, Any]


class StoredMultiAgent(NamedTuple):
    """A multi-agent's state with what is needed to update it without a conflict.

    Attributes:
        state: The state that the multi-agent serialized.
        write_id: The write id of the last write to its row.
    """

    state: dict[str, Any]
    write_id: UUID


class MultiAgents:
    """Reads and writes multi-agents in one database, schema and prefix."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._create = compose(database, _CREATE)
        self._read = compose(database, _READ)
        self._list = compose(database, _LIST)
        self._update = compose(database, _UPDATE)

    def create(
        self,
        session_id: str,
        multi_agent_id: str,
        state: dict[str, Any],
        *,
        write_id: UUID,
        owner: str | None = None,
        term: UUID | None = None,
    ) -> None:
        """Store a new multi-agent.

        Args:
            session_id: The session.
            multi_agent_id: The multi-agent.
            state: The state that it serialized.
            write_id: The write id of this call.
            owner: Whose session it must be; None if it may be anyone's.
            term: The term of the lease on the session, if this process holds one.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionOwnerError: The session does not belong to ``owner``.
            SessionExistsError: Another call created the multi-agent.
            SessionNotFoundError: The session does not exist.
        """
        operation = f"creating multi-agent {multi_agent_id!r} in session {session_id!r}"
        row = _parameters(self._payloads, session_id, multi_agent_id, state, write_id, term)
        row["owner"] = check_owner(owner)
        result = retry_if_suppressed(operation, lambda: self._database.write(operation, self._create, row))
        allowed_at, created, of_another_owner, _ = result.rows[0]
        if not created and of_another_owner:
            raise owner_error(operation, session_id)
        check_lease(allowed_at, operation, session_id, self._database)
        if not created:
            raise SessionExistsError(f"{operation}: the multi-agent already exists; read it instead")

    def read(self, session_id: str, multi_agent_id: str, *, owner: str | None = None) -> StoredMultiAgent | None:
        """Return a multi-agent's state, or None if it does not exist.

        Raises:
            SessionOwnerError: The session does not belong to ``owner``, and that is not None.
        """
        operation = f"reading multi-agent {multi_agent_id!r} of session {session_id!r}"
        row = {**_key(session_id, multi_agent_id), "owner": check_owner(owner)}
        rows = self._database.fetch(operation, self._read, row).rows
        if not rows:
            return None
        text, exact, write_id, owned = rows[0]
        if not owned:
            raise owner_error(operation, session_id)
        state = self._payloads.decode(text, exact, session_id, multi_agent_id, "multi_agent")
        return StoredMultiAgent(state, UUID(write_id))

    def read_all(self, session_id: str) -> list[ListedMultiAgent]:
        """Return a session's multi-agents, oldest first."""
        operation = f"listing multi-agents of session {session_id!r}"
        key = {"session_id": check_id("session_id", session_id)}
        return [
            ListedMultiAgent(
                multi_agent_id,
                datetime.fromisoformat(updated_at),
                self._payloads.decode(text, exact, session_id, multi_agent_id, "multi_agent"),
            )
            for multi_agent_id, updated_at, text, exact in self._database.fetch(operation, self._list, key).rows
        ]

    def update(
        self,
        session_id: str,
        multi_agent_id: str,
        state: dict[str, Any],
        *,
        write_id: UUID,
        expected: UUID | None = None,
        term: UUID | None = None,
    ) -> None:
        """Replace the stored state of a multi-agent.

        Arguments are as for ``create``; ``expected`` is the write id that the row must have, None if it may have any.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionConflictError: The row has another write id than the expected one.
            SessionNotFoundError: The multi-agent does not exist.
        """
        operation = f"updating multi-agent {multi_agent_id!r} of session {session_id!r}"
        row = {**_parameters(self._payloads, session_id, multi_agent_id, state, write_id, term), "expected": expected}
        result = retry_if_suppressed(operation, lambda: self._database.write(operation, self._update, row))
        allowed_at, exists, updated, _ = result.rows[0]
        check_lease(allowed_at, operation, session_id, self._database)
        if not exists:
            raise SessionNotFoundError(f"{operation}: the multi-agent does not exist")
        if not updated:
            raise SessionConflictError(
                f"{operation}: another writer has updated it since it was read; nothing was stored. Build a new "
                "session manager and multi-agent to continue from the stored session, or hold a lease while you write",
                session_id=session_id,
                agent_id=multi_agent_id,
            )


def _key(session_id: str, multi_agent_id: str) -> dict[str, object]:
    return {
        "session_id": check_id("session_id", session_id),
        "multi_agent_id": check_id("multi_agent_id", multi_agent_id),
    }


def _parameters(
    payloads: Payloads,
    session_id: str,
    multi_agent_id: str,
    state: dict[str, Any],
    write_id: UUID,
    term: UUID | None,
) -> dict[str, object]:
    key = _key(session_id, multi_agent_id)
    text, exact = payloads.encode(state, session_id, multi_agent_id, "multi_agent")
    return {
        **key,
        "state": text,
        "state_exact": exact,
        "write_id": write_id,
        "term": term,
    }
