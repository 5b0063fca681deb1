"""The table of sessions."""

from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from strands.types.session import Session, SessionType

from strands_psycopg.arguments import check_id
from strands_psycopg.database import NO_DEADLINE, Database, Result
from strands_psycopg.errors import SessionExistsError, SessionNotFoundError, owner_error
from strands_psycopg.payload import Payloads
from strands_psycopg.repository.annotations import UNCHANGED, Annotations, Metadata, Unchanged, check_owner
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.refusals import check_lease, retry_if_suppressed

_CREATE = """
    WITH t AS (
        INSERT INTO {sessions} AS s (
            session_id, session_type, owner, title, metadata, metadata_exact, write_id, created_at, updated_at
        )
        SELECT %(session_id)s::text, %(session_type)s::text, %(owner)s::text, %(title)s::text, %(metadata)s::jsonb,
            %(metadata_exact)s::text, %(write_id)s::uuid, pg_catalog.now(), pg_catalog.now()
        WHERE {may_write}
        ON CONFLICT (session_id) DO UPDATE SET write_id = EXCLUDED.write_id
        WHERE s.write_id = EXCLUDED.write_id
        RETURNING s.created_at, s.updated_at
    )
    SELECT {allowed_at}, {times_of_t},
        t.created_at IS NULL AND fence.holds AND NOT EXISTS (
            SELECT true FROM {sessions} WHERE session_id = %(session_id)s
        ) AS suppressed
    FROM {fence_of_insert} LEFT JOIN t ON true
"""  # times are NULL: another call created it first

_READ = """
    SELECT t.session_type, {times_of_t}, {annotations_of_t} FROM {sessions} AS t WHERE t.session_id = %(session_id)s
"""

_ANNOTATE = """
    WITH {fence}, t AS (
        UPDATE {sessions} SET
            owner = CASE WHEN %(sets_owner)s THEN %(owner)s::text ELSE owner END,
            title = CASE WHEN %(sets_title)s THEN %(title)s::text ELSE title END,
            metadata = CASE WHEN %(sets_metadata)s THEN %(metadata)s::jsonb ELSE metadata END,
            metadata_exact = CASE WHEN %(sets_metadata)s THEN %(metadata_exact)s::text ELSE metadata_exact END
        WHERE session_id = %(session_id)s AND {fence_holds}
            AND (%(expected_owner)s::text IS NULL OR owner = %(expected_owner)s::text)
        RETURNING session_id
    )
    SELECT {allowed_at}, t.session_id IS NOT NULL, s.session_id IS NOT NULL, s.owner,
        t.session_id IS NULL AND fence.holds AND s.session_id IS NOT NULL
            AND (%(expected_owner)s::text IS NULL OR s.owner = %(expected_owner)s::text) AS suppressed
    FROM fence LEFT JOIN t ON true LEFT JOIN {sessions} AS s ON s.session_id = %(session_id)s
"""

# Foreign keys cascade, but not with session_replication_role = replica. The lease is locked first, as writers do.
# The caller's own lease is kept, since its block has not ended.
_DELETE = """
    WITH {fence}, t AS (
        DELETE FROM {sessions}
        WHERE session_id = %(session_id)s AND {fence_holds} AND (%(owner)s::text IS NULL OR owner = %(owner)s::text)
            AND coalesce((SELECT true FROM {leases} WHERE session_id = %(session_id)s FOR UPDATE), true)
        RETURNING session_id
    ), a AS (
        DELETE FROM {agents} WHERE session_id = %(session_id)s AND EXISTS (SELECT true FROM t)
    ), m AS (
        DELETE FROM {messages} WHERE session_id = %(session_id)s AND EXISTS (SELECT true FROM t)
    ), v AS (
        DELETE FROM {message_variants} WHERE session_id = %(session_id)s AND EXISTS (SELECT true FROM t)
    ), c AS (
        DELETE FROM {checkpoints} WHERE session_id = %(session_id)s AND EXISTS (SELECT true FROM t)
    ), g AS (
        DELETE FROM {multi_agents} WHERE session_id = %(session_id)s AND EXISTS (SELECT true FROM t)
    ), s AS (
        DELETE FROM {session_storage} WHERE session_id = %(session_id)s AND EXISTS (SELECT true FROM t)
    ), k AS (
        DELETE FROM {session_chunks} WHERE session_id = %(session_id)s AND EXISTS (SELECT true FROM t)
    ), l AS (
        DELETE FROM {leases}
        WHERE session_id = %(session_id)s AND %(term)s::uuid IS NULL AND EXISTS (SELECT true FROM t)
    )
    SELECT {allowed_at}, t.session_id IS NOT NULL, {of_another_owner},
        t.session_id IS NULL AND fence.holds AND EXISTS (
            SELECT true FROM {sessions}
            WHERE session_id = %(session_id)s AND (%(owner)s::text IS NULL OR owner = %(owner)s::text)
        ) AS suppressed
    FROM fence LEFT JOIN t ON true
"""


class Sessions:
    """Reads and writes sessions in one database, schema and prefix."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._create = compose(database, _CREATE)
        self._read = compose(database, _READ)
        self._annotate = compose(database, _ANNOTATE)
        self._delete = compose(database, _DELETE)

    def create(self, session: Session, annotations: Annotations, *, write_id: UUID, term: UUID | None = None) -> None:
        """Store a new session and set its times.

        Args:
            session: The session.
            annotations: Its owner, title and metadata.
            write_id: The write id of this call.
            term: The term of the lease on the session, if this process holds one.

        Raises:
            SessionExistsError: Another call created the session.
            LeaseLostError: The lease of ``term`` is no longer held.
        """
        session_id = check_id("session_id", session.session_id)
        operation = f"creating session {session_id!r}"
        row = {
            "session_id": session_id,
            "session_type": SessionType(session.session_type).value,
            **annotations.parameters(self._payloads, session_id),
            "write_id": write_id,
            "term": term,
        }
        result = retry_if_suppressed(operation, lambda: self._database.write(operation, self._create, row))
        allowed_at, created_at, updated_at, _ = result.rows[0]
        check_lease(allowed_at, operation, session_id)
        if created_at is None:
            raise SessionExistsError(f"{operation}: the session already exists; read it instead")
        session.created_at, session.updated_at = created_at, updated_at or created_at

    def create_within(self, cursor: Cursor[TupleRow], row: dict[str, object], operation: str) -> None:
        """Store a new session as part of a transaction.

        Args:
            cursor: A cursor in the transaction.
            row: The columns but the times, and ``term``, as in ``create``.
            operation: What the transaction does, for error messages.

        Raises:
            SessionExistsError: Another call created the session.
            LeaseLostError: The lease of ``term`` is no longer held.
        """
        parameters = {**row, **NO_DEADLINE}

        def create() -> Result:
            return Result(cursor.execute(self._create, parameters).fetchall(), False)

        allowed_at, created_at, _, _ = retry_if_suppressed(operation, create).rows[0]
        check_lease(allowed_at, operation, str(row["session_id"]))
        if created_at is None:
            raise SessionExistsError(f"{operation}: session {row['session_id']!r} already exists; choose another id")

    def read(self, session_id: str, *, owner: str | None = None) -> Session | None:
        """Return a session, or None if it does not exist.

        Raises:
            SessionOwnerError: It does not belong to ``owner``, and that is not None.
        """
        key = {"session_id": check_id("session_id", session_id)}
        check_owner(owner)
        operation = f"reading session {session_id!r}"
        rows = self._database.fetch(operation, self._read, key).rows
        if not rows:
            return None
        session_type, created_at, updated_at, stored_owner, *columns = rows[0]
        if owner is not None and stored_owner != owner:
            raise owner_error(operation, session_id)
        annotations = Annotations.decode([stored_owner, *columns], self._payloads, session_id)
        return annotations.annotated(
            Session(session_id, SessionType(session_type), created_at, updated_at or created_at)
        )

    def annotate(
        self,
        session_id: str,
        *,
        owner: str | Unchanged | None,
        title: str | Unchanged | None,
        metadata: Metadata | Unchanged | None,
        expected_owner: str | None,
        term: UUID | None,
    ) -> None:
        """Set the owner, title or metadata of a session; None clears it.

        Raises:
            SessionNotFoundError: The session does not exist.
            SessionOwnerError: The session does not belong to ``expected_owner``, and that is not None.
            LeaseLostError: The lease of ``term`` is no longer held.
        """
        annotations = Annotations(
            None if isinstance(owner, Unchanged) else owner,
            None if isinstance(title, Unchanged) else title,
            None if isinstance(metadata, Unchanged) else metadata,
        )
        row = {
            "session_id": check_id("session_id", session_id),
            **annotations.parameters(self._payloads, session_id),
            "sets_owner": owner is not UNCHANGED,
            "sets_title": title is not UNCHANGED,
            "sets_metadata": metadata is not UNCHANGED,
            "expected_owner": check_owner(expected_owner),
            "term": term,
        }
        operation = f"annotating session {session_id!r}"
        result = retry_if_suppressed(operation, lambda: self._database.write(operation, self._annotate, row))
        allowed_at, updated, exists, stored_owner, _ = result.rows[0]
        # An earlier attempt may have set another owner.
        is_expected = stored_owner == expected_owner or (result.repeated and stored_owner == owner)
        if exists and expected_owner is not None and not is_expected:
            raise owner_error(operation, session_id)
        check_lease(allowed_at, operation, session_id, self._database)
        if not updated and not exists:
            raise SessionNotFoundError(f"{operation}: the session does not exist")

    def delete(self, session_id: str, *, owner: str | None = None, term: UUID | None = None) -> None:
        """Delete a session and everything in it.

        Raises:
            SessionNotFoundError: The session does not exist, and no earlier attempt of this call can have deleted it.
            SessionOwnerError: It does not belong to ``owner``, and that is not None.
            LeaseLostError: The lease of ``term`` is no longer held.
        """
        key = {"session_id": check_id("session_id", session_id), "owner": check_owner(owner), "term": term}
        operation = f"deleting session {session_id!r}"
        result = retry_if_suppressed(operation, lambda: self._database.write(operation, self._delete, key))
        allowed_at, deleted, of_another_owner, _ = result.rows[0]
        if not deleted and of_another_owner:
            raise owner_error(operation, session_id)
        check_lease(allowed_at, operation, session_id, self._database)
        if not deleted and not result.repeated:
            raise SessionNotFoundError(f"{operation}: the session does not exist")
