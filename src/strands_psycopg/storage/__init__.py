"""Strands' ``Storage`` on PostgreSQL: bytes stored under keys, for snapshots, offloaded results and memories."""

import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from psycopg_pool import ConnectionPool
from typing_extensions import Self, Unpack

from strands_psycopg.arguments import check_duration, check_id, is_storable
from strands_psycopg.closeable import Closeable
from strands_psycopg.database import Database
from strands_psycopg.errors import PostgresStorageError, SessionNotFoundError, StrandsPsycopgError
from strands_psycopg.lease import Leases
from strands_psycopg.migrator import Migrator
from strands_psycopg.payload import Payloads
from strands_psycopg.pool_options import PoolOptions
from strands_psycopg.source import HasDatabase, open_database, shared_payloads
from strands_psycopg.storage.chunk_store import ChunkStore
from strands_psycopg.storage.purging import StoragePurgeResult, ValuePurge
from strands_psycopg.storage.scope import MAX_KEY_SIZE, Scope
from strands_psycopg.storage.seen_writes import SeenWrites
from strands_psycopg.storage.text_search import searchable_text
from strands_psycopg.storage.value_reader import ValueReader, ValueSummary
from strands_psycopg.storage.value_writer import MAX_VALUE_SIZE, ValueWriter
from strands_psycopg.uncopyable import Uncopyable
from strands_psycopg.words import check_text_search_config, stop_words, tsquery

try:
    from strands.storage.storage import _NAMESPACED, Storage, StorageSearchResult, _normalize_key, _normalize_prefix
except ImportError:  # before strands-agents 1.54
    Storage = StorageSearchResult = object  # type: ignore[assignment, misc]
    _NAMESPACED = None

_T = TypeVar("_T")


class _Options(NamedTuple):
    text_search_config: str
    search_limit: int
    expires_in: float | None


class PostgresStorage(Uncopyable, Closeable, Storage):
    """Strands' ``Storage`` in PostgreSQL; one object per process serves all its agents, threads and event loops.

    Keys are normalised and refused as by Strands' own backends: repeated slashes count as one, leading and trailing
    slashes are ignored, backslashes and ``..`` are refused. In addition, a key has no NUL or lone surrogate, and at
    most 2,048 bytes of UTF-8 together with the storage's owner and prefix.

    A storage has the values that were written with the same owner and prefix, and no others: storages with different
    prefixes do not see each other's keys, even if one prefix begins with the other. To share values, use one prefix and
    ``namespace``. A value above 32 KB is split into content-defined chunks, each of which is stored once for all values
    of the storage: the next snapshot of a long conversation adds only what is new.

    Calls wait for the database in worker threads, never on the event loop. Nothing connects before the first call. Each
    call can raise ``StorageError``; if the cause is in the database, it is a ``PostgresStorageError``.

    By default the last writer of a key wins. With ``guard_overwrites`` the storage remembers for each key which write
    it has read or made last. If another write or a deletion came after that one, ``write`` and ``delete`` raise
    ``StorageConflictError`` and store nothing, until the key is read again; deleting a missing value is not an error.
    A key that was found missing, or was deleted, must still be missing. A key that was neither read nor written is
    written without a check; ``list`` and ``search`` do not count as reading. A storage and its namespaces are one
    writer: managers that must not overwrite each other need a storage each, which may share a repository. The storage
    keeps one UUID for each key that it has seen, as long as it lives.

    With ``expires_in``, the values that this storage writes expire after that time, by the server's clock. ``read``,
    ``list`` and ``search`` do not find expired values, of whatever storage, and ``purge`` deletes them. To a guard they
    are missing; a storage that has seen such a value may still replace it until it is purged.

    The ``payload_codec`` of a repository also encodes and decodes the bytes of its storages. Keys stay as they are. A
    search looks in what the codec returned, so it finds nothing unless that contains words. Which chunks are equal
    depends on the codec, too: an encrypted value shares none.

    The storage of a session is the one that ``PostgresSessionRepository.storage`` returns.

    Args:
        source: As ``conninfo`` of ``PostgresSessionRepository``; or such a repository, whose pool, schema, table prefix
            and timeouts this storage shares.
        schema: The schema of the tables; ``public`` if None.
        table_prefix: What the name of every table begins with.
        prefix: Distinguishes the values of this storage from those of others. Slashes are normalised as in keys.
        owner: Whose values they are, as the application names its users: 1 to 255 characters. Storages with the same
            prefix and different owners, or none, have different values.
        text_search_config: The text search configuration of PostgreSQL by which ``search`` compares words, such as
            ``english``; ``simple`` compares words as they are. Values written with another one are found by the words
            of that one.
        search_limit: The maximum number of values that ``search`` returns.
        guard_overwrites: Whether to raise ``StorageConflictError`` if another writer came first.
        expires_in: The time after which values expire, as a timedelta or in seconds, up to 36,500 days; None if they
            never do. Writing a value again starts it anew.
        retry_timeout: As for ``PostgresSessionRepository``.
        response_timeout: After how many seconds without a response a connection counts as lost. Values above some
            50 MB need a longer one than the default, and those of hundreds of megabytes a longer ``retry_timeout`` too.
        **pool_options: As for ``PostgresSessionRepository``.

    Raises:
        ImportError: The installed strands-agents is older than 1.54, whose ``Storage`` is the first with a search.
        TypeError: ``source`` is of a wrong type, or has a pool already and options for one are passed too.
        ValueError: An argument is out of range, or the DSN cannot be parsed.
    """

    _why_uncopyable = "has connections; share it or its namespaces within a process, and build one in another process"

    # Strands wraps a storage without its marker in a namespace of its own.
    _namespaced: object = None

    def __init__(
        self,
        source: str | Callable[[], str] | ConnectionPool[Any] | HasDatabase,
        *,
        schema: str | None = None,
        table_prefix: str = "strands_",
        prefix: str = "",
        owner: str | None = None,
        text_search_config: str = "simple",
        search_limit: int = 100,
        guard_overwrites: bool = False,
        expires_in: timedelta | float | None = None,
        retry_timeout: float | None = None,
        response_timeout: float = 30.0,
        **pool_options: Unpack[PoolOptions],
    ) -> None:
        _check_strands()
        normalized = _normalize_prefix(prefix).rstrip("/")
        _check_characters("prefix", normalized)
        # A prefix contains no //, so that no two owners and prefixes have the same scope.
        scope = Scope(normalized if owner is None else f"{check_id('owner', owner)}//{normalized}", owner)
        options = _check_options(text_search_config, search_limit, expires_in)
        database, is_own = open_database(
            source,
            schema=schema,
            table_prefix=table_prefix,
            retry_timeout=retry_timeout,
            response_timeout=response_timeout,
            pool_options=pool_options,
        )
        self._own_database: Database | None = database if is_own else None
        self._shown = f"prefix={normalized!r}" if owner is None else f"prefix={normalized!r} owner={owner!r}"
        seen = SeenWrites() if guard_overwrites else None
        self._build(database, scope, shared_payloads(source), None, seen, options)

    def _build(
        self,
        database: Database,
        scope: Scope,
        payloads: Payloads,
        leases: Leases | None,
        seen: SeenWrites | None,
        options: _Options,
    ) -> None:
        self._database = database
        self._scope = scope
        self._payloads = payloads
        self._leases = leases
        # What the keys of a view begin with.
        self._namespace = ""
        self._search_limit = options.search_limit
        self._stop_words = stop_words(options.text_search_config)
        chunks = ChunkStore(database, scope)
        self._reader = ValueReader(database, scope, text_search_config=options.text_search_config, seen=seen)
        self._writer = ValueWriter(
            database,
            scope,
            chunks,
            text_search_config=options.text_search_config,
            expires_in=options.expires_in,
            seen=seen,
        )
        self._purge = ValuePurge(database, scope, chunks)

    def ensure_schema(self) -> None:
        """Create or upgrade the tables, including those of sessions, as ``PostgresSessionRepository.ensure_schema``.

        Raises:
            PostgresStorageError: In place of that method's errors, which are its cause.
        """
        with _translate_errors(self._scope):
            Migrator(self._database).apply()

    def close(self) -> None:
        """Close the pool, if this storage was built from a DSN."""
        if self._own_database is not None:
            self._own_database.close()

    def __repr__(self) -> str:
        database = self._database
        namespace = f" namespace={self._namespace[:-1]!r}" if self._namespace else ""
        return (
            f"<{type(self).__name__} {database.address} schema={database.schema} table_prefix={database.table_prefix} "
            f"{self._shown}{namespace}>"
        )

    def namespace(self, prefix: str) -> Self:
        """Return a view of the values whose keys begin with ``prefix`` and a ``/``, under keys without these.

        The view shares this storage's pool, chunks, guard, expiry and session, does not have to be closed, and searches
        and purges only its own values.
        """
        normalized = _normalize_prefix(prefix).rstrip("/")
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._own_database = None
        view._namespace = f"{self._namespace}{normalized}/" if normalized else self._namespace
        view._namespaced = _NAMESPACED
        return view

    async def write(self, key: str, data: bytes) -> None:
        """Store a value, replacing any earlier one.

        Raises:
            StorageError: The key is refused, or the value has more than 256 MiB.
            StorageConflictError: Another writer came first, and nothing was stored.
            PostgresStorageError: The session's lease was lost, and nothing was stored; or the database failed.
            TypeError: ``data`` is not bytes.
        """
        full_key = self._full_key(key)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        _check_size(key, data)
        value = bytes(data)
        term = self._term()

        def store() -> None:
            encoded = self._payloads.encode_bytes(value, self._scope.session_id, self._scope.payload_key(full_key))
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
        prefix = self._namespace + _normalize_prefix(query)
        _check_characters("prefix", prefix)
        keys = await self._in_worker(partial(self._reader.keys, prefix))
        return [key[len(self._namespace) :] for key in keys]

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
            hits = self._reader.search(self._namespace, words, self._search_limit)
            return [
                StorageSearchResult(hit.key[len(self._namespace) :], hit.score, self._decoded(hit.key, hit.data))
                for hit in hits
            ]

        return await self._in_worker(find)

    def purge(
        self, *, idle_for: timedelta | float | None = None, batch_size: int = 1000, dry_run: bool = False
    ) -> StoragePurgeResult:
        """Delete this storage's expired and idle values, in batches, and return how much was deleted.

        It waits for the database in the calling thread, so do not call it on an event loop. A view deletes only its own
        values. Values that are being written are kept. Any number of processes may purge at once. A batch whose
        acknowledgement was lost is not counted.

        Args:
            idle_for: Also delete values that were not written for this time, as a timedelta or in seconds; None to
                delete only those that have expired.
            batch_size: The maximum number of values per transaction, from 1 to 10,000. If they are large, a transaction
                deletes fewer.
            dry_run: Only count the values that would be deleted.

        Raises:
            ValueError: ``idle_for`` or ``batch_size`` is out of range.
            PostgresStorageError: The session's lease was lost, or the database failed. Batches before that are deleted.
        """
        with _translate_errors(self._scope):
            batches = self._purge.run(
                self._namespace, idle_for=idle_for, batch_size=batch_size, dry_run=dry_run, term=self._term()
            )
            return sum(batches, StoragePurgeResult())

    def _decoded(self, full_key: str, value: bytes) -> bytes:
        return self._payloads.decode_bytes(value, self._scope.session_id, self._scope.payload_key(full_key))

    async def _in_worker(self, work: Callable[[], _T]) -> _T:
        with _translate_errors(self._scope):
            return await self._database.workers.run_async(work)

    def _term(self) -> UUID | None:
        """Return the term of the lease that a write must carry; None if this process holds none."""
        return self._leases.term(self._scope.id) if self._leases is not None else None

    def _full_key(self, key: str) -> str:
        full_key = self._namespace + _normalize_key(key)
        _check_characters("key", full_key)
        size, limit = len(full_key.encode()), MAX_KEY_SIZE - len(self._scope.id.encode())
        if size > limit:
            raise PostgresStorageError(
                f"a key may have up to {max(limit, 0)} bytes of UTF-8 in this storage, not {size}: together with its "
                f"owner, prefix or session id it may have {MAX_KEY_SIZE}"
            )
        return full_key


class SessionStorage(PostgresStorage):
    """The storage of a session, as ``PostgresSessionRepository.storage`` returns it.

    Args:
        database: Where the tables are.
        payloads: What encodes and decodes the values.
        leases: The leases that this process holds on sessions.
        session_id: The session.
        owner: Who the session must belong to; None if that is not checked.
        expires_in: As for ``PostgresStorage``.
        text_search_config: As for ``PostgresStorage``.
        search_limit: As for ``PostgresStorage``.

    Raises:
        ImportError: As ``PostgresStorage``.
        ValueError: As ``PostgresStorage``.
    """

    def __init__(
        self,
        database: Database,
        payloads: Payloads,
        leases: Leases,
        session_id: str,
        *,
        owner: str | None,
        expires_in: timedelta | float | None,
        text_search_config: str,
        search_limit: int,
    ) -> None:
        _check_strands()
        options = _check_options(text_search_config, search_limit, expires_in)
        self._own_database = None
        self._shown = f"session_id={session_id!r}" if owner is None else f"session_id={session_id!r} owner={owner!r}"
        scope = Scope(session_id, owner, is_session=True)
        self._build(database, scope, payloads, leases, SeenWrites(), options)


def list_values(storage: PostgresStorage, prefix: str) -> list[ValueSummary]:
    """Return the values of a storage whose keys begin with a prefix, with their sizes, for modules of this package.

    Raises:
        StorageError: As ``PostgresStorage.list``.
    """
    prefix = _normalize_prefix(prefix)
    _check_characters("prefix", prefix)
    with _translate_errors(storage._scope):
        return storage._reader.summaries(prefix)


def _check_strands() -> None:
    if _NAMESPACED is None:
        raise ImportError("PostgresStorage needs strands-agents 1.54 or newer: pip install -U strands-agents")


def _check_options(text_search_config: object, search_limit: object, expires_in: timedelta | float | None) -> _Options:
    if isinstance(search_limit, bool) or not isinstance(search_limit, int) or search_limit < 1:
        raise ValueError(f"search_limit must be a positive integer, not {search_limit!r}")
    seconds = None if expires_in is None else check_duration("expires_in", expires_in)
    return _Options(check_text_search_config(text_search_config), search_limit, seconds)


def _check_size(key: str, value: bytes | bytearray | memoryview) -> None:
    if len(value) > MAX_VALUE_SIZE:
        raise PostgresStorageError(f"writing {key!r}: a value may have up to {MAX_VALUE_SIZE} bytes, not {len(value)}")


def _check_characters(field: str, text: str) -> None:
    if not is_storable(text):
        raise PostgresStorageError(f"a {field} must not contain NUL or a lone surrogate")


@contextmanager
def _translate_errors(scope: Scope) -> Iterator[None]:
    try:
        yield
    except PostgresStorageError:
        raise
    except SessionNotFoundError as error:
        raise PostgresStorageError(
            f"session {scope.session_id!r} does not exist, so nothing was stored; build its session manager before its "
            "storage is written"
        ) from error
    except StrandsPsycopgError as error:
        raise PostgresStorageError(str(error)) from error
