"""Refused writes: why a write stored nothing, and the errors that say so."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from strands_psycopg.database import NO_DEADLINE, Database, Result
from strands_psycopg.errors import SessionConflictError, SessionNotFoundError, lease_lost_error, suppressed_error
from strands_psycopg.repository.fragments import compose

_EXPLAIN = """
    SELECT {allowed_at}, a.write_id, coalesce({next_message_id}, 0)
    FROM {fence_of_insert} LEFT JOIN {agents} AS a ON a.session_id = %(session_id)s AND a.agent_id = %(agent_id)s
"""  # the write id is NULL: no such agent

_SESSION_EXISTS = "SELECT true FROM {sessions} WHERE session_id = %(session_id)s"

_UPDATED = "another writer has updated the agent since it was read"


class AgentWrites:
    """Runs the writes of every turn, to agents of one database, schema and prefix.

    Their statements do not select why they were refused, since nearly all succeed: that is read by a second statement.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._explain = compose(database, _EXPLAIN)

    def run(
        self, operation: str, statement: bytes, row: Mapping[str, object], message_id: int | None
    ) -> tuple[Any, ...]:
        """Run a write that returns one row, or none if it was refused.

        Args:
            operation: What it does, for error messages.
            statement: The statement (see ``Database.write``).
            row: Its parameters; ``expected`` is the write id that the agent's row must have, or None.
            message_id: The index of the message that it appends, or None.

        Returns:
            The row.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionConflictError: Another writer has stored the message with this index or updated the agent, or the
                index is not the next one.
            SessionNotFoundError: The agent does not exist.
            DatabaseError: There is no such reason: a trigger or rule has suppressed its rows.
        """
        # Another writer may commit between the write and its explanation, so one without a reason is repeated.
        for _ in range(2):
            rows = self._database.write(operation, statement, row).rows
            if rows:
                return rows[0]
            self._raise_reason(operation, row, message_id)
        raise suppressed_error(operation)

    def _raise_reason(self, operation: str, row: Mapping[str, Any], message_id: int | None) -> None:
        session_id, agent_id = row["session_id"], row["agent_id"]
        result = self._database.fetch(operation, self._explain, {**row, **NO_DEADLINE})
        allowed_at, write_id, next_index = result.rows[0]
        check_lease(allowed_at, operation, session_id, self._database)
        if write_id is None:
            raise SessionNotFoundError(f"{operation}: the agent does not exist")
        if message_id is not None and message_id > next_index:
            reason = f"the next index is {next_index}, because another writer was first"
        elif message_id is not None and message_id < next_index:
            reason = "a message with this index already exists, because another writer was first"
        elif row["expected"] is not None and write_id not in (row["expected"], row["write_id"]):
            reason = _UPDATED
        else:
            return
        raise conflict(operation, session_id, agent_id, message_id, reason)


def conflict(
    operation: str, session_id: str, agent_id: str, message_id: int | None = None, reason: str = _UPDATED
) -> SessionConflictError:
    """Return the error that says that another writer came first."""
    return SessionConflictError(
        f"{operation}: {reason}; nothing was stored. Build a new session manager and agent to continue from the stored "
        "session, or hold a lease while you write",
        session_id=session_id,
        agent_id=agent_id,
        message_id=message_id,
    )


def retry_if_suppressed(operation: str, run: Callable[[], Result]) -> Result:
    """Run a write whose statement selects why it was refused and, as its last column, ``suppressed``.

    That is true if nothing was stored and there is no reason for it. Another writer may have committed while the
    statement ran; then a second run sees what that one stored.

    Raises:
        DatabaseError: The second run stored nothing either.
    """
    for _ in range(2):
        result = run()
        if not result.rows[0][-1]:
            return result
    raise suppressed_error(operation)


def check_lease(allowed_at: Decimal | None, operation: str, session_id: str, database: Database | None = None) -> None:
    """Check the ``{allowed_at}`` that a statement returned.

    Args:
        allowed_at: What it returned.
        operation: What it does, for error messages.
        session_id: Its session.
        database: Where to look, if a lease was lost, whether it was deleted with its session; None if the statement
            creates the session.

    Raises:
        LeaseLostError: It is NULL: the writer's lease is no longer held.
        SessionNotFoundError: The same, since the session was deleted.
    """
    if allowed_at is None and database is not None:
        key = {"session_id": session_id}
        if not database.fetch(operation, compose(database, _SESSION_EXISTS), key).rows:
            raise SessionNotFoundError(f"{operation}: session {session_id!r} does not exist")
    if allowed_at is None:
        raise lease_lost_error(operation, session_id)
