"""Transactions that store or delete values and their chunks."""

from collections.abc import Callable, Sequence
from typing import TypeVar
from uuid import UUID

from psycopg.rows import TupleRow

from strands_psycopg.database import Database, PipelinedTransaction
from strands_psycopg.errors import SessionNotFoundError, lease_lost_error, owner_error
from strands_psycopg.storage.scope import Scope

_T = TypeVar("_T")

Row = dict[str, object]
Statement = tuple[bytes, Row]

# A client that is suspended, or whose machine is gone, would keep its locks for hours.
_CONFIGURE = b"""
    SELECT pg_catalog.set_config('idle_in_transaction_session_timeout', %(milliseconds)s, true),
        pg_catalog.set_config('tcp_keepalives_idle', '30', true),
        pg_catalog.set_config('tcp_keepalives_interval', '10', true),
        pg_catalog.set_config('tcp_keepalives_count', '3', true)
"""

# The largest that PostgreSQL accepts, in milliseconds.
_MAX_TIMEOUT = 2**31 - 1

_LOCK_LEASE = "SELECT true FROM {leases} WHERE session_id = %(scope)s AND term = %(term)s FOR SHARE"

_FIND_SESSION = "SELECT owner FROM {sessions} WHERE session_id = %(scope)s"


class Transactions:
    """Runs transactions on the values of one storage."""

    def __init__(self, database: Database, scope: Scope) -> None:
        self._database = database
        self._scope = scope
        self._lock_lease = database.statement(_LOCK_LEASE)
        self._find_session = database.statement(_FIND_SESSION)

    def run(
        self,
        operation: str,
        first: Sequence[Statement],
        work: Callable[[PipelinedTransaction, list[list[TupleRow]]], _T],
        *,
        term: UUID | None = None,
    ) -> _T:
        """Run a transaction.

        Args:
            operation: What it does, for errors and log lines.
            first: Its first statements.
            work: Runs the others, given the rows of each of the first ones.
            term: The term of the lease that must be held, which is locked first; None if none must be held.

        Raises:
            LeaseLostError: The lease is no longer held.
            SessionNotFoundError: The session has been deleted, and its lease with it.
            SessionOwnerError: The session belongs to another owner.
            StrandsPsycopgError: As ``Database.transact_in_pipeline``.
        """
        milliseconds = str(int(min(self._database.response_timeout * 1000, _MAX_TIMEOUT)))

        def run(transaction: PipelinedTransaction) -> _T:
            transaction.send(_CONFIGURE, {"milliseconds": milliseconds})
            lease = None
            if term is not None:
                lease = transaction.send(self._lock_lease, self._scope.parameters | {"term": term})
            results = [transaction.send(*statement) for statement in first]
            transaction.receive()
            if lease is not None and not lease.fetchall():
                self.check_session(operation, transaction)
                raise lease_lost_error(operation, self._scope.id)
            return work(transaction, [result.fetchall() for result in results])

        return self._database.transact_in_pipeline(operation, run)

    def check_session(self, operation: str, transaction: PipelinedTransaction) -> None:
        """Check that the session, if the values belong to one, still exists and belongs to the scope's owner, if any.

        Raises:
            SessionNotFoundError: It does not exist.
            SessionOwnerError: It belongs to another owner.
        """
        if not self._scope.is_session:
            return
        rows = transaction.cursor.execute(self._find_session, self._scope.parameters).fetchall()
        if not rows:
            raise SessionNotFoundError(f"{operation}: the session does not exist")
        if self._scope.owner not in (None, rows[0][0]):
            raise owner_error(operation, self._scope.id)
