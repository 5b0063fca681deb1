"""Memories that are found by their vectors, with pgvector on the tests' own server."""

import asyncio
import json
import logging
import math
import random
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from strands_psycopg import EmbeddingError, PostgresMemoryStore, PostgresSessionRepository, SchemaError
from strands_psycopg.errors import BadFileError
from strands_psycopg.migrator import Migrator
from support.databases import Databases
from support.memories import DIMENSIONS, embed_trigrams, has_pgvector, needs_memory
from support.tables import Connection, blocked, one
from support.waiting import until

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


@pytest.fixture(scope="module")
def vectors_template(server: str, databases: Databases, template: str) -> Iterator[str]:
    """The name of a migrated database with vectors, to be copied."""
    if not has_pgvector(server):
        pytest.skip("the server does not have pgvector")
    with databases.create("vectors_template", template) as dsn:
        with PostgresMemoryStore("notes", dsn, dimensions=DIMENSIONS) as store:
            store.ensure_schema()
        yield str(conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def direct_dsn(databases: Databases, vectors_template: str) -> Iterator[str]:
    with databases.reuse("vectors_under_test", vectors_template) as dsn:
        yield dsn


@pytest.fixture
def store(repository: PostgresSessionRepository) -> PostgresMemoryStore:
    return PostgresMemoryStore("notes", repository, embed=embed_trigrams, dimensions=DIMENSIONS)


pytestmark = needs_memory


def add(store: PostgresMemoryStore, *contents: str) -> list[str]:
    async def all_of_them() -> list[str]:
        return [await store.add(content) for content in contents]

    return run(all_of_them())


def found(store: PostgresMemoryStore, query: str, **options: Any) -> list[str]:
    return [entry.content for entry in run(store.search(query, options))]  # type: ignore[arg-type]


def vector_count(connection: Connection) -> int:
    return int(one(connection, "SELECT count(*) FROM strands_memory_vectors"))


def test_memory_is_found_by_its_vector_without_a_common_word(store: PostgresMemoryStore) -> None:
    add(store, "a passionate cyclist", "lives in Rome", "drinks tea")

    [first, *_] = run(store.search("cycling passionately"))

    assert first.content == "a passionate cyclist"
    assert first.metadata is not None
    assert first.metadata["_score"] == pytest.approx(0.5)
    assert 0.3 < first.metadata["_similarity"] < 1


def test_score_is_one_for_the_first_of_both_rankings(store: PostgresMemoryStore) -> None:
    add(store, "green tea", "tea leaves", "wholly different")

    scores = {entry.content: (entry.metadata or {})["_score"] for entry in run(store.search("green tea"))}

    assert scores["green tea"] == pytest.approx(1.0)
    assert scores["tea leaves"] == pytest.approx(30.5 / 62 * 2)
    assert scores["wholly different"] == pytest.approx(30.5 / 63)
    assert found(store, "green tea", min_score=0.6) == ["green tea", "tea leaves"]
    assert found(store, "green tea", min_similarity=0.99) == ["green tea", "tea leaves"]
    assert found(store, "green tea", min_similarity=0.99, min_score=0.6) == ["green tea"]


def test_word_that_many_memories_have_decides_little(store: PostgresMemoryStore) -> None:
    add(store, "cyclists", *(f"tea {number}" for number in range(10)))

    options: Any = {"max_search_results": 11, "min_similarity": 0.3}
    entries = run(store.search("tea for a cyclist", options))

    assert entries[0].content == "cyclists"
    scores = [(entry.metadata or {})["_score"] for entry in entries]
    assert scores == [pytest.approx(30.5 / 61), *[pytest.approx(30.5 / 70)] * 10]


def test_search_by_vectors_keeps_to_owner_store_and_filter(
    store: PostgresMemoryStore, repository: PostgresSessionRepository
) -> None:
    others = [
        PostgresMemoryStore(name, repository, owner=owner, embed=embed_trigrams, dimensions=DIMENSIONS)
        for name, owner in (("notes", "alice"), ("other", None))
    ]
    for each in others:
        add(each, "cyclist")
    run(store.add("cyclists", {"kind": 1}))
    run(store.add("recycling", {"kind": 2}))

    assert sorted(found(store, "cycling")) == ["cyclists", "recycling"]
    assert found(store, "cycling", metadata={"kind": 1}) == ["cyclists"]
    assert found(others[0], "cycling") == ["cyclist"]


def test_owner_with_few_among_many_memories_finds_all_of_them(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an index whose nearest entries are all of another owner."""
    monkeypatch.setattr("strands_psycopg.memory.memory_search._MAX_COMPARED", 0)
    store = PostgresMemoryStore("notes", repository, owner="alice", embed=embed_trigrams, dimensions=DIMENSIONS)
    other = PostgresMemoryStore("notes", repository, owner="bob", embed=embed_trigrams, dimensions=DIMENSIONS)
    near, far = embed_trigrams(["cycling"])[0], embed_trigrams(["gardening"])[0]
    spread = random.Random(1)

    def line(number: int, vector: list[float]) -> str:
        noise = [value + spread.uniform(-0.01, 0.01) for value in vector]
        return json.dumps(
            {
                "memory_id": f"00000000-0000-7000-8000-{number:012}",
                "content": f"word{number}",
                "metadata": None,
                "created_at": "2026-01-01T00:00:00Z",
                "updated_at": "2026-01-01T00:00:00Z",
                "embedding": noise,
            }
        )

    run(other.import_lines(line(number, near) for number in range(400)))
    run(store.import_lines(line(number, far) for number in range(10)))
    connection.execute("ANALYZE strands_memory_vectors")
    # So that only the index of vectors can be used, whatever the planner would prefer.
    connection.execute("ALTER TABLE strands_memory_vectors DROP CONSTRAINT strands_memory_vectors_pkey")
    connection.execute(
        f"ALTER DATABASE {one(connection, 'SELECT current_database()')} SET enable_seqscan = off".encode()
    )

    with PostgresMemoryStore(
        "notes", connection.info.dsn, owner="alice", embed=embed_trigrams, dimensions=DIMENSIONS
    ) as fresh:
        assert sorted(found(fresh, "cycling")) == sorted(f"word{number}" for number in range(10))


def test_settings_of_a_search_end_with_it(dsn: str, pool_options: dict[str, Any]) -> None:
    options = {"min_size": 1, "max_size": 1, **pool_options}
    with PostgresSessionRepository(dsn, **options) as repository:
        store = PostgresMemoryStore("notes", repository, embed=embed_trigrams, dimensions=DIMENSIONS)
        add(store, "tea")
        found(store, "tea")
        names = "current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')"
        assert repository._database.fetch("looking", f"SELECT {names}".encode(), {}).rows == [("40", "off")]


def test_search_among_many_has_a_plan_of_its_own_each_time(direct_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it is prepared: the best one depends on the owner. The plan for few vectors is kept."""
    few = "sum(generic_plans)::int > 0 FROM pg_prepared_statements WHERE NOT statement LIKE '%%generate_series%%'"
    many = (
        "sum(generic_plans)::int, count(*) FROM pg_prepared_statements WHERE statement LIKE '%%generate_series%%' "
        "AND statement LIKE '%%false AS has_few%%'"
    )
    monkeypatch.setattr("strands_psycopg.memory.memory_search._MAX_COMPARED", 2 * DIMENSIONS)
    with PostgresSessionRepository(direct_dsn, min_size=1, max_size=1) as repository:

        def fetch(query: str) -> tuple[object, ...]:
            [row] = repository._database.fetch("looking", f"SELECT {query}".encode(), {}).rows
            return row

        store = PostgresMemoryStore("notes", repository, embed=embed_trigrams, dimensions=DIMENSIONS)
        add(store, "tea", "juice")
        for _ in range(15):
            assert found(store, "tea") == ["tea", "juice"]
        assert fetch(few) == (True,)
        assert fetch(many) == (None, 0)

        [_, *coffee] = add(store, "juice", "coffee")
        for _ in range(120):
            assert found(store, "tea")[0] == "tea"
        assert fetch(many) == (0, 1)
        run(store.forget(*coffee))
        for _ in range(100):
            assert found(store, "tea") == ["tea", "juice"]
        assert store._search._has_few


def test_vectors_follow_their_memories(store: PostgresMemoryStore, connection: Connection) -> None:
    [memory_id, _] = add(store, "cyclist", "gardener")
    add(store, "cyclist")
    assert vector_count(connection) == 2

    run(store.update(memory_id, content="astronomer"))
    assert found(store, "astronomy")[0] == "astronomer"
    assert vector_count(connection) == 2

    run(store.forget(memory_id))
    assert vector_count(connection) == 1


def test_forgotten_and_erased_memories_leave_no_vectors_without_foreign_keys(dsn: str, connection: Connection) -> None:
    replica = make_conninfo(dsn, options="-c session_replication_role=replica")
    with PostgresSessionRepository(replica) as repository:
        store, kept = (
            PostgresMemoryStore("notes", repository, owner=owner, embed=embed_trigrams, dimensions=DIMENSIONS)
            for owner in ("alice", "bob")
        )
        [memory_id, *_] = add(store, "cyclist", "gardener", "astronomer")
        add(kept, "cyclist", "gardener")
        words = PostgresMemoryStore("notes", repository, owner="bob")

        run(store.forget(memory_id))
        assert vector_count(connection) == 4
        run(words.forget(run(words.list()).memories[0].memory_id))
        assert vector_count(connection) == 3
        assert repository.erase(owner="alice").memories == 2
        assert vector_count(connection) == 1
        assert found(kept, "cycling") == ["cyclist"]


def test_of_two_edits_at_once_the_last_one_decides_whether_there_is_a_vector(
    store: PostgresMemoryStore, repository: PostgresSessionRepository, connection: Connection
) -> None:
    words = PostgresMemoryStore("notes", repository)
    [memory_id] = add(words, "cyclist")
    # The transaction with a vector waits when it commits.
    connection.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'"
    )
    connection.execute(
        "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON strands_memory_vectors DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    connection.execute("SELECT pg_advisory_lock(1)")

    async def edit_twice() -> None:
        with_vector = asyncio.create_task(store.update(memory_id, content="gardener"))
        await until(lambda: blocked(connection) == 1)
        without = asyncio.create_task(words.update(memory_id, content="astronomer"))
        await until(lambda: blocked(connection) == 2)
        connection.execute("SELECT pg_advisory_unlock(1)")
        await asyncio.gather(with_vector, without)

    run(edit_twice())
    assert found(words, "astronomer") == ["astronomer"]
    assert vector_count(connection) == 0


def test_cancelled_addition_is_not_stored_after_its_vector_was_computed(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    computing, go_on = threading.Event(), threading.Event()

    def embed(texts: list[str]) -> list[list[float]]:
        computing.set()
        go_on.wait()
        return embed_trigrams(texts)

    store = PostgresMemoryStore("notes", repository, embed=embed, dimensions=DIMENSIONS)

    async def cancel() -> None:
        addition = asyncio.create_task(store.add("cyclist"))
        await until(computing.is_set)
        addition.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await addition

    run(cancel())
    assert one(connection, "SELECT count(*) FROM strands_memories") == 0


def test_text_edited_without_embed_loses_its_outdated_vector(
    store: PostgresMemoryStore, repository: PostgresSessionRepository, connection: Connection
) -> None:
    [memory_id] = add(store, "cyclist")
    words = PostgresMemoryStore("notes", repository)

    run(words.update(memory_id, metadata={"kind": 1}))
    assert vector_count(connection) == 1
    run(words.update(memory_id, content="gardener"))
    assert vector_count(connection) == 0
    assert found(store, "gardener") == ["gardener"]


def test_memory_of_words_gets_a_vector_when_it_is_added_again(
    store: PostgresMemoryStore, repository: PostgresSessionRepository, connection: Connection
) -> None:
    words = PostgresMemoryStore("notes", repository)
    add(words, "cyclist", "gardener")
    run(store.add("cyclist", {"kind": 1}))
    run(store.add("gardener"))

    assert vector_count(connection) == 2
    assert found(store, "cycling")[0] == "cyclist"


def test_memories_of_words_get_vectors_at_once(
    store: PostgresMemoryStore, repository: PostgresSessionRepository, connection: Connection
) -> None:
    words = PostgresMemoryStore("notes", repository)
    add(words, *(f"cyclist {number}\0" for number in range(120)))
    add(PostgresMemoryStore("other", repository), "cyclist")
    add(store, "gardener")

    assert run(store.embed_missing()) == 120
    assert run(store.embed_missing()) == 0

    assert vector_count(connection) == 121
    assert found(store, "cycling 7", max_search_results=1) == ["cyclist 7\0"]
    with pytest.raises(TypeError, match="needs a store with embed"):
        run(words.embed_missing())


def test_text_that_is_edited_while_it_is_embedded_gets_no_outdated_vector(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    words = PostgresMemoryStore("notes", repository)
    [memory_id] = add(words, "cyclist")

    async def embed(texts: list[str]) -> list[list[float]]:
        await words.update(memory_id, content="gardener")
        return embed_trigrams(texts)

    store = PostgresMemoryStore("notes", repository, embed=embed, dimensions=DIMENSIONS)
    assert run(store.embed_missing()) == 0
    assert vector_count(connection) == 0


def test_duplicates_have_vectors_of_their_own(repository: PostgresSessionRepository, connection: Connection) -> None:
    store = PostgresMemoryStore("notes", repository, allow_duplicates=True, embed=embed_trigrams, dimensions=DIMENSIONS)
    add(store, "cyclist", "cyclist")
    assert vector_count(connection) == 2


def test_export_and_import_carry_vectors(store: PostgresMemoryStore, repository: PostgresSessionRepository) -> None:
    add(store, "cyclist", "gardener")

    async def export(source: PostgresMemoryStore) -> list[str]:
        return [line async for line in source.export_lines()]

    lines = run(export(store))
    carried = PostgresMemoryStore("carried", repository, dimensions=DIMENSIONS)
    words = PostgresMemoryStore("words", repository)
    embedded = PostgresMemoryStore("embedded", repository, embed=embed_trigrams, dimensions=DIMENSIONS)
    run(carried.import_lines(lines))
    run(words.import_lines(lines))
    records = [json.loads(line) for line in lines]
    run(embedded.import_lines(json.dumps({**record, "embedding": None}) for record in records))

    assert run(export(carried)) == run(export(embedded)) == lines
    assert [len(record["embedding"]) for record in records] == [DIMENSIONS] * 2
    assert found(words, "cyclist") == ["cyclist"]
    assert found(PostgresMemoryStore("carried", repository, embed=embed_trigrams, dimensions=DIMENSIONS), "cycling")


def test_line_with_a_bad_vector_is_refused_by_name(store: PostgresMemoryStore) -> None:
    add(store, "cyclist")

    async def export() -> list[str]:
        return [line async for line in store.export_lines()]

    record = json.loads(run(export())[0])
    for vector, message in [
        ("1" * DIMENSIONS, "a vector is not a sequence of numbers"),
        ([10**400] * DIMENSIONS, "a vector contains .* a number that is too large"),
        ([1], f"a vector has 1 dimensions, not {DIMENSIONS}"),
    ]:
        with pytest.raises(BadFileError, match=rf"^line 1: {message}$"):
            run(store.import_lines([json.dumps({**record, "embedding": vector})]))


async def embed_later(texts: list[str]) -> list[list[float]]:
    await asyncio.sleep(0)
    return embed_trigrams(texts)


class EmbedsWhenCalled:
    async def __call__(self, texts: list[str]) -> list[list[float]]:
        return embed_trigrams(texts)


@pytest.mark.parametrize("embed", [embed_later, EmbedsWhenCalled()], ids=["function", "object"])
def test_embed_may_be_a_coroutine_function(repository: PostgresSessionRepository, embed: Any) -> None:
    store = PostgresMemoryStore("notes", repository, embed=embed, dimensions=DIMENSIONS)
    add(store, "cyclist")
    assert found(store, "cycling") == ["cyclist"]


def test_embed_is_called_off_the_event_loop(repository: PostgresSessionRepository) -> None:
    def embed(texts: list[str]) -> list[list[float]]:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return embed_trigrams(texts)

    add(PostgresMemoryStore("notes", repository, embed=embed, dimensions=DIMENSIONS), "cyclist")


# What embed returns for one text, and what is wrong with it.
BAD: dict[str, tuple[Any, str]] = {
    "too few": ([], "embed returned 0 vectors; it must return one for each"),
    "too many": (embed_trigrams(["a", "b"]), "embed returned 2 vectors"),
    "short": ([[1.0]], f"a vector has 1 dimensions, not {DIMENSIONS}"),
    "NaN": ([[math.nan] * DIMENSIONS], "contains NaN"),
    "infinite": ([[1e39] * DIMENSIONS], "a number that is too large"),
    "zeros": ([[0.0] * DIMENSIONS], "all zeros"),
    "flat": ([1.0] * DIMENSIONS, "not a sequence of numbers"),
    "huge": ([[10**400] * DIMENSIONS], "a number that is too large"),
    "text": (["1" * DIMENSIONS], "not a sequence of numbers"),
    "texts": ([["1"] * DIMENSIONS], "not a sequence of numbers"),
    "bytes": ([b"1" * DIMENSIONS], "not a sequence of numbers"),
    "none": (None, "embed returned NoneType; it must return a vector for each text"),
    "raises": (LookupError("secret"), "embed raised LookupError"),
    "raises later": (lambda: map(float, ["secret"]), "embed raised ValueError, the cause of this error"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_embed_is_an_error_and_nothing_is_stored(
    repository: PostgresSessionRepository, connection: Connection, bad: str
) -> None:
    result, message = BAD[bad]

    def embed(_: list[str]) -> Any:
        if isinstance(result, LookupError):
            raise result
        return result() if callable(result) else result

    store = PostgresMemoryStore("notes", repository, embed=embed, dimensions=DIMENSIONS)
    for call in (store.add("secret"), store.search("secret")):
        with pytest.raises(EmbeddingError, match=message) as raised:
            run(call)
        assert "secret" not in str(raised.value)
    assert one(connection, "SELECT count(*) FROM strands_memories") == 0


def test_other_dimensions_are_refused_by_name(repository: PostgresSessionRepository, connection: Connection) -> None:
    store = PostgresMemoryStore("notes", repository, embed=lambda texts: [[1.0] * 3 for _ in texts], dimensions=3)
    message = f"the vectors of this database have {DIMENSIONS} dimensions, not 3"
    for call in (store.initialize(), store.add("tea"), store.search("tea")):
        with pytest.raises(SchemaError, match=message):
            run(call)
    with pytest.raises(SchemaError, match=message):
        store.ensure_schema()
    assert one(connection, "SELECT count(*) FROM strands_memories") == 0


def test_database_with_vectors_is_not_newer_for_others(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    repository.ensure_schema()
    status = repository.status()
    assert (status.ready, status.schema_version) == (True, status.latest_version)
    assert "strands_memory_vectors" in [table.name for table in status.tables]
    name = one(connection, "SELECT name FROM strands_migrations WHERE version = 1001")
    assert name == f"memory_vectors_{DIMENSIONS}"


def test_changed_file_of_vectors_is_refused(store: PostgresMemoryStore, connection: Connection) -> None:
    store.ensure_schema()
    connection.execute("UPDATE strands_migrations SET checksum = 'x' WHERE version = 1001")
    with pytest.raises(SchemaError, match="differs from this package's"):
        store.ensure_schema()


def test_migrator_prints_what_creates_vectors(repository: PostgresSessionRepository) -> None:
    script = Migrator(repository._database, vector_dimensions=5).script()
    assert "CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;" in script
    assert "embedding public.halfvec(5) NOT NULL" in script
    assert "VALUES (1001, 'memory_vectors_5'" in script


def test_extension_in_another_schema_is_used(databases: Databases, vectors_template: str) -> None:
    with databases.create("extension_elsewhere") as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        name = 'odd "schema" %s'
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE EXTENSION vector SCHEMA {}").format(sql.Identifier(name)))
        with PostgresMemoryStore(
            *("notes", dsn), schema="crm", table_prefix="p_", embed=embed_trigrams, dimensions=DIMENSIONS
        ) as store:
            store.ensure_schema()
            store.ensure_schema()
            run(store.initialize())
            [memory_id] = add(store, "cyclist")
            assert found(store, "cycling") == ["cyclist"]
            run(store.update(memory_id, content="gardener"))
            assert found(store, "gardening") == ["gardener"]


def test_vectors_of_a_pgvector_without_half_precision_have_single_precision(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute("DROP TABLE strands_memory_vectors")
    connection.execute("DELETE FROM strands_migrations WHERE version = 1001")
    monkeypatch.setattr("strands_psycopg.migrator._EXTENSION", "SELECT 'public', '0.6.2'")
    longest = [0.1, *[0.0] * 1999]
    store = PostgresMemoryStore("notes", repository, embed=lambda texts: [longest for _ in texts], dimensions=2000)

    store.ensure_schema()
    add(store, "cyclist")

    assert found(store, "gardening") == ["cyclist"]
    assert one(connection, "SELECT embedding::text FROM strands_memory_vectors").startswith("[0.1,0,0,")
    assert one(connection, "SELECT pg_typeof(embedding)::text FROM strands_memory_vectors") == "vector"


@pytest.mark.parametrize("length", [1e-30, 1e-7, 70_000, 1e38])
def test_vectors_of_any_length_are_compared(repository: PostgresSessionRepository, length: float) -> None:
    def embed(texts: list[str]) -> list[list[float]]:
        return [[number * length for number in vector] for vector in embed_trigrams(texts)]

    store = PostgresMemoryStore("notes", repository, embed=embed, dimensions=DIMENSIONS)
    add(store, "a passionate cyclist", "lives in Rome")

    [first, second] = run(store.search("a passionate cyclist"))

    assert (first.metadata or {})["_similarity"] == pytest.approx(1, abs=1e-6)
    assert (second.metadata or {})["_similarity"] < 0.5


def test_vector_with_the_longest_dimensions_is_stored(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    connection.execute("DROP TABLE strands_memory_vectors")
    connection.execute("DELETE FROM strands_migrations WHERE version = 1001")
    store = PostgresMemoryStore("notes", repository, embed=lambda texts: [[1.0] * 2000 for _ in texts], dimensions=2000)
    store.ensure_schema()
    add(store, "cyclist")
    assert found(store, "gardening") == ["cyclist"]


def test_tables_of_words_get_vectors_later(databases: Databases, vectors_template: str, template: str) -> None:
    with databases.create("vectors_later", template) as dsn:
        with PostgresMemoryStore("notes", dsn) as words:
            add(words, "cyclist")
        with PostgresMemoryStore("notes", dsn, embed=embed_trigrams, dimensions=DIMENSIONS) as store:
            with pytest.raises(SchemaError, match="vectors of 256 dimensions need the extension 'vector'"):
                run(store.initialize())
            store.ensure_schema()
            run(store.initialize())
            assert found(store, "cyclist") == ["cyclist"]


def test_role_that_may_not_create_the_extension_is_told_so(
    databases: Databases, vectors_template: str, template: str
) -> None:
    with databases.create("vectors_refused", template) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE no_superuser LOGIN PASSWORD 'no'")
        try:
            connection.execute("GRANT CREATE, USAGE ON SCHEMA public TO no_superuser")
            connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO no_superuser")
            limited = make_conninfo(dsn, user="no_superuser", password="no")
            with PostgresMemoryStore("notes", limited, dimensions=DIMENSIONS) as store:
                with pytest.raises(SchemaError, match=r"256 dimensions .* 'vector' .* a superuser.*CREATE EXTENSION"):
                    store.ensure_schema()
                connection.execute("CREATE EXTENSION vector")
                store.ensure_schema()
                run(store.initialize())
        finally:
            connection.execute("DROP OWNED BY no_superuser CASCADE")
            connection.execute("DROP ROLE no_superuser")


def test_server_without_the_extension_is_told_so(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute("DROP EXTENSION vector CASCADE")
    connection.execute("DELETE FROM strands_migrations WHERE version = 1001")
    monkeypatch.setattr("strands_psycopg.migrator._AVAILABLE_EXTENSION", "SELECT 1 WHERE false")

    with pytest.raises(SchemaError, match=r"256 dimensions need the extension 'vector' \(pgvector\), which the server"):
        PostgresMemoryStore("notes", repository, dimensions=DIMENSIONS).ensure_schema()


def test_no_notice_and_no_warning_reaches_the_log(store: PostgresMemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        add(store, "tea")
        found(store, "tea")
    assert caplog.records == []


def test_slow_embed_does_not_keep_others_from_the_database(repository: PostgresSessionRepository) -> None:
    go_on, started = threading.Event(), threading.Semaphore(0)

    def embed(texts: list[str]) -> list[list[float]]:
        started.release()
        assert go_on.wait(60)
        return embed_trigrams(texts)

    async def main() -> None:
        slow = PostgresMemoryStore("slow", repository, embed=embed, dimensions=DIMENSIONS)
        adds = [asyncio.create_task(slow.add(str(number))) for number in range(70)]
        await until(lambda: started.acquire(blocking=False))
        assert (await PostgresMemoryStore("notes", repository).list()).memories == []
        go_on.set()
        await asyncio.gather(*adds)
        assert len((await slow.list()).memories) == 70

    run(main())
