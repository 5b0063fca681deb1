"""What is checked when a value is stored or deleted: which write it replaces, and the lease of the session."""

from typing import NamedTuple
from uuid import UUID

from psycopg.rows import TupleRow

from strands_psycopg.database import Database
from strands_psycopg.errors import StorageConflictError
from strands_psycopg.storage.scope import Scope
from strands_psycopg.storage.seen_writes import MISSING

# Whether the value s may be replaced: it is one that was seen, or it has expired and was seen as missing.
_UNCHANGED = """(
    %(expected)s::uuid[] IS NULL OR s.write_id = ANY(%(expected)s)
    OR %(missing)s::uuid = ANY(%(expected)s) AND s.expires_at <= {now}
)"""

# For a storage that guards against overwriting.
_GUARDED = {
    # Used in ON CONFLICT DO UPDATE, where Citus does not allow functions of the time.
    "replaceable": _UNCHANGED.replace("{now}", "EXCLUDED.updated_at"),
    "deletable": _UNCHANGED.replace("{now}", "pg_catalog.now()"),
    # Whether there is a value that may be replaced, or none is needed. Without the lock, another transaction could
    # delete the value before the INSERT, which would restore it.
    "present": """(
        %(expected)s::uuid[] IS NULL OR %(missing)s::uuid = ANY(%(expected)s) OR EXISTS (
            SELECT true FROM {values} AS s
            WHERE s.{scope} = %(scope)s AND s.key = %(key)s AND s.write_id = ANY(%(expected)s) FOR UPDATE
        )
    )""",
}

# For a storage of a session. Locking the lease until the end of the transaction prevents a takeover between this check
# and the write.
_LEASED = {
    "fenced": """(
        %(term)s::uuid IS NULL OR EXISTS (
            SELECT true FROM {leases} WHERE session_id = %(scope)s AND term = %(term)s FOR SHARE
        )
    )""",
}


class Change(NamedTuple):
    """A value to store or delete.

    Attributes:
        operation: What is being done, for errors and log lines.
        scope: Where the value is.
        key: Its key.
        expected: The write ids of the values that may be replaced; None if every value may be.
        term: The term of the lease on the session that must be held; None if none must be held.
    """

    operation: str
    scope: Scope
    key: str
    expected: list[UUID] | None
    term: UUID | None

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of the checks."""
        row = {"key": self.key, "expected": self.expected, "missing": MISSING, "term": self.term}
        return self.scope.parameters | row

    def is_expected(self, locked: list[TupleRow]) -> bool:
        """Return whether the stored value may be replaced.

        Args:
            locked: Its locked row: chunk ids, write id, and whether it has expired; empty if there is none.
        """
        if self.expected is None:
            return True
        if not locked:
            return MISSING in self.expected
        _, write_id, has_expired = locked[0]
        return write_id in self.expected or (has_expired and MISSING in self.expected)

    def conflict(self) -> StorageConflictError:
        """Return the error that says that another writer came first."""
        return StorageConflictError(
            f"{self.operation}: another writer has written or deleted the value since this storage last read or "
            "wrote it; nothing was stored. To continue from what is stored, build a new session manager and agent; "
            "hold a lease to keep other writers away",
            key=self.key,
        )


class WriteChecks:
    """The checks in the statements of one storage.

    Args:
        database: Where the tables are.
        scope: Where the values are.
        guarded: Whether the storage guards against overwriting.
    """

    def __init__(self, database: Database, scope: Scope, *, guarded: bool) -> None:
        self._database = database
        self._scope = scope
        self._checks = dict.fromkeys(_GUARDED.keys() | _LEASED.keys(), "true")
        self._checks |= (_GUARDED if guarded else {}) | (_LEASED if scope.is_session else {})

    def compose(self, template: str) -> bytes:
        """Compose a statement from a template that refers to checks and tables; a check that is not made is true."""
        for name, check in self._checks.items():
            template = template.replace("{" + name + "}", check)
        return self._scope.compose(self._database, template)
