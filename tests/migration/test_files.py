import re
from pathlib import Path

import psycopg
import pytest

from strands_psycopg import PostgresSessionRepository, SchemaError
from strands_psycopg.migrator import Migration, optional_migrations, packaged_migrations, read_migrations
from support import catalog

SOURCES = Path(__file__).parents[2] / "sql"

# Of the packaged files, in the order of their versions.
CHECKSUMS = [
    ("0001_sessions.sql", "1bad047a2d82974f4986d480bc210c281c857823da4f63d7a5862c1ccdb6694c"),
    ("0002_leases.sql", "c474f568a52cca1186880de5ecfc5e96c1713f248020be2299008c761ca38ac8"),
    ("0003_storage.sql", "dc0edffa7891f0ae4c8004b35e1f87b1028a847b15ffcae2c8bab5550c3defed"),
    ("0004_analytics.sql", "d9cf10db55b6763483d0c7fd7a1204721f63a7bba7cceb3329baa34ea8006571"),
    ("0005_memories.sql", "f1366cd9811a2bf4f7a97a8be888235f1997fd71b06810b8b05800f15bbf426a"),
    ("1001_memory_vectors.sql", "a715d7f2ee42658cd3bacbeeb53420ad356750f68da9a54cab79f127ba448e1a"),
]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text(f"CREATE TABLE strands_{name[:4]} ();\n")
    return folder


def test_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, "0002_people.sql", "0001_places_2.sql", "0003_a.sql")

    assert read_migrations(tmp_path) == [
        Migration(1, "places_2", "CREATE TABLE strands_0001 ();\n"),
        Migration(2, "people", "CREATE TABLE strands_0002 ();\n"),
        Migration(3, "a", "CREATE TABLE strands_0003 ();\n"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("1_a.sql", "001_a.sql", "00002_a.sql", "a.sql", "0002.sql", "0002_.sql", "0002-a.sql", "0002_A.sql"),
        *("0002_a b.sql", "0002_a.SQL", "0002_a.sql~", "0002_a.sql.bak", "x0002_a.sql", "0002_a.txt", "__init__.py"),
    ],
)
def test_file_with_an_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "0001_a.sql", name)

    with pytest.raises(SchemaError, match=re.escape(repr(name))):
        read_migrations(tmp_path)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["0001_a.sql", "0003_b.sql"], "[1, 3]"),
        (["0001_a.sql", "0002_b.sql", "0002_c.sql"], "[1, 2, 2]"),
        (["0002_a.sql"], "[2]"),
        (["0000_a.sql", "0001_b.sql"], "[0, 1]"),
        ([], "[]"),
    ],
    ids=["gap", "duplicate", "late", "zero", "none"],
)
def test_numbers_with_a_gap_or_duplicate_are_refused(tmp_path: Path, names: list[str], numbers: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(numbers)):
        read_migrations(write(tmp_path, *names))


def test_line_ends_do_not_change_the_checksum(tmp_path: Path) -> None:
    text = (SOURCES / "0001_sessions.sql").read_bytes()
    for name, line_end in {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "0001_sessions.sql").write_bytes(text.replace(b"\n", line_end))
    as_read = Migration(1, "sessions", text.replace(b"\n", b"\r\n").decode())

    checksums = {read_migrations(tmp_path / name)[0].checksum for name in ("lf", "crlf", "cr")} | {as_read.checksum}

    assert checksums == {packaged_migrations()[0].checksum}


@pytest.mark.parametrize("changed", ["-- note\nCREATE TABLE a ();", "CREATE TABLE  a ();", "CREATE TABLE A ();", ""])
def test_any_other_change_changes_the_checksum(changed: str) -> None:
    assert Migration(1, "a", changed).checksum != Migration(1, "a", "CREATE TABLE a ();").checksum


def file_name(migration: Migration) -> str:
    return f"{migration.version:04}_{migration.name}.sql"


def test_released_files_do_not_change() -> None:
    migrations = [*packaged_migrations(), *optional_migrations()]
    assert [(file_name(each), each.checksum) for each in migrations] == CHECKSUMS, (
        "a released file must not change: databases that it was applied to would be refused. Restore it, put the "
        "change into a new file NNNN_name.sql and add that to CHECKSUMS (until the first release: update CHECKSUMS)"
    )


def test_packaged_files_are_the_sources() -> None:
    for migrations, folder in ((packaged_migrations(), SOURCES), (optional_migrations(), SOURCES / "optional")):
        assert [file_name(each) for each in migrations] == sorted(file.name for file in folder.glob("*.sql"))
        assert {each.text for each in migrations} == {file.read_text() for file in folder.glob("*.sql")}


def test_sources_are_nothing_but_numbered_sql_files() -> None:
    files = [each for each in SOURCES.rglob("*") if each != SOURCES / "optional"]
    assert [file.name for file in files if not re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", file.name)] == []
    assert all(file.is_file() for file in files)


def test_text_is_split_into_statements_with_the_prefix() -> None:
    migration = Migration(
        1,
        "a",
        "-- strands_a; is a comment; of two statements\n"
        "CREATE TABLE strands_a (b_strands_c text, -- of the (b); column\n"
        "    strands_ text);\n\n"
        "ALTER TABLE strands_a\n    ADD CONSTRAINT strands_a_d CHECK (true);;\n-- end; of file",
    )

    assert [" ".join(each.split()) for each in migration.statements("crm_")] == [
        "CREATE TABLE crm_a (b_strands_c text, strands_ text)",
        "ALTER TABLE crm_a ADD CONSTRAINT crm_a_d CHECK (true)",
    ]


def test_semicolon_in_quotes_does_not_end_a_statement() -> None:
    migration = Migration(1, "a", "COMMENT ON TABLE strands_a IS 'one; strands_b''s; two';\nDO 'BEGIN NULL; END';\n")

    assert migration.statements("crm_") == ["COMMENT ON TABLE crm_a IS 'one; crm_b''s; two'", "DO 'BEGIN NULL; END'"]


def test_packaged_files_are_split_as_the_server_splits_them(dsn: str, empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        for migration in packaged_migrations():
            connection.execute(migration.text.encode())

    ledger = {"strands_migrations"}
    assert catalog.layout(empty_dsn) == [row for row in catalog.layout(dsn) if row[0] not in ledger]
    assert "strands_messages" in catalog.tables(empty_dsn)


def test_statements_are_executed_one_by_one(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA witness")
        connection.execute("CREATE TABLE witness.seen (number serial, query text, tag text)")
        connection.execute(
            "CREATE FUNCTION witness.see() RETURNS event_trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO witness.seen (query, tag) VALUES (current_query(), tg_tag); END'"
        )
        connection.execute("CREATE EVENT TRIGGER witness ON ddl_command_end EXECUTE FUNCTION witness.see()")

        with PostgresSessionRepository(empty_dsn) as repository:
            repository.ensure_schema()

        seen = connection.execute("SELECT query FROM witness.seen ORDER BY number").fetchall()
    # A DO block is one statement, but fires the trigger for each command that it executes.
    assert [query for (query,) in seen[1:] if not query.startswith("DO ")] == [
        statement
        for migration in packaged_migrations()
        for statement in migration.statements("strands_")
        if not statement.startswith("DO ")
    ]
    assert "strands_migrations" in seen[0][0]


def test_every_object_has_the_prefix(dsn: str) -> None:
    assert [name for name in catalog.objects(dsn) if not name.startswith("strands_")] == []
    assert len(catalog.objects(dsn)) > 10
