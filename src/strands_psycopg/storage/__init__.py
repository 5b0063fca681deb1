"""Strands' ``Storage`` on PostgreSQL: bytes stored under keys, for snapshots, offloaded results and memories."""

import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar
from uuid import UUID

from psycopg import Connection
from psycopg_pool import ConnectionPool
from typing_extensions import Self

from strands_psycopg.database import Database
from strands_psycopg.errors import PostgresStorageError, StrandsPsycopgError
from strands_psycopg.migrator import Migrator
from strands_psycopg.source import HasDatabase, is_storable, shared_database, shared_payloads
from strands_psycopg.storage.seen_writes import SeenWrites
from strands_psycopg.storage.source import shared_leases
from strands_psycopg.storage.text_search import searchable_text
from strands_psycopg.storage.value_reader import MAX_KEY_SIZE, ValueReader
from strands_psycopg.storage.value_writer import MAX_VALUE_SIZE, ValueWriter
from strands_psycopg.uncopyable import Uncopyable
from strands_psycopg.words import check_text_search_config, stop_words, tsquery

try:
    from strands.storage.storage import _NAMESPACED, Storage, StorageSearchResult, _normalize_key, _normalize_prefix
except ImportError:  # before strands-agents 1.54
    Storage = StorageSearchResult = object  # type: ignore[assignment, misc]
    _NAMESPACED = None

_T = TypeVar("_T")


class PostgresStorage(Uncopyable, Storage):
    """Strands' ``Storage`` in PostgreSQL; one object per process serves all its agents, threads and event loops.

    Keys are normalised and refused as by Strands' own backends: repeated slashes count as one, leading and trailing
    slashes are ignored, backslashes and ``..`` are refused. In addition, a key has at most 2,048 bytes of UTF-8, the
    prefix included, and no NUL or lone surrogate.

    A value above 8 KB is split into content-defined chunks, each of which is stored once for all values under
    ``prefix``: the next snapshot of a long conversation adds only what is new. Calls wait for the database in worker
    threads, never on the event loop. Nothing connects before the first call. Each call can raise ``StorageError``; if
    the cause is in the database, it is a ``PostgresStorageError``.

    By default the last writer of a key wins. With ``guard_overwrites`` the storage remembers for each key which write
    it has read or made last. If another write or a deletion came after that one, ``write`` and ``delete`` raise
    ``StorageConflictError`` and store nothing, until the key is read again; deleting what is gone already is no error.
    A key that was found missing, or was deleted, must still be missing. A key that was neither read nor written is
    written without a check; ``list`` and ``search`` do not count as reading. A storage and its namespaces are one
    writer: managers that must not overwrite each other need a storage each, which may share a repository. The storage
    keeps one UUID for each key that it has seen, as long as it lives.

    With ``session_id``, writes are fenced by the session's lease: while one is held through the repository, ``write``
    and ``delete`` check it. If another holder has taken over, they raise ``PostgresStorageError``, whose cause is a
    ``LeaseLostError``, and store nothing. While none is held, they check nothing.

    The ``payload_codec`` of a repository also encodes and decodes the bytes of its storages. Keys stay as they are. A
    search looks in what the codec returned, so it finds nothing unless the codec leaves words. Which chunks are equal
    depends on the codec, too: an encrypted value shares none. The codec is given the ``session_id``, so read a value
    with the ``session_id`` with which it was written.

    Args:
        source: As ``conninfo`` of ``PostgresSessionRepository``; or such a repository, whose pool, schema, table prefix
            and timeouts this storage shares.
        schema: The schema of the tables; ``public`` if None.
        table_prefix: What the name of every table begins with.
        prefix: Prepended to every key, with a ``/``. Storages with different prefixes share nothing.
        text_search_config: The text search configuration of PostgreSQL by which ``search`` compares words, such as
            ``english``; ``simple`` compares words as they are. Values written with another one are found by the words
            of that one.
        search_limit: The maximum number of values that ``search`` returns.
        guard_overwrites: Whether to raise ``StorageConflictError`` if another writer came first.
        session_id: The session whose lease fences writes; ``source`` must be a repository.
        retry_timeout: For how many seconds a statement is retried while the database is unavailable.
        response_timeout: After how many seconds without a response a connection counts as lost. Values above some
            50 MB need a longer one than the default, and those of hundreds of megabytes a longer ``retry_timeout`` too.
        **pool_options: As of ``PostgresSessionRepository``.

    Raises:
        ImportError: The installed strands-agents is older than 1.54, whose ``Storage`` is the first with a search.
        TypeError: ``source`` is of a wrong type, has a pool already and options for one are passed too, or is no
            repository although there is a ``session_id``.
        ValueError: An argument is out of range, or the DSN cannot be parsed.
    """

    _why_uncopyable = "has connections; share it or its namespaces within a process, and build one in another process"

    # Strands wraps a storage without its marker in a namespace of its own.
    _namespaced: object = None

    def __init__(
        self,
        source: str | Callable[[], str] | ConnectionPool[Connection[Any]] | HasDatabase,
        *,
        schema: str | None = None,
        table_prefix: str = "strands_",
        prefix: str = "",
        text_search_config: str = "simple",
        search_limit: int = 100,
        guard_overwrites: bool = False,
        session_id: str | None = None,
        retry_timeout: float = 30.0,
        response_timeout: float = 30.0,
        **pool_options: Any,
    ) -> None:
        if _NAMESPACED is None:
            raise ImportError("PostgresStorage needs strands-agents 1.54 or newer: pip install -U strands-agents")
        if isinstance(search_limit, bool) or not isinstance(search_limit, int) or search_limit < 1:
            raise ValueError(f"search_limit must be a positive integer, not {search_limit!r}")
        check_text_search_config(text_search_config)
        if isinstance(source, str | ConnectionPool) or callable(source):
            self._own_database: Database | None = Database(
                source,
                schema=schema,
                table_prefix=table_prefix,
                retry_timeout=retry_timeout,
                response_timeout=response_timeout,
                pool_options=pool_options,
            )
            self._database = self._own_database
        else:
            self._own_database = None
            self._database = shared_database(source)
            if (schema, table_prefix, retry_timeout, response_timeout, pool_options) != (None, "strands_", 30, 30, {}):
                raise TypeError("a storage on a repository shares its database; pass the options to the repository")
        normalized = _normalize_prefix(prefix).rstrip("/")
        self._prefix = f"{normalized}/" if normalized else ""
        _check_characters("prefix", self._prefix)
        self._search_limit = search_limit
        self._stop_words = stop_words(text_search_config)
        self._session_id = session_id
        self._payloads = shared_payloads(source)
        self._leases = None if session_id is None else shared_leases(source, session_id)
        seen = SeenWrites() if guard_overwrites else None
        self._reader = ValueReader(self._database, text_search_config=text_search_config, seen=seen)
        self._writer = ValueWriter(
            self._database,
            scope=self._prefix,
            text_search_config=text_search_config,
            seen=seen,
            session_id=session_id,
        )

    def ensure_schema(self) -> None:
        """Create or upgrade the tables, including those of sessions, as ``PostgresSessionRepository.ensure_schema``.

        Raises:
            PostgresStorageError: In place of that method's errors, which are its cause.
        """
        with _translate_errors():
            Migrator(self._database).apply()

    def close(self) -> None:
        """Close the pool, if this storage was built from a DSN."""
        if self._own_database is not None:
            self._own_database.close()

    def __repr__(self) -> str:
        database = self._database
        session = "" if self._session_id is None else f" session_id={self._session_id!r}"
        return (
            f"<{type(self).__name__} {database.address} schema={database.schema} table_prefix={database.table_prefix} "
            f"prefix={self._prefix!r}{session}>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def namespace(self, prefix: str) -> Self:
        """Return a view of the values whose keys begin with ``prefix`` and a ``/``, under keys without these.

        The view shares this storage's pool, chunks, guard and session, does not have to be closed, and searches only
        its own values.
        """
        normalized = _normalize_prefix(prefix).rstrip("/")
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._own_database = None
        view._prefix = f"{self._prefix}{normalized}/" if normalized else self._prefix
        view._namespaced = _NAMESPACED
        return view

    async def write(self, key: str, data: bytes) -> None:
        """Store a value, replacing any earlier one.

        Raises:
            StorageError: The key is refused, or the value has more than 256 MiB.
            StorageConflictError: Another writer came first, and nothing was stored.
            PostgresStorageError: The session's lease was lost, and nothing was stored; or the database failed.
        """
        full_key = self._full_key(key)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        _check_size(key, data)
        value = bytes(data)
        term = self._term()

        def store() -> None:
            encoded = self._payloads.encode_bytes(value, self._session_id, full_key)
            _check_size(key, encoded)
            self._writer.write(full_key, encoded, searchable_text(full_key, encoded), term=term)

        await self._in_worker(store)

    async def read(self, key: str) -> bytes | None:
        """Return a value as it was written, or None if there is none.

        Raises:
            StorageError: The key is refused.
            PostgresStorageError: The database failed.
        """
        full_key = self._full_key(key)

        def load() -> bytes | None:
            value = self._reader.read(full_key)
            return None if value is None else self._decoded(full_key, value)

        return await self._in_worker(load)

    async def delete(self, key: str) -> None:
        """Delete a value, if there is one.

        Raises:
            StorageError: The key is refused.
            StorageConflictError: Another writer came first, and nothing was deleted.
            PostgresStorageError: The session's lease was lost, and nothing was deleted; or the database failed.
        """
        await self._in_worker(partial(self._writer.delete, self._full_key(key), term=self._term()))

    async def list(self, query: str = "") -> builtins.list[str]:
        """Return the keys that begin with a string, in the order of Python's strings.

        Raises:
            StorageError: No key can begin with that string.
        """
        prefix = self._prefix + _normalize_prefix(query)
        _check_characters("prefix", prefix)
        keys = await self._in_worker(partial(self._reader.keys, prefix))
        return [key[len(self._prefix) :] for key in keys]

    async def search(self, query: str) -> "builtins.list[StorageSearchResult]":
        """Return the values that have any word of the query, best match first, with their data.

        A value is found if it is UTF-8 text of up to 64 KB without NUL: by its own words and those of the last part of
        its key. It ranks higher the more of the query's words it has and the more often, by PostgreSQL's ``ts_rank``.
        With the configuration ``simple``, the stop words of Strands' keyword search are ignored (there are some from
        1.62 on); other configurations have stop words of their own. Only the first 64 words of a query count.
        """
        words = tsquery(query, self._stop_words)
        if not words:
            return []

        def find() -> "builtins.list[StorageSearchResult]":
            hits = self._reader.search(self._prefix, words, self._search_limit)
            return [
                StorageSearchResult(hit.key[len(self._prefix) :], hit.score, self._decoded(hit.key, hit.data))
                for hit in hits
            ]

        return await self._in_worker(find)

    def _decoded(self, full_key: str, value: bytes) -> bytes:
        return self._payloads.decode_bytes(value, self._session_id, full_key)

    async def _in_worker(self, work: Callable[[], _T]) -> _T:
        with _translate_errors():
            return await self._database.workers.run_async(work)

    def _term(self) -> UUID | None:
        """Return the term of the lease that a write must carry; None if this process holds none."""
        if self._leases is None or self._session_id is None:
            return None
        return self._leases.term(self._session_id)

    def _full_key(self, key: str) -> str:
        full_key = self._prefix + _normalize_key(key)
        _check_characters("key", full_key)
        if len(full_key.encode()) > MAX_KEY_SIZE:
            raise PostgresStorageError(f"a key may have {MAX_KEY_SIZE} bytes of UTF-8, not {len(full_key.encode())}")
        return full_key


def _check_size(key: str, value: bytes | bytearray | memoryview) -> None:
    if len(value) > MAX_VALUE_SIZE:
        raise PostgresStorageError(f"writing {key!r}: a value may have {MAX_VALUE_SIZE} bytes, not {len(value)}")


def _check_characters(field: str, text: str) -> None:
    if not is_storable(text):
        raise PostgresStorageError(f"a {field} must not contain NUL or a lone surrogate")


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except PostgresStorageError:
        raise
    except StrandsPsycopgError as error:
        raise PostgresStorageError(str(error)) from error
