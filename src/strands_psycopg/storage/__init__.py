"""Strands' ``Storage`` on PostgreSQL: bytes under keys, for snapshots, offloaded results and memories."""

import builtins
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

from psycopg import Connection
from psycopg_pool import ConnectionPool
from typing_extensions import Self

from strands_psycopg import worker
from strands_psycopg.database import Database
from strands_psycopg.errors import PostgresStorageError, StrandsPsycopgError
from strands_psycopg.migrator import Migrator
from strands_psycopg.storage.text_search import searchable_text, tsquery
from strands_psycopg.storage.values import LARGEST_VALUE, LONGEST_KEY, Values

try:
    from strands.storage.storage import _NAMESPACED, Storage, StorageSearchResult, _normalize_key, _normalize_prefix
except ImportError:  # before strands-agents 1.54
    Storage = StorageSearchResult = object  # type: ignore[assignment, misc]
    _NAMESPACED = None

_T = TypeVar("_T")

_NO_WORDS: frozenset[str] = frozenset()

try:
    from strands.storage.search.keyword import STOP_WORDS
except ImportError:  # before strands-agents 1.62
    STOP_WORDS = _NO_WORDS


class HasDatabase(Protocol):
    """An object whose database a storage can share, such as a ``PostgresSessionRepository``."""

    _database: Database


class PostgresStorage(Storage):
    """Values in PostgreSQL; one object per process serves all its agents, threads and event loops.

    Keys are normalised and refused as by Strands' own backends: runs of ``/`` count as one, those at the ends do not
    count, backslashes and ``..`` are refused. They also have at most 2,048 bytes of UTF-8, the prefix included, and no
    NUL or lone surrogate.

    A value above 8 KB is stored in chunks that its content determines, each once for all values under ``prefix``: the
    next snapshot of a long conversation takes only what is new. Calls wait for the database in worker threads, never on
    the event loop. Nothing connects before the first of them. Each can raise ``StorageError``; if it came from the
    database, it is a ``PostgresStorageError``.

    Args:
        source: As ``conninfo`` of ``PostgresSessionRepository``; or such a repository, whose pool, schema, table prefix
            and timeouts are shared.
        schema: The schema of the tables; ``public`` if None.
        table_prefix: What the name of every table begins with.
        prefix: Put before every key, with a ``/``. Storages of different prefixes share nothing.
        text_search_config: PostgreSQL's text search configuration by which ``search`` compares words, such as
            ``english``; values that another one has stored are found by its words.
        search_limit: How many values ``search`` gives at most.
        retry_timeout: For how many seconds a statement is tried again while the database is away.
        response_timeout: After how many seconds without an answer a connection counts as lost. A value of hundreds of
            megabytes takes longer than these.
        **pool_options: As of ``PostgresSessionRepository``.

    Raises:
        ImportError: The installed strands-agents has no ``Storage`` with a search; 1.54 is needed.
        TypeError: ``source`` is of a wrong type, or brings a pool and comes with options for one.
        ValueError: An argument is out of range, or the DSN cannot be parsed.
    """

    # Strands puts a view of its own around a storage without its mark.
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
        retry_timeout: float = 30.0,
        response_timeout: float = 30.0,
        **pool_options: Any,
    ) -> None:
        if _NAMESPACED is None:
            raise ImportError("PostgresStorage needs strands-agents 1.54 or newer: pip install -U strands-agents")
        if isinstance(search_limit, bool) or not isinstance(search_limit, int) or search_limit < 1:
            raise ValueError(f"search_limit must be an integer from 1 up, not {search_limit!r}")
        # PostgreSQL takes NULL too, and then finds nothing.
        if not isinstance(text_search_config, str) or not text_search_config or "\0" in text_search_config:
            raise ValueError(
                "text_search_config must be the name of a text search configuration, such as 'simple', not "
                f"{text_search_config!r}"
            )
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
            self._database = _shared(source)
            if (schema, table_prefix, retry_timeout, response_timeout, pool_options) != (None, "strands_", 30, 30, {}):
                raise TypeError("a storage on a repository shares its database; give the options to the repository")
        normalized = _normalize_prefix(prefix).rstrip("/")
        self._prefix = f"{normalized}/" if normalized else ""
        _check_characters("prefix", self._prefix)
        self._search_limit = search_limit
        self._stop_words = STOP_WORDS if text_search_config == "simple" else _NO_WORDS
        self._values = Values(self._database, scope=self._prefix, text_search_config=text_search_config)

    def ensure_schema(self) -> None:
        """Create or upgrade the tables, those of sessions too; as ``PostgresSessionRepository.ensure_schema``.

        Raises:
            PostgresStorageError: As there ``SchemaError``, and what reaching the database raises.
        """
        with _translated():
            Migrator(self._database).apply()

    def close(self) -> None:
        """Close the pool, if this storage was built from a DSN."""
        if self._own_database is not None:
            self._own_database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def namespace(self, prefix: str) -> Self:
        """Give a view of the values whose keys begin with ``prefix`` and a ``/``, under keys without them.

        It shares this storage's pool and chunks, is not closed, and searches its own values only.
        """
        normalized = _normalize_prefix(prefix).rstrip("/")
        view = copy.copy(self)
        view._own_database = None
        view._prefix = f"{self._prefix}{normalized}/" if normalized else self._prefix
        view._namespaced = _NAMESPACED
        return view

    async def write(self, key: str, data: bytes) -> None:
        """Store a value, whatever was there.

        Raises:
            StorageError: The key cannot be stored, or the value has more than 256 MiB.
        """
        whole_key = self._whole_key(key)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        if len(data) > LARGEST_VALUE:
            raise PostgresStorageError(f"writing {key!r}: a value may have {LARGEST_VALUE} bytes, not {len(data)}")
        value = bytes(data)
        await _in_worker(lambda: self._values.write(whole_key, value, searchable_text(whole_key, value)))

    async def read(self, key: str) -> bytes | None:
        """Give a value, byte for byte, or None if there is none.

        Raises:
            StorageError: The key could not have been stored.
        """
        return await _in_worker(partial(self._values.read, self._whole_key(key)))

    async def delete(self, key: str) -> None:
        """Delete a value, if there is one.

        Raises:
            StorageError: The key could not have been stored.
        """
        await _in_worker(partial(self._values.delete, self._whole_key(key)))

    async def list(self, query: str = "") -> builtins.list[str]:
        """Give the keys that begin with a string, sorted as Python sorts strings.

        Raises:
            StorageError: No key can begin with it.
        """
        prefix = self._prefix + _normalize_prefix(query)
        _check_characters("prefix", prefix)
        keys = await _in_worker(partial(self._values.keys, prefix))
        return [key[len(self._prefix) :] for key in keys]

    async def search(self, query: str) -> "builtins.list[StorageSearchResult]":
        """Find values by their words: those that have any of the query's, best first, with their data.

        Found are values that are UTF-8 text of up to 64 KB without NUL, by their own words and those of the last part
        of their key. The more of the query's words a value has, and the more often, the better, as PostgreSQL's
        ``ts_rank`` has it. With the configuration ``simple`` the stop words of Strands' keyword search do not count (it
        has some from 1.62 on); others have stop words of their own. A query's first 64 words count.
        """
        words = tsquery(query, self._stop_words)
        if not words:
            return []
        hits = await _in_worker(partial(self._values.search, self._prefix, words, self._search_limit))
        return [StorageSearchResult(hit.key[len(self._prefix) :], hit.score, hit.data) for hit in hits]

    def _whole_key(self, key: str) -> str:
        whole_key = self._prefix + _normalize_key(key)
        _check_characters("key", whole_key)
        if len(whole_key.encode()) > LONGEST_KEY:
            raise PostgresStorageError(f"a key may have {LONGEST_KEY} bytes of UTF-8, not {len(whole_key.encode())}")
        return whole_key


def _shared(source: object) -> Database:
    database = getattr(source, "_database", None)
    if not isinstance(database, Database):
        raise TypeError(
            "source must be a DSN, a callable that returns one, a psycopg_pool.ConnectionPool or a "
            f"PostgresSessionRepository, not {type(source).__name__}"
        )
    return database


def _check_characters(field: str, text: str) -> None:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise PostgresStorageError(f"a {field} must not contain NUL or a lone surrogate")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StrandsPsycopgError as error:
        raise PostgresStorageError(str(error)) from error


async def _in_worker(work: Callable[[], _T]) -> _T:
    with _translated():
        return await worker.run(work)
