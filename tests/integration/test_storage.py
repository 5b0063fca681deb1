import asyncio
import random
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from strands_psycopg import (
    DatabaseError,
    DatabaseUnavailableError,
    PostgresSessionRepository,
    PostgresStorage,
    PostgresStorageError,
    SchemaError,
)
from support import processes
from support.storage import needs_storage
from support.waiting import until, wait_until

pytestmark = needs_storage

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


@pytest.fixture
def storage(repository: PostgresSessionRepository) -> PostgresStorage:
    return PostgresStorage(repository)


@pytest.fixture
def options(pool_options: dict[str, Any]) -> dict[str, Any]:
    return {"min_size": 1, "max_size": 2, **pool_options}


WITHOUT_STORAGE = """
import sys
import strands
sys.modules["strands.storage.storage"] = sys.modules["strands.storage.search.keyword"] = None
import strands_psycopg
try:
    strands_psycopg.PostgresStorage("postgresql://localhost/nowhere")
except ImportError as error:
    print(error)
"""


def test_building_a_storage_on_a_strands_without_storages_raises() -> None:
    message = "PostgresStorage needs strands-agents 1.54 or newer: pip install -U strands-agents\n"
    assert processes.run_younger(WITHOUT_STORAGE) == (0, message, "")


def test_storage_on_a_repository_shares_its_pool_and_leaves_it_open(dsn: str, options: dict[str, Any]) -> None:
    with PostgresSessionRepository(dsn, **options) as repository:
        with PostgresStorage(repository) as storage:
            assert storage._database is repository._database
            run(storage.write("k", b"1"))
        assert repository.read_session("missing") is None


@pytest.mark.parametrize(
    "options",
    [{"schema": "x"}, {"table_prefix": "x_"}, {"retry_timeout": 1.0}, {"response_timeout": 1.0}, {"max_size": 3}],
    ids=str,
)
def test_storage_on_a_repository_takes_no_options_for_a_database(options: dict[str, Any]) -> None:
    with (
        PostgresSessionRepository("postgresql://localhost/nowhere") as repository,
        pytest.raises(TypeError, match="pass the options to the repository"),
    ):
        PostgresStorage(repository, **options)


@pytest.mark.parametrize("source", [None, 42, object()])
def test_other_sources_are_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="source must be a DSN, a callable"):
        PostgresStorage(source)


@pytest.mark.parametrize("search_limit", [0, -1, True, 1.5, "3"])
def test_search_limit_must_be_a_positive_integer(search_limit: Any) -> None:
    with pytest.raises(ValueError, match="search_limit must be a positive integer"):
        PostgresStorage("postgresql://localhost/nowhere", search_limit=search_limit)


def test_storage_from_a_dsn_connects_at_first_use_and_closes_its_pool(
    direct_dsn: str, connection: psycopg.Connection[Any]
) -> None:
    def connections() -> int:
        ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'here'"
        return int(connection.execute(ours).fetchall()[0][0])

    with PostgresStorage(direct_dsn, kwargs={"application_name": "here"}) as storage:
        assert connections() == 0
        run(storage.write("k", b"1"))
        assert connections() > 0
        storage.namespace("a").close()
        assert run(storage.read("k")) == b"1"
    wait_until(lambda: connections() == 0)


def test_storage_from_a_callable(dsn: str, options: dict[str, Any]) -> None:
    with PostgresStorage(lambda: dsn, **options) as storage:
        run(storage.write("k", b"1"))
        assert run(storage.read("k")) == b"1"


@pytest.mark.parametrize("isolation", list(psycopg.IsolationLevel), ids=lambda level: level.name)
def test_storage_on_a_callers_pool_works_with_any_settings(
    dsn: str, options: dict[str, Any], isolation: psycopg.IsolationLevel
) -> None:
    def configure(connection: psycopg.Connection[Any]) -> None:
        connection.isolation_level = isolation

    kwargs = {**options.pop("kwargs", {}), "row_factory": dict_row}
    with ConnectionPool(dsn, kwargs=kwargs, configure=configure, **options) as pool:
        storage = PostgresStorage(pool)
        for data in (b"small", bytes(100_000), b"\1" * 100_000, b"small again"):
            run(storage.write("k", data))
            assert run(storage.read("k")) == data
        assert [result.key for result in run(storage.search("small"))] == ["k"]
        run(storage.delete("k"))
        storage.close()
        with pool.connection() as connection:
            assert connection.isolation_level == isolation


def test_schemas_table_prefixes_and_prefixes_keep_storages_apart(
    dsn: str, options: dict[str, Any], repository: PostgresSessionRepository
) -> None:
    with (
        PostgresStorage(dsn, schema="elsewhere", **options) as in_schema,
        PostgresStorage(dsn, table_prefix="zz_", **options) as in_tables,
    ):
        scoped = [PostgresStorage(repository, prefix="tenant", owner=owner) for owner in (None, "a")]
        storages = [PostgresStorage(repository), *scoped, in_schema, in_tables]
        for number, storage in enumerate(storages):
            storage.ensure_schema()
            run(storage.write("k", b"%d" % number * 40_000))
        assert [run(storage.read("k")) for storage in storages] == [b"%d" % number * 40_000 for number in range(5)]
        assert [run(storage.list("")) for storage in storages] == [["k"]] * 5
        assert run(storages[1].search("0")) == []


@pytest.mark.parametrize("prefix", ["tenants/1", "/tenants//1/", "tenants/1/"])
def test_storages_whose_prefixes_differ_only_in_slashes_have_the_same_values(
    repository: PostgresSessionRepository, prefix: str
) -> None:
    run(PostgresStorage(repository, prefix=prefix).write("k", b"1"))
    assert run(PostgresStorage(repository, prefix="tenants/1").read("k")) == b"1"


def test_storages_of_prefixes_and_owners_that_look_alike_do_not_see_each_other(
    repository: PostgresSessionRepository,
) -> None:
    names: list[dict[str, Any]] = [
        {},
        {"prefix": "a"},
        {"prefix": "a/b"},
        {"owner": "a"},
        {"owner": "a/"},
        {"owner": "a", "prefix": "b"},
        {"owner": "a/", "prefix": "b"},
        {"owner": "a//b"},
    ]
    for large in (1, 40_000):
        for name in names:
            run(PostgresStorage(repository, **name).namespace("n").write("k", str(name).encode() * large))
        for name in names:
            storage = PostgresStorage(repository, **name)
            assert run(storage.list("")) == ["n/k"]
            assert run(storage.read("n/k")) == str(name).encode() * large
            assert run(storage.read("a/n/k")) is None


def test_the_owner_of_a_storage_is_in_its_rows(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    for key, size in (("small", 1), ("large", 40_000)):
        run(PostgresStorage(repository, owner="alice", prefix="notes").write(key, b"x" * size))
        run(PostgresStorage(repository, prefix="notes").write(key, b"x" * size))
    rows = connection.execute("SELECT scope, owner, key FROM strands_storage ORDER BY scope, key").fetchall()
    assert rows == [
        *[("alice//notes", "alice", key) for key in ("large", "small")],
        *[("notes", None, key) for key in ("large", "small")],
    ]


@pytest.mark.parametrize("owner", ["", "o" * 256, "a\0b", "\ud800", 5, b"a"])
def test_an_owner_must_be_valid(owner: Any) -> None:
    with pytest.raises(ValueError, match="owner must "):
        PostgresStorage("postgresql://localhost/nowhere", owner=owner)


def test_a_key_and_what_is_before_it_have_a_common_limit(repository: PostgresSessionRepository) -> None:
    storage = PostgresStorage(repository, owner="o" * 255, prefix="é" * 400)
    limit = 2048 - 255 - 2 - 800
    run(storage.write("k" * limit, b"1"))
    assert run(storage.list("")) == ["k" * limit]
    message = f"a key may have up to {limit} bytes of UTF-8 in this storage, not {limit + 1}: together with its owner"
    with pytest.raises(PostgresStorageError, match=message):
        run(storage.write("k" * (limit + 1), b"1"))
    with pytest.raises(PostgresStorageError, match="a key may have up to 0 bytes"):
        run(PostgresStorage(repository, prefix="p" * 3000).read("k"))


@pytest.mark.parametrize("key", ["a\0b", "\ud800", "k" * 2049, "é" * 1025])
def test_keys_that_postgresql_cannot_hold_are_refused(storage: PostgresStorage, key: str) -> None:
    for call in (storage.write(key, b"1"), storage.read(key), storage.delete(key)):
        with pytest.raises(PostgresStorageError, match="a key m"):
            run(call)


def test_the_longest_keys_are_stored_and_listed(storage: PostgresStorage) -> None:
    keys = ["k" * 2048, "\U0010ffff" * 512, "\U0010ffff"]
    for key in keys:
        run(storage.write(key, b"1"))
    assert run(storage.list("")) == keys[:1] + keys[:0:-1]
    assert run(storage.list("\U0010ffff")) == keys[:0:-1]


@pytest.mark.parametrize("prefix", ["a\0b", "\ud800"])
def test_prefixes_that_no_key_can_have_are_refused(storage: PostgresStorage, prefix: str) -> None:
    with pytest.raises(PostgresStorageError, match="a prefix must not contain"):
        run(storage.list(prefix))
    with pytest.raises(PostgresStorageError, match="a prefix must not contain"):
        run(storage.namespace(prefix).list(""))
    with pytest.raises(PostgresStorageError, match="a prefix must not contain"):
        PostgresStorage("postgresql://localhost/nowhere", prefix=prefix)


@pytest.mark.parametrize("data", ["text", 5, None, [1]])
def test_values_must_be_bytes(storage: PostgresStorage, data: Any) -> None:
    with pytest.raises(TypeError, match="data must be bytes"):
        run(storage.write("k", data))


def test_any_kind_of_bytes_is_stored(storage: PostgresStorage) -> None:
    for data in (b"1", bytearray(b"2"), memoryview(b"3xx")[:1]):
        run(storage.write("k", data))  # type: ignore[arg-type]
        assert run(storage.read("k")) == bytes(data)


def test_values_above_the_limit_are_refused(storage: PostgresStorage) -> None:
    with pytest.raises(PostgresStorageError, match="a value may have up to 268435456 bytes, not 268435457"):
        run(storage.write("k", bytes(2**28 + 1)))


def test_missing_tables_are_a_storage_error_that_says_to_create_them(empty_dsn: str, options: dict[str, Any]) -> None:
    with PostgresStorage(empty_dsn, **options) as storage:
        with pytest.raises(PostgresStorageError, match=r"call ensure_schema\(\)") as caught:
            run(storage.write("k", b"1"))
        assert isinstance(caught.value.__cause__, SchemaError)
        storage.ensure_schema()
        run(storage.write("k", b"1"))


def test_an_unavailable_database_is_a_storage_error_that_shows_no_password() -> None:
    from strands.types.exceptions import StorageError

    dsn = "postgresql://user:s3cret@127.0.0.1:1/agents"
    with PostgresStorage(dsn, retry_timeout=0) as storage:
        for call in (
            storage.write("k", b"1"),
            storage.read("k"),
            storage.delete("k"),
            storage.list(""),
            storage.search("k"),
        ):
            with pytest.raises(StorageError) as caught:
                run(call)
            assert isinstance(caught.value, PostgresStorageError)
            assert isinstance(caught.value.__cause__, DatabaseUnavailableError)
            assert "s3cret" not in str(caught.value)
        with pytest.raises(PostgresStorageError):
            storage.ensure_schema()


@pytest.mark.parametrize("configuration", [None, "", 5, "a\0b"], ids=repr)
def test_a_text_search_configuration_must_be_a_name(configuration: Any) -> None:
    with pytest.raises(ValueError, match="text_search_config must be the name of a text search configuration"):
        PostgresStorage("postgresql://localhost/nowhere", text_search_config=configuration)


def test_an_unknown_text_search_configuration_is_a_storage_error_that_names_it(
    repository: PostgresSessionRepository,
) -> None:
    storage = PostgresStorage(repository, text_search_config="klingon")
    message = (
        r'text search configuration "klingon" does not exist .*; use one that exists in the database, or create it'
    )
    with pytest.raises(PostgresStorageError, match=message) as caught:
        run(storage.write("k", b"nuqneH"))
    assert isinstance(caught.value.__cause__, DatabaseError)


def test_a_text_search_configuration_of_a_language_finds_other_forms_of_a_word(
    repository: PostgresSessionRepository,
) -> None:
    storage = PostgresStorage(repository, text_search_config="english")
    run(storage.write("k", b"She was running to the houses."))
    assert [result.key for result in run(storage.search("run to a house"))] == ["k"]
    assert run(storage.search("she was the")) == []


def test_search_returns_the_best_matches_up_to_its_limit(repository: PostgresSessionRepository) -> None:
    storage = PostgresStorage(repository, search_limit=3)
    for number in range(10):
        run(storage.write(f"k{number}", b"apple " * (number == 7) + b"apple pie"))
    results = run(storage.search("apple"))
    assert [result.key for result in results] == ["k7", "k0", "k1"]
    assert [result.data for result in results] == [b"apple apple pie", b"apple pie", b"apple pie"]


def test_a_long_text_is_found_with_its_data_and_a_longer_one_is_not(storage: PostgresStorage) -> None:
    text = "".join(f"word{number} " for number in range(8000)).encode()
    run(storage.write("long", text[:65_536]))
    run(storage.write("longer", text[:65_537]))
    results = run(storage.search("word17"))
    assert [(result.key, result.data) for result in results] == [("long", text[:65_536])]
    assert run(storage.list("")) == ["long", "longer"]
    assert run(storage.read("longer")) == text[:65_537]


@pytest.mark.parametrize("data", [b"apple\0", b"apple \xff", bytes(100_000) + b"apple"])
def test_values_that_are_not_text_are_stored_and_not_found(storage: PostgresStorage, data: bytes) -> None:
    run(storage.write("k", data))
    assert run(storage.read("k")) == data
    assert run(storage.list("")) == ["k"]
    assert run(storage.search("apple")) == []


def test_a_word_too_long_for_the_index_is_found_with_the_others(storage: PostgresStorage) -> None:
    run(storage.write("k", b"apple " + b"x" * 60_000))
    assert [result.key for result in run(storage.search("apple " + "x" * 60_000))] == ["k"]


def test_one_storage_works_from_many_event_loops_at_once(storage: PostgresStorage) -> None:
    def work(number: int) -> None:
        for turn in range(5):
            run(storage.write(f"k/{number}", b"%d" % turn))
            assert run(storage.read(f"k/{number}")) == b"%d" % turn

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(run(storage.list("k/"))) == 20


@pytest.fixture
def blocked(storage: PostgresStorage, connection: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    """A connection that has locked the value ``k``, so that a write of it waits."""
    run(storage.write("k", b"1"))
    with connection.transaction():
        connection.execute("SELECT FROM strands_storage WHERE key = 'k' FOR UPDATE")
        yield connection


def test_a_value_larger_than_the_buffers_of_a_socket_is_stored(storage: PostgresStorage) -> None:
    value = random.Random(1).randbytes(8_000_000)
    run(storage.write("k", value))
    assert run(storage.read("k")) == value


@pytest.mark.parametrize("size", [1, 100_000])
def test_the_event_loop_runs_on_while_a_call_waits_for_the_database(
    storage: PostgresStorage, blocked: psycopg.Connection[Any], watcher: psycopg.Connection[Any], size: int
) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    async def work() -> None:
        write = asyncio.create_task(storage.write("k", b"2" * size))
        await until(lambda: watcher.execute(waiting).fetchall()[0][0])
        assert await storage.read("k") == b"1"
        blocked.execute("ROLLBACK")
        await write

    run(work())
    assert run(storage.read("k")) == b"2" * size
