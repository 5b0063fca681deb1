"""Strands' ``MemoryStore`` on PostgreSQL: memories found by their words, and by their meaning if there are vectors."""

import builtins
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

from psycopg_pool import ConnectionPool
from typing_extensions import TypedDict

from strands_psycopg.arguments import check_count, check_id
from strands_psycopg.binary_parameter import BinaryParameter
from strands_psycopg.closeable import Closeable
from strands_psycopg.database import Database
from strands_psycopg.errors import BadFileError
from strands_psycopg.memory.embedding import Embed, Embedder, check_dimensions
from strands_psycopg.memory.entries import Entries
from strands_psycopg.memory.entry import (
    CREATED_AT,
    MEMORY_ID,
    SCORE,
    SIMILARITY,
    UPDATED_AT,
    MemoryPage,
    content_parameters,
    filter_parameter,
    metadata_parameters,
    parse_memory_id,
)
from strands_psycopg.memory.forget_tool import forget_tool as build_forget_tool
from strands_psycopg.memory.jsonlines import JsonLines, LineError, line_batches, parse_line
from strands_psycopg.memory.memory_search import Hit, MemorySearch
from strands_psycopg.memory.missing_vectors import MissingVectors
from strands_psycopg.memory.vectors import Vectors, check_vectors, find_vectors
from strands_psycopg.migrator import Migrator
from strands_psycopg.pool_options import PoolOptions
from strands_psycopg.source import HasDatabase, open_database, shared_payloads
from strands_psycopg.uncopyable import Uncopyable
from strands_psycopg.words import check_text_search_config, stop_words, tsquery

try:
    from strands.memory.types import MemoryEntry, MemoryStore, SearchOptions
except ImportError:  # before strands-agents 1.44
    MemoryEntry = MemoryStore = object  # type: ignore[assignment, misc]

    class SearchOptions(TypedDict, total=False):  # type: ignore[no-redef]
        """In place of Strands' own."""


if TYPE_CHECKING:
    from strands.memory import ExtractionConfig, MemoryToolConfig
    from strands.types.tools import AgentTool

_T = TypeVar("_T")

# Agents ask for a few. The maximum limits the cost of a search.
_MAX_RESULTS = 1000
_DEFAULT_RESULTS = 10

_MAX_LIMIT = 1000
_MAX_AGE = timedelta(days=36_500)


class PostgresSearchOptions(SearchOptions, total=False):
    """Options of ``PostgresMemoryStore.search``.

    Attributes:
        max_search_results: The maximum number of results, up to 1,000.
        metadata: Only memories whose metadata contains this, as PostgreSQL's ``@>`` defines it.
        min_score: The minimum score of a result, from 0 to 1.
        min_similarity: The minimum cosine similarity, from -1 to 1, of a memory that counts as found by its vector.
    """

    metadata: Mapping[str, Any]
    min_score: float
    min_similarity: float


class PostgresMemoryStore(Uncopyable, Closeable, MemoryStore):
    """Strands' ``MemoryStore`` in PostgreSQL; one object per process serves all its agents, threads and event loops.

    Memories belong to a store and to an owner. A store sees those of its own name and owner only.

    The same text is stored once: adding it again refreshes its time and merges the metadata, key by key. So extraction,
    which may write a fact twice, stores it once. Contents and metadata come back exactly as they were added.

    With ``embed``, memories are found by their meaning too, which requires pgvector on the server. Memories that were
    stored before without ``embed`` get their vectors by ``embed_missing``, or when added again. Vectors are
    stored in half precision (before pgvector 0.7, in single precision) and compared by cosine similarity: those of an
    owner with few memories one by one, more by an HNSW index.

    Both rankings are fused by reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009). A memory at rank r by
    its words and rank s by its vector has the score (30.5 / (60 + r)) + (30.5 / (60 + s)), without the part of a
    ranking that it is not in: 1 if it is first in both, at most 0.5 if it is only in one. Memories that match the
    query's words equally well all have the last of their ranks. Without ``embed`` the score is PostgreSQL's
    ``ts_rank``, also from 0 to 1. Higher is better.

    Results have in their metadata, beside their own: ``_memory_id``, ``_score``, ``_created_at`` and ``_updated_at``
    (UTC, ISO 8601), and ``_similarity`` if they are among the nearest vectors: the cosine similarity, from -1 to 1.

    Calls wait for the database, and for ``embed`` unless it is a coroutine function, in worker threads, never on the
    event loop. Nothing connects before the first call. Besides what each call names, it can raise
    ``DatabaseUnavailableError``, ``DatabaseError`` and ``SchemaError``.

    Args:
        name: The name of the store, of 1 to 255 characters.
        source: As ``conninfo`` of ``PostgresSessionRepository``; or such a repository, whose pool, schema, table
            prefix and timeouts this store shares. Not a repository with a ``payload_codec``: words and
            vectors would disclose what the codec hides.
        owner: Whose memories these are; None if they are nobody's in particular.
        embed: Called with a list of texts; returns a vector for each, or is a coroutine function that does. Several
            threads may call it at once. Use the same model for one store, always.
        dimensions: The length of these vectors, from 1 to 2,000; required with ``embed``. All stores of one schema and
            table prefix have vectors of one length.
        description: What the store contains, for the descriptions of tools.
        max_search_results: The maximum number of results of a search that sets none.
        writable: Whether agents may add to it.
        extraction: Strands' automatic extraction: True, or an ``ExtractionConfig``.
        min_score: The minimum score of results, from 0 to 1, of a search that sets none.
        min_similarity: The minimum similarity, from -1 to 1, of memories that count as found by their vectors, of a
            search that sets none.
        allow_duplicates: Whether the same text is stored again each time.
        forget_tool: Whether agents get a tool ``forget_memory``; or its ``name`` and ``description``.
        text_search_config: The text search configuration of PostgreSQL by which words are compared, such as
            ``english``; ``simple`` compares words as they are.
        schema: The schema of the tables; ``public`` if None.
        table_prefix: What the name of every table begins with.
        retry_timeout: As for ``PostgresSessionRepository``.
        response_timeout: After how many seconds without a response a connection counts as lost.
        **pool_options: As for ``PostgresSessionRepository``, except ``name``.

    Raises:
        ImportError: The installed strands-agents is older than 1.46.
        TypeError: ``source`` is of a wrong type, has a payload codec, or has a pool already and options for one are
            passed too; or ``embed`` is not callable.
        ValueError: An argument is out of range, or the DSN cannot be parsed.
    """

    _why_uncopyable = "has connections; share it within a process, and build one in another process"

    def __init__(
        self,
        name: str,
        source: str | Callable[[], str] | ConnectionPool[Any] | HasDatabase,
        *,
        owner: str | None = None,
        embed: Embed | None = None,
        dimensions: int | None = None,
        description: str | None = None,
        max_search_results: int | None = None,
        writable: bool = True,
        extraction: "ExtractionConfig | bool | None" = None,
        min_score: float = 0.0,
        min_similarity: float = -1.0,
        allow_duplicates: bool = False,
        forget_tool: "bool | MemoryToolConfig" = False,
        text_search_config: str = "simple",
        schema: str | None = None,
        table_prefix: str = "strands_",
        retry_timeout: float | None = None,
        response_timeout: float = 30.0,
        **pool_options: Any,
    ) -> None:
        if not hasattr(MemoryStore, "initialize"):
            raise ImportError("PostgresMemoryStore needs strands-agents 1.46 or newer: pip install -U strands-agents")
        self.name = check_id("name", name)
        self.description = description
        if max_search_results is not None:
            check_count("max_search_results", max_search_results, _MAX_RESULTS)
        self.max_search_results = max_search_results
        self.writable = writable
        self.extraction = extraction
        self._owner = "" if owner is None else check_id("owner", owner)
        self._min_score = _check_range("min_score", min_score, 0)
        self._min_similarity = _check_range("min_similarity", min_similarity, -1)
        self._allow_duplicates = allow_duplicates
        self._forget_tool: Mapping[str, Any] | bool = forget_tool
        self._stop_words = stop_words(check_text_search_config(text_search_config))
        self._dimensions = None if dimensions is None else check_dimensions(dimensions)
        if embed is not None and not callable(embed):
            raise TypeError(f"embed must be callable, not {type(embed).__name__}")
        self._database, is_own = open_database(
            source,
            schema=schema,
            table_prefix=table_prefix,
            retry_timeout=retry_timeout,
            response_timeout=response_timeout,
            pool_options=cast(PoolOptions, pool_options),
        )
        self._own_database: Database | None = self._database if is_own else None
        if shared_payloads(source).has_codec:
            raise TypeError(
                "a store on a repository with a payload_codec would disclose by its words and vectors what the codec "
                "hides; pass it a DSN or a pool if that is acceptable"
            )
        self._embedder = None
        if embed is not None:
            if self._dimensions is None:
                raise ValueError("embed requires dimensions, the length of the vectors that it returns")
            self._embedder = Embedder(embed, self._dimensions)
        self._vectors: Vectors | None = None
        where = {"owner": self._owner, "store": self.name, "text_search_config": text_search_config}
        self._entries = Entries(self._database, **where)
        self._search = MemorySearch(self._database, **where)
        self._lines = JsonLines(self._database, **where)
        self._missing = MissingVectors(self._database, owner=self._owner, store=self.name)

    def ensure_schema(self) -> None:
        """Create or upgrade the tables, including those of sessions, and with ``dimensions`` the table of vectors.

        Any number of processes may call it at once. If nothing is missing, it waits for no lock and needs no privilege
        but SELECT. If the extension pgvector is missing, it is created, which requires a superuser on most servers.

        Raises:
            SchemaError: As ``PostgresSessionRepository.ensure_schema``; or the server does not have the extension, or
                the role may not create it, or the database has vectors of another length.
        """
        Migrator(self._database, vector_dimensions=self._dimensions).apply()

    async def initialize(self) -> None:
        """Check the tables, the extension and the dimensions; Strands calls it before an agent runs.

        Raises:
            SchemaError: The tables are missing, or those of vectors, or vectors have another length.
        """
        await self._in_worker(partial(self._entries.page, limit=1, before=None, condition=filter_parameter(None)))
        if self._dimensions is not None:
            await self._in_worker(self._checked_vectors)

    async def search(self, query: str, options: SearchOptions | None = None) -> list[MemoryEntry]:
        """Return the memories that match a query, best match first.

        Without ``embed`` these are the memories that have any word of the query. Words are runs of letters and digits,
        in lower case; with the configuration ``simple``, the stop words of Strands' keyword search are ignored (there
        are some from 1.62 on). Only the first 64 words of a query and the first 65,536 characters of a text count.

        Args:
            query: The query; a blank one finds nothing.
            options: As ``PostgresSearchOptions``.

        Raises:
            ValueError: An option is out of range.
            TypeError: The option ``metadata`` is not a dict.
            EmbeddingError: ``embed`` failed.
        """
        given: dict[str, Any] = dict(options or {})
        default = _DEFAULT_RESULTS if self.max_search_results is None else self.max_search_results
        limit = check_count("max_search_results", given.get("max_search_results", default), _MAX_RESULTS)
        min_score = _check_range("min_score", given.get("min_score", self._min_score), 0)
        min_similarity = _check_range("min_similarity", given.get("min_similarity", self._min_similarity), -1)
        condition = filter_parameter(given.get("metadata"))
        words = tsquery(query, self._stop_words)
        if not query.strip() or not (words or self._embedder):
            return []

        def find(embedding: BinaryParameter | None) -> list[Hit]:
            return self._search.search(
                words,
                vectors=None if embedding is None else self._checked_vectors(),
                embedding=embedding,
                condition=condition,
                limit=limit,
                min_score=min_score,
                min_similarity=min_similarity,
            )

        return [_entry(hit) for hit in await self._with_embedding(query, find)]

    async def add(self, content: str, metadata: Mapping[str, Any] | None = None) -> str:
        """Store a text and return the id of its memory.

        If the text is stored already, its time is refreshed and ``metadata`` is merged into that of the memory, whose
        id is returned; unless the store allows duplicates.

        Args:
            content: The text.
            metadata: JSON, in which bytes are allowed anywhere.

        Raises:
            ValueError: The text is blank or longer than 256 MiB, the metadata cannot be stored, or the store is not
                writable.
            TypeError: The text is not a string, or the metadata is not a dict or holds something that JSON cannot.
            EmbeddingError: ``embed`` failed, and nothing was stored.
        """
        self._check_writable()
        encoded = metadata_parameters(metadata)
        content_parameters(content)

        def store(embedding: BinaryParameter | None) -> UUID:
            return self._entries.add(
                content,
                encoded,
                vectors=None if embedding is None else self._checked_vectors(),
                embedding=embedding,
                duplicate=self._allow_duplicates,
            )

        return str(await self._with_embedding(content, store))

    async def update(
        self, memory_id: str, *, content: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Edit a memory.

        Args:
            memory_id: Its id.
            content: Its new text; None to keep it.
            metadata: What replaces its metadata; None to keep it.

        Raises:
            MemoryNotFoundError: It does not exist.
            MemoryExistsError: Another memory has the new text, and nothing was stored.
            ValueError: As for ``add``.
            TypeError: As for ``add``.
            EmbeddingError: As for ``add``.
        """
        self._check_writable()
        parsed_id = parse_memory_id(memory_id)
        encoded = None if metadata is None else metadata_parameters(metadata)
        if content is not None:
            content_parameters(content)

        def edit(embedding: BinaryParameter | None) -> None:
            vectors = find_vectors(self._database) if embedding is None else self._checked_vectors()
            self._entries.update(parsed_id, content, encoded, vectors=vectors, embedding=embedding)

        await self._with_embedding(content, edit)

    async def forget(
        self,
        memory_id: str | None = None,
        *,
        older_than: timedelta | float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Delete memories and return their number.

        If there are several conditions, a memory must meet all of them. ``forget(older_than=0)`` deletes all.

        Args:
            memory_id: Only the memory with this id.
            older_than: Only memories whose text has not been added again or edited for this time, as a timedelta or in
                seconds.
            metadata: Only memories whose metadata contains this, as PostgreSQL's ``@>`` defines it.

        Raises:
            TypeError: There is no condition, or ``metadata`` is not a dict.
            ValueError: An argument is out of range, or the store is not writable.
        """
        self._check_writable()
        if memory_id is None and older_than is None and metadata is None:
            raise TypeError("forget() needs memory_id, older_than or metadata; older_than=0 forgets all")
        parsed_id = None if memory_id is None else parse_memory_id(memory_id)
        age = None if older_than is None else _seconds(older_than)
        condition = filter_parameter(metadata)

        def forget() -> int:
            vectors = find_vectors(self._database) if self._dimensions is None else self._checked_vectors()
            return self._entries.forget(vectors=vectors, memory_id=parsed_id, older_than=age, condition=condition)

        return await self._in_worker(forget)

    async def list(
        self, *, limit: int = 100, before: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> MemoryPage:
        """Return memories, the newest first.

        Args:
            limit: Their maximum number, up to 1,000.
            before: The ``next`` of the page before; None for the first page.
            metadata: Only memories whose metadata contains this, as PostgreSQL's ``@>`` defines it.

        Raises:
            ValueError: An argument is out of range.
            TypeError: ``metadata`` is not a dict.
        """
        check_count("limit", limit, _MAX_LIMIT)
        start = None if before is None else parse_memory_id(before)
        condition = filter_parameter(metadata)
        return await self._in_worker(partial(self._entries.page, limit=limit, before=start, condition=condition))

    async def export_lines(self) -> AsyncIterator[str]:
        """Yield all memories, oldest first, each as a line of JSON without its line end.

        A line has the memory's vector if the store has ``dimensions``.
        """
        vectors = None if self._dimensions is None else await self._in_worker(self._checked_vectors)
        after: UUID | None = None
        while True:
            lines, after = await self._in_worker(partial(self._lines.batch, after, vectors))
            for line in lines:
                yield line
            if after is None:
                return

    async def import_lines(self, lines: Iterable[str]) -> int:
        """Store exported memories with their ids and times, in batches, and return how many were new.

        Memories whose id or text is stored already are left alone, so that an import can be repeated. The vectors of
        the lines are kept if the store has ``dimensions``; with ``embed``, texts without one are embedded.

        Raises:
            BadFileError: A line is not in the expected format; nothing of its batch was stored.
            EmbeddingError: ``embed`` failed; nothing of its batch was stored.
            ValueError: The store is not writable.
        """
        self._check_writable()
        vectors = None if self._dimensions is None else await self._in_worker(self._checked_vectors)
        count = 0
        for batch in line_batches(enumerate(lines, start=1)):
            rows = [self._parse(number, line) for number, line in batch]
            missing = [row for row in rows if row["embedding"] is None]
            if self._embedder is not None and missing:
                texts = [str(row["content"]) for row in missing]
                for row, embedding in zip(missing, await self._embedder.vectors(texts), strict=True):
                    row["embedding"] = embedding
            count += await self._in_worker(partial(self._lines.store, rows, vectors))
        return count

    async def embed_missing(self) -> int:
        """Embed the memories that have no vector, in batches of 100, and return how many got one.

        Memories have none if they were added, edited or imported by a store without ``embed``. A search finds those by
        their words only. An interrupted call can be repeated.

        Raises:
            TypeError: The store has no ``embed``.
            EmbeddingError: ``embed`` failed; the batches before are stored.
            ValueError: The store is not writable.
        """
        self._check_writable()
        if self._embedder is None:
            raise TypeError("embed_missing() needs a store with embed")
        vectors = await self._in_worker(self._checked_vectors)
        count = 0
        after: UUID | None = None
        while texts := await self._in_worker(partial(self._missing.batch, after)):
            embeddings = await self._embedder.vectors([text.content for text in texts])
            count += await self._in_worker(partial(self._missing.store, texts, embeddings, vectors))
            after = texts[-1].memory_id
        return count

    def get_tools(self) -> "builtins.list[AgentTool]":
        """Return the tool by which agents forget, if the store was built with ``forget_tool``."""
        if not self._forget_tool:
            return []
        config = {} if isinstance(self._forget_tool, bool) else self._forget_tool
        return [build_forget_tool(self.forget, config)]

    def close(self) -> None:
        """Close the pool, if this store was built from a DSN, and end the threads that call ``embed``."""
        if self._embedder is not None:
            self._embedder.close()
        if self._own_database is not None:
            self._own_database.close()

    def __repr__(self) -> str:
        database = self._database
        owner = f" owner={self._owner!r}" if self._owner else ""
        return (
            f"<{type(self).__name__} {self.name!r} {database.address} schema={database.schema} "
            f"table_prefix={database.table_prefix}{owner}>"
        )

    def _parse(self, number: int, line: str) -> dict[str, object]:
        try:
            return parse_line(line, self._dimensions)
        except LineError as error:
            raise BadFileError(f"line {number}: {error}", file=f"line {number}") from None

    def _check_writable(self) -> None:
        if not self.writable:
            raise ValueError(f"the store is not writable; build {self.name!r} with writable=True")

    async def _with_embedding(self, text: str | None, work: Callable[[BinaryParameter | None], _T]) -> _T:
        """Return what ``work`` returns for the vector of a text; None if there is none."""
        embedding = None
        if self._embedder is not None and text is not None:
            [embedding] = await self._embedder.vectors([text])
        return await self._in_worker(partial(work, embedding))

    def _checked_vectors(self) -> Vectors:
        """Return the table of vectors, which is looked up once.

        Raises:
            SchemaError: The database cannot store the vectors of this store.
        """
        if self._vectors is None:
            self._vectors = check_vectors(find_vectors(self._database), self._dimensions or 0)
        return self._vectors

    async def _in_worker(self, work: Callable[[], _T]) -> _T:
        return await self._database.workers.run_async(work)


def _entry(hit: Hit) -> MemoryEntry:
    memory = hit.memory
    metadata = {
        **(memory.metadata or {}),
        MEMORY_ID: memory.memory_id,
        SCORE: hit.score,
        CREATED_AT: memory.created_at,
        UPDATED_AT: memory.updated_at,
    }
    if hit.similarity is not None:
        metadata[SIMILARITY] = hit.similarity
    return MemoryEntry(content=memory.content, metadata=metadata)


def _check_range(argument: str, value: float, minimum: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value <= 1:
        raise ValueError(f"{argument} must be a number from {minimum} to 1, not {value!r}")
    return float(value)


def _seconds(older_than: timedelta | float) -> float:
    seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else float(older_than)
    if not 0 <= seconds <= _MAX_AGE.total_seconds():
        raise ValueError(f"older_than must be from 0 seconds to {_MAX_AGE.days} days, not {older_than}")
    return seconds
