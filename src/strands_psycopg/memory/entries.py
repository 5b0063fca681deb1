"""The table of memories: adding, updating, listing and forgetting those of one owner and store."""

from functools import partial
from uuid import UUID, uuid4

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from strands_psycopg.binary_parameter import BinaryParameter
from strands_psycopg.database import NO_DEADLINE, Database
from strands_psycopg.errors import DatabaseError, MemoryExistsError, MemoryNotFoundError, suppressed_error
from strands_psycopg.memory.entry import (
    COLUMNS,
    MemoryPage,
    content_parameters,
    merge_metadata,
    metadata_parameters,
    read_memory,
)
from strands_psycopg.memory.vectors import ADD_VECTOR, Vectors, compose
from strands_psycopg.uuids import uuid7

_Row = dict[str, object]

_FORGET_BATCH = 1000

_UNIQUE_VIOLATION = "23505"

_READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

# A client that is suspended must not keep its lock.
_IDLE_TIMEOUT = "SELECT pg_catalog.set_config('idle_in_transaction_session_timeout', '10s', true)"

_ADD = """
    WITH added AS (
        INSERT INTO {memories} AS m (
            owner, store, memory_id, content, content_exact, content_hash, metadata, metadata_exact, search_vector,
            write_id, created_at, updated_at
        )
        SELECT %(owner)s, %(store)s, %(memory_id)s, %(content)s, %(content_exact)s, %(content_hash)s,
            %(metadata)s::jsonb, %(metadata_exact)s, pg_catalog.to_tsvector(%(configuration)s::regconfig, %(text)s),
            %(write_id)s, pg_catalog.now(), pg_catalog.now()
        WHERE {in_time}
        ON CONFLICT (owner, store, content_hash) DO UPDATE
        SET write_id = EXCLUDED.write_id, updated_at = GREATEST(m.updated_at, EXCLUDED.updated_at)
        WHERE EXCLUDED.metadata IS NULL OR m.write_id = EXCLUDED.write_id
            OR (
                m.metadata::text = EXCLUDED.metadata::text
                AND m.metadata_exact IS NOT DISTINCT FROM EXCLUDED.metadata_exact
            )
        RETURNING m.memory_id
    )"""
_ADDED = """
    SELECT CASE WHEN {in_time} THEN {server_time} END, added.memory_id FROM (SELECT 1) AS one LEFT JOIN added ON true
"""  # no id: the memory has other metadata

# Not in a CTE: where the tables are distributed, it would become a write of all nodes.
_ADD_VECTOR = """
    INSERT INTO {memory_vectors} AS v (owner, store, memory_id, embedding)
    SELECT %(owner)s, %(store)s, added.memory_id, %(embedding)s::public.vector::public.halfvec FROM added
    ON CONFLICT (owner, store, memory_id) DO NOTHING
    RETURNING true, v.memory_id
"""  # no row: the memory has other metadata, or has its vector already

_FIND_ADDED = """
    SELECT true, m.memory_id FROM {memories} AS m
    WHERE m.owner = %(owner)s AND m.store = %(store)s AND m.content_hash = %(content_hash)s
        AND m.write_id = %(write_id)s
"""

_LOCK = """
    SELECT m.memory_id, m.metadata::text, m.metadata_exact FROM {memories} AS m
    WHERE m.owner = %(owner)s AND m.store = %(store)s AND m.content_hash = %(content_hash)s FOR UPDATE
"""

_MERGE = """
    UPDATE {memories} AS m
    SET metadata = %(metadata)s::jsonb, metadata_exact = %(metadata_exact)s, write_id = %(write_id)s,
        updated_at = pg_catalog.now()
    WHERE m.owner = %(owner)s AND m.store = %(store)s AND m.memory_id = %(memory_id)s
    RETURNING m.memory_id
"""

_UPDATE = """
    WITH clock AS (SELECT {in_time} AS in_time), updated AS (
        UPDATE {memories} AS m
        SET content = CASE WHEN %(edits_content)s THEN %(content)s ELSE m.content END,
            content_exact = CASE WHEN %(edits_content)s THEN %(content_exact)s ELSE m.content_exact END,
            content_hash = CASE
                WHEN %(edits_content)s AND m.content_hash <> m.memory_id THEN %(content_hash)s ELSE m.content_hash
            END,
            search_vector = CASE
                WHEN %(edits_content)s THEN pg_catalog.to_tsvector(%(configuration)s::regconfig, %(text)s)
                ELSE m.search_vector
            END,
            metadata = CASE WHEN %(edits_metadata)s THEN %(metadata)s::jsonb ELSE m.metadata END,
            metadata_exact = CASE WHEN %(edits_metadata)s THEN %(metadata_exact)s ELSE m.metadata_exact END,
            write_id = %(write_id)s, updated_at = pg_catalog.now()
        WHERE m.owner = %(owner)s AND m.store = %(store)s AND m.memory_id = %(memory_id)s
            AND (SELECT in_time FROM clock)
        RETURNING m.memory_id
    )
    SELECT CASE WHEN clock.in_time THEN {server_time} END, updated.memory_id FROM clock LEFT JOIN updated ON true
"""

# In a transaction with the update of its memory, as ADD_VECTOR.
_REPLACE_VECTOR = """
    INSERT INTO {memory_vectors} AS v (owner, store, memory_id, embedding)
    VALUES (%(owner)s, %(store)s, %(memory_id)s, %(embedding)s::public.vector::public.halfvec)
    ON CONFLICT (owner, store, memory_id) DO UPDATE SET embedding = EXCLUDED.embedding
"""

# A text that is edited without an embedding is then found by its words only. In a transaction with the update, which
# has waited for any transaction that was storing a vector.
_DELETE_VECTOR = """
    DELETE FROM {memory_vectors} AS v
    WHERE v.owner = %(owner)s AND v.store = %(store)s AND v.memory_id = %(memory_id)s
"""

_TO_FORGET = """
    m.owner = %(owner)s AND m.store = %(store)s
        AND (%(memory_id)s::uuid IS NULL OR m.memory_id = %(memory_id)s::uuid)
        AND (
            %(older_than)s::float8 IS NULL
            OR m.updated_at <= pg_catalog.now() - pg_catalog.make_interval(secs => %(older_than)s::float8)
        )
        AND (%(filter)s::jsonb IS NULL OR m.metadata @> %(filter)s::jsonb)
"""

_FORGET = (
    """
    WITH clock AS (SELECT {in_time} AS in_time), forgotten AS (
        DELETE FROM {memories} AS m
        WHERE (SELECT in_time FROM clock) AND m.memory_id = ANY(ARRAY(
            SELECT m.memory_id FROM {memories} AS m WHERE """
    + _TO_FORGET
    + " LIMIT %(limit)s)) AND "
    + _TO_FORGET
    + """
        RETURNING m.memory_id
    )"""
)

# Foreign keys cascade, but not with session_replication_role = replica.
_FORGET_VECTORS = """, vectors AS (
        DELETE FROM {memory_vectors} AS v
        WHERE v.owner = %(owner)s AND v.store = %(store)s AND v.memory_id IN (SELECT memory_id FROM forgotten)
    )"""
_FORGOTTEN = """
    SELECT CASE WHEN clock.in_time THEN {server_time} END, (SELECT pg_catalog.count(*) FROM forgotten) FROM clock
"""

_LIST = (
    "SELECT "
    + COLUMNS
    + """
    FROM {memories} AS m
    WHERE m.owner = %(owner)s AND m.store = %(store)s
        AND (%(before)s::uuid IS NULL OR m.memory_id < %(before)s::uuid)
        AND (%(filter)s::jsonb IS NULL OR m.metadata @> %(filter)s::jsonb)
    ORDER BY m.memory_id DESC LIMIT %(limit)s
"""
)


class Entries:
    """The memories of one owner in one store.

    Args:
        database: Where the tables are.
        owner: The owner; empty if there is none.
        store: The name of the store.
        text_search_config: PostgreSQL's text search configuration.
    """

    def __init__(self, database: Database, *, owner: str, store: str, text_search_config: str) -> None:
        self._database = database
        self._key: _Row = {"owner": owner, "store": store}
        self._configuration = text_search_config
        self._name = f"memory store {store!r}"
        self._add = database.statement(_ADD + _ADDED)
        self._find_added = database.statement(_FIND_ADDED)
        self._merge = database.statement(_MERGE)
        self._edit = database.statement(_UPDATE)
        self._list = database.statement(_LIST)
        self._forget = database.statement(_FORGET + _FORGOTTEN)
        self._forget_with_vectors = database.statement(_FORGET + _FORGET_VECTORS + _FORGOTTEN)
        self._lock = database.statement(_LOCK)

    def add(
        self,
        content: str,
        metadata: _Row,
        *,
        vectors: Vectors | None,
        embedding: BinaryParameter | None,
        duplicate: bool,
    ) -> UUID:
        """Store a text unless it is stored already, and return its id.

        Args:
            content: The text.
            metadata: The parameters of its metadata, which is merged into that of the stored text.
            vectors: The table of vectors, if there is an embedding.
            embedding: The vector of the text; None if it has none.
            duplicate: Whether to store the text again if it is stored already.
        """
        operation = f"adding to {self._name}"
        memory_id = uuid7()
        row = self._row(memory_id=memory_id, embedding=embedding) | content_parameters(content) | metadata
        if duplicate:
            row["content_hash"] = memory_id
        vector: bytes | None = None
        self._database.synchronise_clock()
        if vectors is None:
            rows = self._database.write(operation, self._add, row).rows
        else:
            vector = compose(self._database, vectors, ADD_VECTOR)
            add = compose(self._database, vectors, _ADD + _ADD_VECTOR)
            rows = self._database.write(operation, add, row).rows
            rows = rows or self._database.fetch(operation, self._find_added, row).rows
        found: UUID | None = rows[0][1] if rows else None
        if found is None:
            found = self._database.transact(operation, partial(self._add_or_merge, row, vector))
        if found is None:
            raise suppressed_error(operation)
        return found

    def _add_or_merge(self, row: _Row, vector: bytes | None, cursor: Cursor[TupleRow]) -> UUID | None:
        """Store a text with its vector, if it has one, or merge metadata into that of the stored text.

        Returns:
            The id of the memory; None if nothing was stored.
        """
        cursor.execute(_READ_COMMITTED)
        cursor.execute(_IDLE_TIMEOUT)
        found: UUID | None = cursor.execute(self._add, row | NO_DEADLINE).fetchall()[0][1]
        if found is None and row["metadata"] is not None:
            # The statement above has locked it, although it has not changed it.
            for memory_id, metadata, metadata_exact in cursor.execute(self._lock, row).fetchall():
                merged = merge_metadata(metadata, metadata_exact, row) | {"memory_id": memory_id}
                for (each,) in cursor.execute(self._merge, row | merged).fetchall():
                    found = each
        if found is not None and vector is not None:
            cursor.execute(vector, row | {"memory_id": found})
        return found

    def update(
        self,
        memory_id: UUID,
        content: str | None,
        metadata: _Row | None,
        *,
        vectors: Vectors | None,
        embedding: BinaryParameter | None,
    ) -> None:
        """Edit a memory.

        Args:
            memory_id: Its id.
            content: Its new text; None if it keeps its text.
            metadata: The parameters of its new metadata; None if it keeps its metadata.
            vectors: The table of vectors, if there is one.
            embedding: The vector of its new text; None if it has none.

        Raises:
            MemoryNotFoundError: It does not exist.
            MemoryExistsError: Another memory has the new text.
        """
        operation = f"updating a memory of {self._name}"
        row = self._row(memory_id=memory_id, embedding=embedding)
        # Parameters need a value even where they are not used.
        row |= content_parameters("none" if content is None else content) | (metadata or metadata_parameters(None))
        row |= {"edits_content": content is not None, "edits_metadata": metadata is not None}
        try:
            if content is None or vectors is None:
                found = self._update(operation, row)
            else:
                found = self._database.transact(operation, partial(self._update_with_vector, row, vectors))
        except DatabaseError as error:
            if error.sqlstate == _UNIQUE_VIOLATION:
                raise MemoryExistsError(
                    f"{operation}: another memory has this text already; forget one of them", memory_id=str(memory_id)
                ) from error
            raise
        if found is None:
            raise MemoryNotFoundError(f"{operation}: there is no memory {memory_id}", memory_id=str(memory_id))

    def _update(self, operation: str, row: _Row) -> UUID | None:
        self._database.synchronise_clock()
        found: UUID | None = self._database.write(operation, self._edit, row).rows[0][1]
        return found

    def _update_with_vector(self, row: _Row, vectors: Vectors, cursor: Cursor[TupleRow]) -> UUID | None:
        cursor.execute(_IDLE_TIMEOUT)
        found: UUID | None = cursor.execute(self._edit, row | NO_DEADLINE).fetchall()[0][1]
        if found is not None:
            change_vector = _DELETE_VECTOR if row["embedding"] is None else _REPLACE_VECTOR
            cursor.execute(compose(self._database, vectors, change_vector), row)
        return found

    def forget(
        self, *, vectors: Vectors | None, memory_id: UUID | None, older_than: float | None, condition: _Row
    ) -> int:
        """Delete the memories that meet all conditions that are not None, in batches; return their number.

        Args:
            vectors: The table of vectors, if they have any.
            memory_id: Their id.
            older_than: For how many seconds their text must not have been added again or edited.
            condition: The parameter of a filter by metadata.
        """
        row = self._row(memory_id=memory_id) | condition
        row |= {"older_than": older_than, "limit": Int8(_FORGET_BATCH)}
        statement = self._forget if vectors is None else self._forget_with_vectors
        self._database.synchronise_clock()
        count = 0
        while True:
            forgotten: int = self._database.write(f"forgetting from {self._name}", statement, row).rows[0][1]
            count += forgotten
            if forgotten < _FORGET_BATCH:
                return count

    def page(self, *, limit: int, before: UUID | None, condition: _Row) -> MemoryPage:
        """Return up to ``limit`` memories, newest first, starting after the one with the id ``before``."""
        row = self._row(before=before, limit=Int8(limit + 1)) | condition
        rows = self._database.fetch(f"listing {self._name}", self._list, row, prepare=False).rows
        memories = [read_memory(each) for each in rows[:limit]]
        return MemoryPage(memories, memories[-1].memory_id if len(rows) > limit else None)

    def _row(self, **parameters: object) -> _Row:
        return self._key | {"configuration": self._configuration, "write_id": uuid4()} | parameters
