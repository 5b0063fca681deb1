"""Rows of sessions."""

from uuid import UUID

from strands.types.session import Session, SessionType

from strands_psycopg.database import Database
from strands_psycopg.errors import SessionExistsError, SessionNotFoundError
from strands_psycopg.repository.fragments import times
from strands_psycopg.repository.identifiers import check_id

_CREATE = (
    """
    WITH t AS (
        INSERT INTO {sessions} AS s (session_id, session_type, write_id, created_at, updated_at)
        VALUES (%(session_id)s, %(session_type)s, %(write_id)s, now(), now())
        ON CONFLICT (session_id) DO UPDATE SET write_id = EXCLUDED.write_id
        WHERE s.write_id = EXCLUDED.write_id
        RETURNING s.created_at, s.updated_at
    )
    SELECT"""
    + times("t")
    + "FROM t"
)

_READ = "SELECT t.session_type," + times("t") + "FROM {sessions} AS t WHERE t.session_id = %(session_id)s"

_DELETE = "DELETE FROM {sessions} WHERE session_id = %(session_id)s RETURNING session_id"


class Sessions:
    """The sessions of one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._create = database.statement(_CREATE)
        self._read = database.statement(_READ)
        self._delete = database.statement(_DELETE)

    def create(self, session: Session, *, write_id: UUID) -> None:
        """Store a new session and set its times.

        Raises:
            SessionExistsError: Another write created it.
        """
        session_id = check_id("session_id", session.session_id)
        doing = f"creating session {session_id!r}"
        row = {
            "session_id": session_id,
            "session_type": SessionType(session.session_type).value,
            "write_id": write_id,
        }
        rows = self._database.fetch(doing, self._create, row).rows
        if not rows:
            raise SessionExistsError(f"{doing}: the session already exists; read it instead")
        session.created_at, session.updated_at = rows[0][0], rows[0][1] or rows[0][0]

    def read(self, session_id: str) -> Session | None:
        """Give a session, or None."""
        key = {"session_id": check_id("session_id", session_id)}
        rows = self._database.fetch(f"reading session {session_id!r}", self._read, key).rows
        if not rows:
            return None
        session_type, created_at, updated_at = rows[0]
        return Session(session_id, SessionType(session_type), created_at, updated_at or created_at)

    def delete(self, session_id: str) -> None:
        """Delete a session and all that is in it.

        Raises:
            SessionNotFoundError: There is none; unless this call was repeated, and so may have deleted it.
        """
        key = {"session_id": check_id("session_id", session_id)}
        doing = f"deleting session {session_id!r}"
        answer = self._database.fetch(doing, self._delete, key)
        if not answer.rows and not answer.repeated:
            raise SessionNotFoundError(f"{doing}: the session does not exist")
