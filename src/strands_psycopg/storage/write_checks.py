"""What is checked when a value is stored or deleted: which write it replaces, and the lease of the session."""

from typing import NamedTuple
from uuid import UUID

from psycopg.rows import TupleRow

from strands_psycopg.database import Database
from strands_psycopg.errors import LeaseLostError, StorageConflictError
from strands_psycopg.storage.seen_writes import MISSING

# For a storage that guards against overwriting.
_GUARDED = {
    # Whether the value s may be replaced.
    "unchanged": "(%(expected)s::uuid[] IS NULL OR s.write_id = ANY(%(expected)s))",
    # Whether there is a value that may be replaced, or need not be one. Without the lock, another transaction could
    # delete the value before the INSERT, which would restore it.
    "present": """(
        %(expected)s::uuid[] IS NULL OR %(missing)s::uuid = ANY(%(expected)s) OR EXISTS (
            SELECT true FROM {storage} AS s WHERE s.key = %(key)s AND s.write_id = ANY(%(expected)s) FOR UPDATE
        )
    )""",
}

# For a storage of a session. Locking the lease until the end of the transaction prevents a takeover between this check
# and the write.
_LEASED = {
    "fenced": """(
        %(term)s::uuid IS NULL OR EXISTS (
            SELECT true FROM {leases} WHERE session_id = %(session_id)s AND term = %(term)s FOR SHARE
        )
    )""",
}

_LOCK_LEASE = "SELECT true FROM {leases} WHERE session_id = %(session_id)s AND term = %(term)s FOR SHARE"


class Change(NamedTuple):
    """A value to store or delete.

    Attributes:
        operation: What is being done, for errors and log lines.
        key: The full key.
        expected: The write ids of the values that may be replaced; None if every value may be.
        session_id: The session whose lease must be held.
        term: Of that lease; None if no lease must be held.
    """

    operation: str
    key: str
    expected: list[UUID] | None
    session_id: str | None
    term: UUID | None

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of the checks."""
        row: dict[str, object] = {"key": self.key, "expected": self.expected, "missing": MISSING}
        return {**row, "session_id": self.session_id, "term": self.term}

    def check_unchanged(self, locked: list[TupleRow]) -> None:
        """Check the stored value: ``locked`` is its locked row, of which the second column is the write id.

        Raises:
            StorageConflictError: It may not be replaced.
        """
        if self.expected is not None and (locked[0][1] if locked else MISSING) not in self.expected:
            raise StorageConflictError(
                f"{self.operation}: another writer has written or deleted the value since this storage last read or "
                "wrote it; nothing was stored. To continue from what is stored, build a new session manager and agent; "
                "hold a lease to keep other writers away",
                key=self.key,
            )

    def check_lease(self, locked: list[TupleRow]) -> None:
        """Check the lease: ``locked`` is its locked row.

        Raises:
            LeaseLostError: The lease is no longer held.
        """
        if self.term is not None and self.session_id is not None and not locked:
            raise LeaseLostError(
                f"{self.operation}: another holder has taken over session {self.session_id!r}, or its lease was "
                "deleted; nothing was stored. Stop writing, and take a new lease to continue from what is stored",
                session_id=self.session_id,
            )


class WriteChecks:
    """The checks in the statements of one storage.

    Args:
        database: Where the tables are.
        guarded: Whether the storage guards against overwriting.
        leased: Whether it belongs to a session.

    Attributes:
        lock_lease: The statement that locks the lease until the transaction ends.
    """

    def __init__(self, database: Database, *, guarded: bool, leased: bool) -> None:
        self._database = database
        self._checks = dict.fromkeys(_GUARDED.keys() | _LEASED.keys(), "true")
        self._checks |= (_GUARDED if guarded else {}) | (_LEASED if leased else {})
        self.lock_lease = database.statement(_LOCK_LEASE)

    def compose(self, template: str) -> bytes:
        """Compose a statement from a template that refers to checks and tables; a check that is not made is true."""
        for name, check in self._checks.items():
            template = template.replace("{" + name + "}", check)
        return self._database.statement(template)
