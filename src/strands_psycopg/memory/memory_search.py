"""Searching memories by their words, by their vectors, or by both.

Two rankings are fused by reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a memory at rank r of a
ranking counts 1 / (60 + r), and the sum over both rankings decides. It needs no scale on which ranks of words and
distances of vectors could be compared. Memories that match a query's words equally well all have the last of their
ranks, so that a word which many of them have decides little.
"""

from dataclasses import dataclass
from itertools import count

from psycopg.types.numeric import Int8
from typing_extensions import LiteralString

from strands_psycopg.binary_parameter import BinaryParameter
from strands_psycopg.database import Database
from strands_psycopg.memory.entry import COLUMN_COUNT, COLUMNS, Memory, read_memory
from strands_psycopg.memory.vectors import Vectors, compose

_Row = dict[str, object]

# How many memories of the ranking by words are fused at least, and how many of that by vectors. Vectors further away
# than these only add noise.
_MIN_KEYWORD_RESULTS = 50
_MIN_NEAREST = 20

# How many candidates an HNSW index keeps during a scan, at least and at most (the limit of pgvector). Its default of 40
# would miss one in twelve of the nearest vectors among 100,000.
_MIN_CANDIDATES = 64
_MAX_CANDIDATES = 1000

# How many numbers of vectors are compared one by one, at most, before an index is faster.
_MAX_COMPARED = 1_000_000

# After how many searches by vectors those of the owner are counted again.
_COUNT_EVERY = 100

# The planner takes a while for conditions that turn out to be always true, so without a filter they are left out.
_KEYWORD_FILTER = """
                AND m.metadata @> %(filter)s::jsonb"""
_SEMANTIC_FILTER = """
                AND EXISTS (
                    SELECT true FROM {memories} AS m
                    WHERE m.owner = %(owner)s AND m.store = %(store)s AND m.memory_id = v.memory_id
                        AND m.metadata @> %(filter)s::jsonb
                )"""

# The index of words has owner and store, too, so that it does not matter how many memories of others have a word.
_KEYWORD_SEARCH = (
    """
    keyword_search AS (
        SELECT found.memory_id, found.updated_at, found.relevance,
            pg_catalog.count(*) OVER (ORDER BY found.relevance DESC)::float8 AS rank
        FROM (
            SELECT m.memory_id, m.updated_at, pg_catalog.ts_rank(m.search_vector, query)::float8 AS relevance
            FROM {memories} AS m, pg_catalog.to_tsquery(%(configuration)s::regconfig, %(words)s) AS query
            WHERE m.owner = %(owner)s AND m.store = %(store)s AND m.search_vector @@ query
                AND ARRAY[m.owner || '//'::text || m.store]::text[]
                    @> ARRAY[%(owner)s::text || '//'::text || %(store)s::text]::text[]"""
    + _KEYWORD_FILTER
    + """
            ORDER BY relevance DESC, m.updated_at DESC, m.memory_id LIMIT %(keyword_limit)s
        ) AS found
    )"""
)

_BEST = """, best AS (
        SELECT fused.memory_id, fused.score, fused.similarity, fused.has_few
        FROM fused WHERE fused.score >= %(min_score)s::float8"""

# Only the memories that are returned are read.
_FOUND = (
    """
        ORDER BY fused.score DESC, fused.similarity DESC NULLS LAST, fused.updated_at DESC, fused.memory_id
        LIMIT %(limit)s
    )
    SELECT """
    + COLUMNS
    + """, best.score, best.similarity, best.has_few
    FROM best JOIN {memories} AS m ON m.memory_id = best.memory_id
    WHERE m.owner = %(owner)s AND m.store = %(store)s
    ORDER BY best.score DESC, best.similarity DESC NULLS LAST, m.updated_at DESC, m.memory_id
"""
)

_BY_WORDS = (
    "WITH"
    + _KEYWORD_SEARCH
    + """, fused AS (
        SELECT k.memory_id, k.updated_at, k.relevance AS score, NULL::float8 AS similarity, false AS has_few
        FROM keyword_search AS k
    )"""
    + _BEST
    + _FOUND
)

_QUERY = """
    WITH query AS MATERIALIZED (
        SELECT %(embedding)s::public.vector::public.halfvec AS embedding, """

_HAS_FEW = """(
                SELECT pg_catalog.count(*) FROM (
                    SELECT true FROM {memory_vectors} AS v
                    WHERE v.owner = %(owner)s AND v.store = %(store)s LIMIT %(few)s
                ) AS counted
            ) < %(few)s AS has_few"""

# The settings hold until the end of the statement's own transaction. An index scan reads them when it begins, which is
# after the row with its query vector was computed.
_SETTINGS = """,
            pg_catalog.set_config('hnsw.ef_search', %(candidates)s, true) AS candidates,
            CASE WHEN %(iterative)s THEN pg_catalog.set_config('hnsw.iterative_scan', 'relaxed_order', true) END"""

_SEMANTIC_SEARCH = """
    ), semantic_search AS (
        SELECT found.memory_id, 1::float8 - found.distance AS similarity,
            pg_catalog.row_number() OVER (ORDER BY found.distance, found.memory_id)::float8 AS rank
        FROM query, LATERAL ("""

_OF_OWNER = """
            SELECT v.memory_id, v.embedding OPERATOR(public.<=>) query.embedding AS distance
            FROM {memory_vectors} AS v
            WHERE v.owner = %(owner)s AND v.store = %(store)s"""

# No index can return rows in the order of this sum.
_EXACT_ORDER = """
            ORDER BY (v.embedding OPERATOR(public.<=>) query.embedding) + 0::float8 LIMIT %(nearest)s"""

# An HNSW index returns rows in this order. An iterative scan may return a few rows out of order, so ranks are computed
# outside.
_INDEX_ORDER = """
            ORDER BY v.embedding OPERATOR(public.<=>) query.embedding LIMIT %(nearest)s"""

_FUSED = (
    """
        ) AS found
        WHERE 1::float8 - found.distance >= %(min_similarity)s::float8
    ),"""
    + _KEYWORD_SEARCH
    + """, fused AS (
        SELECT memory_id, k.updated_at, s.similarity, 30.5::float8 * (
            coalesce(1::float8 / (60::float8 + k.rank), 0::float8)
            + coalesce(1::float8 / (60::float8 + s.rank), 0::float8)
        ) AS score, (SELECT query.has_few FROM query) AS has_few
        FROM keyword_search AS k FULL JOIN semantic_search AS s USING (memory_id)
    )"""
    + _BEST
)

# Which way is faster depends on the owner, so each execution must have a plan of its own, although the statement is
# prepared. In a plan for known parameters this condition is dropped; in a generic plan it costs so much that the server
# never chooses one.
_OWN_PLAN = """
            AND (
                %(own_plan)s::bool
                OR 0 = (SELECT pg_catalog.count(*) FROM pg_catalog.generate_series(1, 1000000000))
            )"""

# Few vectors are compared one by one: if they are a small part of the index, a scan of it looks at many times as many.
_AMONG_FEW = (
    _QUERY + "true AS has_few" + _SEMANTIC_SEARCH + _OF_OWNER + _SEMANTIC_FILTER + _EXACT_ORDER + _FUSED + _FOUND
)
_AMONG_MANY = (
    _QUERY
    + "false AS has_few"
    + _SETTINGS
    + _SEMANTIC_SEARCH
    + _OF_OWNER
    + _SEMANTIC_FILTER
    + _INDEX_ORDER
    + _FUSED
    + _OWN_PLAN
    + _FOUND
)
_AMONG_ANY = (
    _QUERY
    + _HAS_FEW
    + _SETTINGS
    + _SEMANTIC_SEARCH
    + "("
    + _OF_OWNER
    + " AND query.has_few"
    + _SEMANTIC_FILTER
    + _EXACT_ORDER
    + """)
            UNION ALL
            ("""
    + _OF_OWNER
    + " AND NOT query.has_few"
    + _SEMANTIC_FILTER
    + _INDEX_ORDER
    + ")"
    + _FUSED
    + _OWN_PLAN
    + _FOUND
)


@dataclass(frozen=True)
class Hit:
    """A memory that a search found.

    Attributes:
        memory: The memory.
        score: From 0 to 1; higher is better.
        similarity: The cosine similarity of its vector to that of the query, from -1 to 1; None if the search was by
            words only, or its vector is not among the nearest.
    """

    memory: Memory
    score: float
    similarity: float | None


class MemorySearch:
    """Searches the memories of one owner in one store.

    Args:
        database: Where the tables are.
        owner: The owner; empty if there is none.
        store: The name of the store.
        text_search_config: PostgreSQL's text search configuration for queries.
    """

    def __init__(self, database: Database, *, owner: str, store: str, text_search_config: str) -> None:
        self._database = database
        self._key: _Row = {"owner": owner, "store": store, "configuration": text_search_config}
        self._operation = f"searching memory store {store!r}"
        self._has_few: bool | None = None  # as counted last
        self._searches = count(1)  # in several threads at once

    def search(
        self,
        words: str,
        *,
        vectors: Vectors | None,
        embedding: BinaryParameter | None,
        condition: _Row,
        limit: int,
        min_score: float,
        min_similarity: float,
    ) -> list[Hit]:
        """Return up to ``limit`` memories, best match first.

        Args:
            words: The words of the query as a ``tsquery``; empty if there are none.
            vectors: The table of vectors, if there is an embedding.
            embedding: The vector of the query; None to search by words only.
            condition: The parameter of a filter by metadata.
            limit: The maximum number of results.
            min_score: The minimum score of a result.
            min_similarity: The minimum similarity of a memory that counts as found by its vector.
        """
        row = self._key | condition | {"words": words or None, "limit": Int8(limit), "min_score": min_score}
        row["keyword_limit"] = Int8(max(limit, _MIN_KEYWORD_RESULTS))
        template = _BY_WORDS
        if vectors is not None:
            template = self._template_by_both()
            nearest = max(limit, _MIN_NEAREST)
            row |= {
                "embedding": embedding,
                "nearest": Int8(nearest),
                "few": Int8(_MAX_COMPARED // vectors.dimensions + 1),
                "min_similarity": min_similarity,
                "candidates": str(min(max(2 * nearest, _MIN_CANDIDATES), _MAX_CANDIDATES)),
                "iterative": vectors.scans_iteratively,
                "own_plan": True,
            }
        if condition["filter"] is None:
            template = template.replace(_KEYWORD_FILTER, "").replace(_SEMANTIC_FILTER, "")
        rows = self._database.fetch(self._operation, compose(self._database, vectors, template), row).rows
        if rows and vectors is not None:
            self._has_few = rows[0][-1]
        return [Hit(read_memory(each), each[COLUMN_COUNT], each[COLUMN_COUNT + 1]) for each in rows]

    def _template_by_both(self) -> LiteralString:
        """Return the statement of the next search by words and vectors."""
        if self._has_few is None or next(self._searches) % _COUNT_EVERY == 0:
            return _AMONG_ANY
        return _AMONG_FEW if self._has_few else _AMONG_MANY
