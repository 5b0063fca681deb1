"""Copying the rows of a session to a fork of it, inside the database.

With a payload codec, documents are decoded as those of the session and encoded as those of the fork.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.batches import batches
from strands_psycopg.database import Database
from strands_psycopg.errors import suppressed_error
from strands_psycopg.payload import PayloadKind, Payloads
from strands_psycopg.repository.fragments import compose


class _Table(NamedTuple):
    """The rows of a table that are copied.

    Attributes:
        copy: Copies them, from ``{rows}`` with the documents of ``{d}``.
        alias: The table's alias in ``copy``.
        rows: The rows, with their own documents.
        encoded: Some of the rows, and ``r``, which has their documents as encoded for the fork. Each row is looked up
            by its key, since the planner could otherwise choose to read the whole session for each batch.
        read: Selects the documents in the source: agent or multi-agent, index or None, and the documents' columns.
        documents: The kind of each document and the parameter of its column in ``encoded``.
    """

    copy: str
    alias: str
    rows: str
    encoded: str
    read: str
    documents: Sequence[tuple[PayloadKind, str]]


_IN_FORK = """
    c.session_id = %(source_id)s AND c.agent_id = ANY(%(agent_ids)s) AND c.message_count <= %(message_count)s
        AND (%(snapshot_id)s::uuid IS NULL OR c.snapshot_id <= %(snapshot_id)s::uuid)
"""

_AGENTS_IN_FORK = "a.session_id = %(source_id)s AND a.agent_id = ANY(%(agent_ids)s)"

_MESSAGES_IN_FORK = """
    m.session_id = %(source_id)s AND m.agent_id = ANY(%(agent_ids)s) AND m.message_id < %(message_count)s
"""

# If the conversation is truncated, only the variants that its checkpoints refer to.
_VARIANTS_IN_FORK = """
    v.session_id = %(source_id)s AND v.agent_id = ANY(%(agent_ids)s) AND (
        %(is_whole)s OR EXISTS (
            SELECT true FROM {checkpoints} AS c
            WHERE v.agent_id = c.agent_id AND v.variant_id = ANY(c.variant_ids) AND {in_fork}
        )
    )
""".replace("{in_fork}", _IN_FORK)

_MULTI_AGENTS_IN_FORK = "a.session_id = %(source_id)s"

_AGENTS = _Table(
    copy="""
    INSERT INTO {agents} (
        session_id, agent_id, state, state_exact, conversation_manager_state, conversation_manager_state_exact,
        _internal_state, _internal_state_exact, memory_window, write_id, created_at, updated_at
    )
    SELECT %(session_id)s::text, a.agent_id, {d}.state, {d}.state_exact, {d}.conversation_manager_state,
        {d}.conversation_manager_state_exact, {d}._internal_state, {d}._internal_state_exact, a.memory_window,
        %(write_id)s::uuid, pg_catalog.now(), pg_catalog.now()
    FROM {rows} WHERE """
    + _AGENTS_IN_FORK,
    alias="a",
    rows="{agents} AS a",
    encoded="""unnest(
        %(row_agents)s::text[], %(state)s::jsonb[], %(state_exact)s::text[], %(conversation_manager_state)s::jsonb[],
        %(conversation_manager_state_exact)s::text[], %(internal_state)s::jsonb[], %(internal_state_exact)s::text[]
    ) AS r (
        agent_id, state, state_exact, conversation_manager_state, conversation_manager_state_exact, _internal_state,
        _internal_state_exact
    ) CROSS JOIN LATERAL (
        SELECT a.session_id, a.agent_id, a.memory_window FROM {agents} AS a
        WHERE a.session_id = %(source_id)s AND a.agent_id = r.agent_id LIMIT 1
    ) AS a""",
    read="""
    SELECT a.agent_id, NULL, a.state::text, a.state_exact, a.conversation_manager_state::text,
        a.conversation_manager_state_exact, a._internal_state::text, a._internal_state_exact
    FROM {agents} AS a WHERE """
    + _AGENTS_IN_FORK,
    documents=(
        ("state", "state"),
        ("conversation_manager_state", "conversation_manager_state"),
        ("internal_state", "internal_state"),
    ),
)

_MESSAGES = _Table(
    copy="""
    INSERT INTO {messages} (
        session_id, agent_id, message_id, message, message_exact, redact_message, redact_message_exact, write_id,
        created_at, updated_at
    )
    SELECT %(session_id)s::text, m.agent_id, m.message_id, {d}.message, {d}.message_exact, {d}.redact_message,
        {d}.redact_message_exact, %(write_id)s::uuid, m.created_at, m.updated_at
    FROM {rows} WHERE """
    + _MESSAGES_IN_FORK,
    alias="m",
    rows="{messages} AS m",
    encoded="""unnest(
        %(row_agents)s::text[], %(indexes)s::bigint[], %(message)s::jsonb[], %(message_exact)s::text[],
        %(redact_message)s::jsonb[], %(redact_message_exact)s::text[]
    ) AS r (agent_id, message_id, message, message_exact, redact_message, redact_message_exact)
    CROSS JOIN LATERAL (
        SELECT m.session_id, m.agent_id, m.message_id, m.created_at, m.updated_at FROM {messages} AS m
        WHERE m.session_id = %(source_id)s AND m.agent_id = r.agent_id AND m.message_id = r.message_id LIMIT 1
    ) AS m""",
    read="""
    SELECT m.agent_id, m.message_id, m.message::text, m.message_exact, m.redact_message::text, m.redact_message_exact
    FROM {messages} AS m WHERE """
    + _MESSAGES_IN_FORK,
    documents=(("message", "message"), ("redaction", "redact_message")),
)

_VARIANTS = _Table(
    copy="""
    INSERT INTO {message_variants} (
        session_id, agent_id, variant_id, message_id, message, message_exact, created_at
    )
    SELECT %(session_id)s::text, v.agent_id, v.variant_id, v.message_id, {d}.message, {d}.message_exact, v.created_at
    FROM {rows} WHERE """
    + _VARIANTS_IN_FORK,
    alias="v",
    rows="{message_variants} AS v",
    encoded="""unnest(
        %(row_agents)s::text[], %(indexes)s::bigint[], %(message)s::jsonb[], %(message_exact)s::text[]
    ) AS r (agent_id, variant_id, message, message_exact)
    CROSS JOIN LATERAL (
        SELECT v.session_id, v.agent_id, v.variant_id, v.message_id, v.created_at FROM {message_variants} AS v
        WHERE v.session_id = %(source_id)s AND v.agent_id = r.agent_id AND v.variant_id = r.variant_id LIMIT 1
    ) AS v""",
    read="""
    SELECT v.agent_id, v.variant_id, v.message::text, v.message_exact FROM {message_variants} AS v WHERE """
    + _VARIANTS_IN_FORK,
    documents=(("variant", "message"),),
)

_CHECKPOINTS = _Table(
    copy="""
    INSERT INTO {checkpoints} (
        session_id, agent_id, snapshot_id, message_count, memory_window, variant_ids, data, data_exact, write_id,
        created_at
    )
    SELECT %(session_id)s::text, c.agent_id, c.snapshot_id, c.message_count, c.memory_window, c.variant_ids, {d}.data,
        {d}.data_exact, %(write_id)s::uuid, c.created_at
    FROM {rows} WHERE"""
    + _IN_FORK,
    alias="c",
    rows="{checkpoints} AS c",
    encoded="""unnest(
        %(row_agents)s::text[], %(indexes)s::uuid[], %(data)s::jsonb[], %(data_exact)s::text[]
    ) AS r (agent_id, snapshot_id, data, data_exact)
    CROSS JOIN LATERAL (
        SELECT c.session_id, c.agent_id, c.snapshot_id, c.message_count, c.memory_window, c.variant_ids, c.created_at
        FROM {checkpoints} AS c
        WHERE c.session_id = %(source_id)s AND c.agent_id = r.agent_id AND c.snapshot_id = r.snapshot_id LIMIT 1
    ) AS c""",
    read="""
    SELECT c.agent_id, c.snapshot_id::text, c.data::text, c.data_exact FROM {checkpoints} AS c WHERE"""
    + _IN_FORK,
    documents=(("checkpoint", "data"),),
)

_MULTI_AGENTS = _Table(
    copy="""
    INSERT INTO {multi_agents} (session_id, multi_agent_id, state, state_exact, write_id, created_at, updated_at)
    SELECT %(session_id)s::text, a.multi_agent_id, {d}.state, {d}.state_exact, %(write_id)s::uuid, pg_catalog.now(),
        pg_catalog.now()
    FROM {rows} WHERE """
    + _MULTI_AGENTS_IN_FORK,
    alias="a",
    rows="{multi_agents} AS a",
    encoded="""unnest(
        %(row_agents)s::text[], %(state)s::jsonb[], %(state_exact)s::text[]
    ) AS r (multi_agent_id, state, state_exact)
    CROSS JOIN LATERAL (
        SELECT a.session_id, a.multi_agent_id FROM {multi_agents} AS a
        WHERE a.session_id = %(source_id)s AND a.multi_agent_id = r.multi_agent_id LIMIT 1
    ) AS a""",
    read="""
    SELECT a.multi_agent_id, NULL, a.state::text, a.state_exact FROM {multi_agents} AS a WHERE """
    + _MULTI_AGENTS_IN_FORK,
    documents=(("multi_agent", "state"),),
)

# How many rows are copied.
_COUNT = "(SELECT pg_catalog.count(*) FROM ({read}) AS copied)"

# A transaction has one such cursor at a time.
_OPEN = "DECLARE forked NO SCROLL CURSOR FOR"
_FETCH = b"FETCH FORWARD 100 FROM forked"
_CLOSE = b"CLOSE forked"

# About how many characters of JSON are sent at once; the protocol limits a message to 1 GiB.
_MAX_BATCH_CHARACTERS = 2**22


# In an order in which foreign keys hold.
AGENT_TABLES = (_AGENTS, _MESSAGES, _VARIANTS, _CHECKPOINTS)
MULTI_AGENT_TABLES = (_MULTI_AGENTS,)


class ForkCopy:
    """Copies rows of some tables within the transaction that forks a session."""

    def __init__(self, database: Database, payloads: Payloads, tables: Sequence[_Table]) -> None:
        self._tables = [_TableCopy(database, payloads, table) for table in tables]
        counts = (_COUNT.replace("{read}", table.read) for table in tables)
        self._count = compose(database, "SELECT " + ", ".join(counts))

    def run(self, cursor: Cursor[TupleRow], fork: dict[str, object], operation: str) -> None:
        """Copy the rows of the fork's agents, or of all multi-agents.

        Args:
            cursor: A cursor in the transaction.
            fork: The parameters ``source_id``, ``session_id``, ``agent_ids``, ``message_count``, ``snapshot_id``,
                ``is_whole`` and ``write_id``.
            operation: What the transaction does, for error messages.

        Raises:
            PayloadCodecError: The payload codec failed.
            DatabaseError: The database did not store all of them.
        """
        [counts] = cursor.execute(self._count, fork).fetchall()
        for table, count in zip(self._tables, counts, strict=True):
            if table.run(cursor, fork) != count:
                raise suppressed_error(operation)


class _TableCopy:
    """Copies the rows of one table."""

    def __init__(self, database: Database, payloads: Payloads, table: _Table) -> None:
        self._payloads = payloads
        self._documents = table.documents
        documents, rows = ("r", table.encoded) if payloads.has_codec else (table.alias, table.rows)
        self._copy = compose(database, table.copy.replace("{d}", documents).replace("{rows}", rows))
        self._open = compose(database, _OPEN + table.read)

    def run(self, cursor: Cursor[TupleRow], fork: dict[str, object]) -> int:
        """Copy the rows and return how many the database has stored."""
        if not self._payloads.has_codec:
            return cursor.execute(self._copy, fork).rowcount
        count = 0
        cursor.execute(self._open, fork, prepare=False)
        while rows := cursor.execute(_FETCH, prepare=False).fetchall():
            for batch in batches(rows, _MAX_BATCH_CHARACTERS, _size):
                encoded = self._encode(batch, str(fork["source_id"]), str(fork["session_id"]))
                count += cursor.execute(self._copy, fork | encoded).rowcount
        cursor.execute(_CLOSE, prepare=False)
        return count

    def _encode(self, rows: Sequence[TupleRow], source_id: str, session_id: str) -> dict[str, object]:
        """Return the documents of some rows, encoded for the fork, as parameters."""
        parameters: dict[str, Any] = {"row_agents": [row[0] for row in rows], "indexes": [row[1] for row in rows]}
        for number, (kind, name) in enumerate(self._documents):
            pairs = [self._encode_document(row, number, kind, source_id, session_id) for row in rows]
            parameters[name] = [text for text, _ in pairs]
            parameters[f"{name}_exact"] = [exact for _, exact in pairs]
        return parameters

    def _encode_document(
        self, row: TupleRow, number: int, kind: PayloadKind, source_id: str, session_id: str
    ) -> tuple[str | None, str | None]:
        agent_id, index, *columns = row
        text, exact = columns[2 * number : 2 * number + 2]
        if text is None:
            return None, None
        document = self._payloads.decode(text, exact, source_id, agent_id, kind, index)
        return self._payloads.encode(document, session_id, agent_id, kind, index)


def _size(row: TupleRow) -> int:
    return sum(len(value) for value in row if isinstance(value, str))
