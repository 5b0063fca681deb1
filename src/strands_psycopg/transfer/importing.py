"""Import of sessions, each in one transaction, so that it is stored completely or not at all."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from uuid import UUID, uuid4

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import NO_DEADLINE, Result
from strands_psycopg.errors import (
    PayloadCodecError,
    SessionExistsError,
    SessionNotFoundError,
    StrandsPsycopgError,
    TransferError,
    suppressed_error,
)
from strands_psycopg.payload import Payloads
from strands_psycopg.repository import PostgresSessionRepository, session_tables
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.refusals import check_lease, retry_if_suppressed
from strands_psycopg.storage.session_values import SessionValue, SessionValues
from strands_psycopg.transfer.result import IncompleteTransferError, TransferResult
from strands_psycopg.transfer.rows import (
    AgentRow,
    CheckpointRow,
    MessageRow,
    MultiAgentRow,
    PartRow,
    Row,
    SessionRow,
    ValueRow,
    VariantRow,
    agent_row,
    encode_row,
    multi_agent_row,
    session_row,
)
from strands_psycopg.transfer.sources import ImportIssues, Source, SourceSession
from strands_psycopg.transfer.stored_sessions import StoredSession, StoredSessions
from strands_psycopg.watchdog import watchdog

_INSERT_SESSION = """
    WITH t AS (
        INSERT INTO {sessions} (
            session_id, session_type, owner, title, metadata, metadata_exact, write_id, created_at, updated_at
        )
        SELECT %(session_id)s::text, %(session_type)s::text, %(owner)s::text, %(title)s::text, %(metadata)s::jsonb,
            %(metadata_exact)s::text, %(write_id)s::uuid, %(created_at)s::timestamptz, %(updated_at)s::timestamptz
        WHERE {may_write}
        ON CONFLICT (session_id) DO NOTHING
        RETURNING session_id
    )
    SELECT {allowed_at}, t.session_id IS NOT NULL,
        t.session_id IS NULL AND fence.holds AND NOT EXISTS (
            SELECT true FROM {sessions} WHERE session_id = %(session_id)s
        ) AS suppressed
    FROM {fence_of_insert} LEFT JOIN t ON true
"""

_SELECT_WRITE_ID = "SELECT write_id::text FROM {sessions} WHERE session_id = %(session_id)s"

# For each kind of row, in an order in which foreign keys hold. Fields of rows are columns, in the same order.
_COPY = {
    AgentRow: """
        COPY {agents} (
            session_id, write_id, agent_id, state, state_exact, conversation_manager_state,
            conversation_manager_state_exact, _internal_state, _internal_state_exact, memory_window, created_at,
            updated_at
        ) FROM STDIN
    """,
    MessageRow: """
        COPY {messages} (
            session_id, write_id, agent_id, message_id, message, message_exact, redact_message, redact_message_exact,
            created_at, updated_at
        ) FROM STDIN
    """,
    VariantRow: """
        COPY {message_variants} (
            session_id, agent_id, variant_id, message_id, message, message_exact, created_at
        ) FROM STDIN
    """,
    CheckpointRow: """
        COPY {checkpoints} (
            session_id, write_id, agent_id, snapshot_id, message_count, memory_window, variant_ids, data, data_exact,
            created_at
        ) FROM STDIN
    """,
    MultiAgentRow: """
        COPY {multi_agents} (
            session_id, write_id, multi_agent_id, state, state_exact, created_at, updated_at
        ) FROM STDIN
    """,
}

# A batch ends after this many rows, or about this many characters of JSON, whichever comes first.
_MAX_BATCH_ROWS = 1_000
_MAX_BATCH_CHARACTERS = 4 * 2**20

# If the server has not accepted a batch after this many seconds, the connection counts as lost. The whole transaction
# has no limit, since it takes as long as reading the source does.
_BATCH_TIMEOUT = 120.0

_MAX_NAMED_FAILURES = 3


def import_sessions(
    repository: PostgresSessionRepository,
    source: Source,
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> TransferResult:
    """Store all sessions of a source, with their original times.

    Each session is stored in its own transaction. After an interruption, only complete sessions are stored, and the
    import can be run again: it counts sessions that already exist with the same content and does not change them.
    Agents must not write to the source during the import. Gaps that interrupted writers left in message indexes are
    closed. The repository's ``payload_codec`` encodes documents, unless they were exported as they are stored
    (``export_session`` with ``raw=True``).

    Args:
        repository: Where to store the sessions.
        source: Where to read them.
        skip_bad: Skip what cannot be read, and list it in the result, instead of failing for its session.
        progress: Called with the number of messages stored since the previous call.

    Raises:
        IncompleteTransferError: Some sessions were not stored, because a session of that id exists with other content
            (``SessionExistsError``), because something in them cannot be read (``BadFileError``), or because the
            ``payload_codec`` failed (``PayloadCodecError``). All others are stored.
        TransferError: The source has no sessions, or cannot be read any further. Sessions before that are stored.
    """
    # Errors about missing tables come before those about the source.
    repository.list_sessions(limit=1)
    importer = _Importer(repository, skip_bad=skip_bad, progress=progress)
    result = TransferResult()
    failures: dict[str, StrandsPsycopgError] = {}
    with closing(source.sessions()) as sessions:
        for session in sessions:
            try:
                result += importer.store(session)
            except (TransferError, SessionExistsError, PayloadCodecError) as error:
                failures[session.session_id] = error
    if failures:
        number = f"{len(failures)} session{' was' if len(failures) == 1 else 's were'}"
        named = "; ".join(str(error) for error in list(failures.values())[:_MAX_NAMED_FAILURES])
        further = f"; and {len(failures) - _MAX_NAMED_FAILURES} more" if len(failures) > _MAX_NAMED_FAILURES else ""
        raise IncompleteTransferError(f"{number} not imported: {named}{further}", result=result, failures=failures)
    return result


def import_one(repository: PostgresSessionRepository, session: SourceSession) -> TransferResult:
    """Store one session as ``import_sessions`` does, and raise its own error if that fails."""
    return _Importer(repository, skip_bad=False, progress=None).store(session)


class _Importer:
    """Stores sessions in a repository."""

    def __init__(
        self, repository: PostgresSessionRepository, *, skip_bad: bool, progress: Callable[[int], None] | None
    ) -> None:
        self._repository = repository
        self._tables = session_tables(repository)
        self._database = self._tables.database
        self._skip_bad = skip_bad
        self._progress = progress
        self._insert_session = compose(self._database, _INSERT_SESSION)
        self._select_write_id = compose(self._database, _SELECT_WRITE_ID)
        self._values = SessionValues(self._database)
        self._copy = {kind: compose(self._database, statement) for kind, statement in _COPY.items()}

    def store(self, session: SourceSession) -> TransferResult:
        """Store a session, unless it already exists with the same content.

        Raises:
            SessionExistsError: A session of this id exists with other content.
            TransferError: The session cannot be read.
            PayloadCodecError: The payload codec failed.
        """
        write_id = uuid4()
        payloads = Payloads() if session.raw else self._tables.payloads
        operation = f"importing session {session.session_id!r}"
        while True:
            result = self._database.transact(
                operation,
                lambda cursor: self._write(cursor, operation, session, payloads, write_id),
                response_timeout=float("inf"),
            )
            if result is not None:
                return result
            try:
                stored = StoredSessions(self._repository, raw=session.raw).read(session.session_id)
                break
            except SessionNotFoundError:
                # It has just been deleted, so this one can be stored.
                continue
        issues = ImportIssues(skip_bad=self._skip_bad)
        if not _is_same(stored, session.rows(issues)):
            raise SessionExistsError(
                f"{operation}: a session of this id already exists with other content; to import this one, delete that "
                "first, with 'strands-psycopg delete' or delete_session()"
            )
        return TransferResult(unchanged=1, skipped=tuple(issues.skipped))

    def _write(
        self,
        cursor: Cursor[TupleRow],
        operation: str,
        session: SourceSession,
        payloads: Payloads,
        write_id: UUID,
    ) -> TransferResult | None:
        """Write a session and return the counts, or None if it exists."""
        issues = ImportIssues(skip_bad=self._skip_bad)
        rows = session.rows(issues)
        first = next(rows, None)
        if not isinstance(first, SessionRow):
            return TransferResult(skipped=tuple(issues.skipped))
        batches = _Batches(rows)
        if self._insert(cursor, operation, encode_row(first, payloads, first.session_id), write_id):
            for plain in batches:
                batch = {
                    kind: [encode_row(row, payloads, first.session_id) for row in same] for kind, same in plain.items()
                }
                with watchdog.watch(cursor.connection, _BATCH_TIMEOUT):
                    for kind, statement in self._copy.items():
                        if not _copy(cursor, statement, first.session_id, write_id, batch.get(kind, ())):
                            raise suppressed_error(operation)
                    for value in batch.get(ValueRow, ()):
                        if not self._values.insert(cursor, first.session_id, SessionValue(*value), write_id):
                            raise suppressed_error(operation)
                if self._progress is not None:
                    self._progress(len(batch.get(MessageRow, ())))
        elif cursor.execute(self._select_write_id, {"session_id": first.session_id}).fetchall() != [(str(write_id),)]:
            return None
        else:
            # An earlier attempt was committed, but the server's response was lost. Reading the rows counts them.
            for _ in batches:
                pass
        return TransferResult(
            sessions=1,
            agents=batches.counts[AgentRow],
            messages=batches.counts[MessageRow],
            message_variants=batches.counts[VariantRow],
            checkpoints=batches.counts[CheckpointRow],
            multi_agents=batches.counts[MultiAgentRow],
            values=batches.counts[ValueRow],
            gaps_closed=issues.gaps_closed,
            skipped=tuple(issues.skipped),
        )

    def _insert(self, cursor: Cursor[TupleRow], operation: str, row: Row, write_id: UUID) -> bool:
        """Insert a session's own row and return True, or return False if it exists."""
        assert isinstance(row, SessionRow)
        term = self._tables.leases.term(row.session_id)
        parameters = {**row._asdict(), "write_id": write_id, "term": term, **NO_DEADLINE}

        def insert() -> Result:
            return Result(cursor.execute(self._insert_session, parameters).fetchall(), False)

        allowed_at, created, _ = retry_if_suppressed(operation, insert).rows[0]
        check_lease(allowed_at, operation, row.session_id)
        return bool(created)


class _Batches:
    """Groups rows into batches, each of which has the rows of each kind in order.

    Attributes:
        counts: Number of rows of each kind in the batches so far.
    """

    def __init__(self, rows: Iterator[Row]) -> None:
        self.counts: Counter[type[Row]] = Counter()
        self._rows = rows

    def __iter__(self) -> Iterator[dict[type[Row], list[Row]]]:
        batch: dict[type[Row], list[Row]] = {}
        size = count = 0
        for row in self._rows:
            batch.setdefault(type(row), []).append(row)
            self.counts[type(row)] += 1
            count += 1
            size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if count >= _MAX_BATCH_ROWS or size >= _MAX_BATCH_CHARACTERS:
                yield batch
                batch = {}
                size = count = 0
        yield batch


def _copy(cursor: Cursor[TupleRow], statement: bytes, session_id: str, write_id: UUID, rows: Sequence[Row]) -> bool:
    """Store rows; return whether all of them are."""
    if not rows:
        return True
    with cursor.copy(statement) as copy:
        for row in rows:
            # A variant has no write id.
            copy.write_row((session_id, *row) if isinstance(row, VariantRow) else (session_id, write_id, *row))
    return cursor.rowcount == len(rows)


def _is_same_value(row: ValueRow, other: ValueRow) -> bool:
    # The search vector depends on the payload codec.
    return row._replace(search_vector=None) == other._replace(search_vector=None)


def _is_same(stored: StoredSession, rows: Iterator[Row]) -> bool:
    """Return whether a stored session equals the rows, times included."""
    parts: Iterator[PartRow] = iter(())
    missing = {("agent", agent_id) for agent_id in stored.agents}
    missing |= {("multi-agent", multi_agent_id) for multi_agent_id in stored.multi_agents}
    missing |= {("value", key) for key in stored.value_keys}
    for row in rows:
        match row:
            case SessionRow():
                same = row == session_row(stored.session, raw=stored.raw)
            case AgentRow():
                same = next(parts, None) is None and row.agent_id in stored.agents
                if same:
                    agent = stored.agents[row.agent_id]
                    same = row == agent_row(agent.agent, agent.window, raw=stored.raw)
                    missing.discard(("agent", row.agent_id))
                    parts = stored.parts(row.agent_id)
            case MultiAgentRow():
                same = row.multi_agent_id in stored.multi_agents
                if same:
                    same = row == multi_agent_row(*stored.multi_agents[row.multi_agent_id], raw=stored.raw)
                    missing.discard(("multi-agent", row.multi_agent_id))
            case ValueRow():
                same = row.key in stored.value_keys and _is_same_value(row, stored.value(row.key))
                missing.discard(("value", row.key))
            case _:
                same = row == next(parts, None)
        if not same:
            return False
    return next(parts, None) is None and not missing
