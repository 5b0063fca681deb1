from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from strands.types.session import Session, SessionType

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.migrator import packaged_migrations
from strands_psycopg.report import read_statistics
from support import agents, catalog

LONGEST = "a_" + "0123456789" * 3 + "_bcdefgh"

INSTALLATIONS: list[dict[str, Any]] = [
    {},
    {"schema": "office"},
    {"table_prefix": "crm_"},
    {"schema": "office", "table_prefix": "crm_"},
    {"schema": "office", "table_prefix": "_"},
]


@pytest.fixture
def installations(empty_dsn: str) -> Iterator[list[PostgresSessionRepository]]:
    """Yield repositories with different schemas and prefixes in one database, all migrated."""
    with ExitStack() as stack:
        repositories = [
            stack.enter_context(PostgresSessionRepository(empty_dsn, **options)) for options in INSTALLATIONS
        ]
        for repository in repositories:
            repository.ensure_schema()
        yield repositories


def test_each_schema_and_prefix_has_tables_of_its_own(
    installations: list[PostgresSessionRepository], empty_dsn: str
) -> None:
    assert catalog.tables(empty_dsn) == sorted(
        prefix + name for prefix in ("strands_", "crm_") for name in catalog.TABLES
    )
    assert catalog.tables(empty_dsn, "office") == sorted(
        prefix + name for prefix in ("strands_", "crm_", "_") for name in catalog.TABLES
    )
    for schema, prefixes in {"public": ("strands_", "crm_"), "office": ("strands_", "crm_", "_")}.items():
        assert catalog.views(empty_dsn, schema) == sorted(
            prefix + name for prefix in prefixes for name in catalog.VIEWS
        )
    with psycopg.connect(empty_dsn) as connection:
        for schema, prefix in [("public", "crm_"), ("office", "strands_"), ("office", "_")]:
            ledger = connection.execute(f"SELECT version FROM {schema}.{prefix}migrations".encode()).fetchall()
            assert ledger == [(each.version,) for each in packaged_migrations()]


def test_views_read_only_tables_and_views_of_their_own_prefix(
    installations: list[PostgresSessionRepository], empty_dsn: str
) -> None:
    for schema, prefixes in {"public": ("strands_", "crm_"), "office": ("strands_", "crm_", "_")}.items():
        read = catalog.read_by_views(empty_dsn, schema)
        assert {view for view, _, _ in read} == {prefix + name for prefix in prefixes for name in catalog.VIEWS}
        for view, schema_read, name in read:
            [prefix] = [
                prefix for prefix in prefixes if view.startswith(prefix) and view[len(prefix) :] in catalog.VIEWS
            ]
            assert schema_read == schema
            assert name in {prefix + each for each in [*catalog.TABLES, *catalog.VIEWS]}

    agents.build(installations[3], session_id="mine")("hello")
    counts = [read_statistics(repository).total.messages for repository in installations]
    assert counts == [0, 0, 0, 2, 0]


def test_installations_do_not_see_each_other(installations: list[PostgresSessionRepository]) -> None:
    sessions = {}
    for number, repository in enumerate(installations):
        assert repository.read_session("s") is None
        agent = agents.build(repository, replies=[[f"reply {number}"]])
        agent(f"prompt {number}")
        sessions[repository] = agents.dump(agent)

    assert len(set(sessions.values())) == len(INSTALLATIONS)
    for repository, dump in sessions.items():
        assert agents.dump(agents.build(repository)) == dump

    installations[1].delete_session("s")
    assert [repository.read_session("s") is None for repository in installations] == [False, True, False, False, False]


@pytest.mark.parametrize("argument", ["schema", "table_prefix"])
@pytest.mark.parametrize(
    "name",
    [
        *("", "A", "Office", "1a", "a-b", "a b", "a.b", 'a"b', "a;b", "a%s", "a$", "é", "\uff41", "a\n", "\0", " a"),
        *(LONGEST + "i", 7, b"a"),
    ],
)
def test_invalid_name_is_refused_before_any_connection(argument: str, name: Any) -> None:
    def dsn() -> str:
        raise AssertionError("no connection is made")

    with pytest.raises(ValueError, match=f"^{argument} must match"):
        PostgresSessionRepository(dsn, **{argument: name})


NAMES: list[dict[str, Any]] = [
    *({"schema": name} for name in ("user", "select", "table", "all", "default", "_", "a", "true")),
    *({"table_prefix": name} for name in ("user", "select", "_", "a", "strands_strands_", "to_strands_")),
    {"schema": LONGEST},
    {"table_prefix": LONGEST},
    {"schema": LONGEST, "table_prefix": LONGEST},
]


_LISTS = (catalog.objects, catalog.tables, catalog.views)


def test_reserved_words_and_the_longest_names_work(empty_dsn: str) -> None:
    assert len(LONGEST) == 40
    for options in NAMES:
        schema, prefix = options.get("schema", "public"), options.get("table_prefix", "strands_")
        objects, tables, views = (set(each(empty_dsn, schema)) for each in _LISTS)
        with PostgresSessionRepository(empty_dsn, **options) as repository:
            repository.ensure_schema()
            repository.ensure_schema()

            assert repository.read_session("s") is None
            session = Session(session_id="s", session_type=SessionType.AGENT)
            assert repository.create_session(session) == repository.read_session("s")

        assert set(catalog.tables(empty_dsn, schema)) - tables == {prefix + name for name in catalog.TABLES}
        assert set(catalog.views(empty_dsn, schema)) - views == {prefix + name for name in catalog.VIEWS}
        # The server shortens the names that it generates, such as those of constraints.
        created = set(catalog.objects(empty_dsn, schema)) - objects
        assert {name for name in created if not name.startswith(prefix[:20])} == set()
