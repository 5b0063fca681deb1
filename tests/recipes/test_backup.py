"""``backup.sh`` and ``restore.sh``: what comes back is the same to the byte."""

import asyncio
import random
import re
from pathlib import Path

import psycopg
import pytest

from strands_psycopg import PostgresSessionRepository, PostgresStorage, SessionConflictError
from support import catalog, programs
from support.agents import LOOK_UP, build, dump, look_up
from support.multi_agents import Team
from support.storage import has_storage
from support.tables import Connection, texts

RECIPES = Path(__file__).parent

LARGE = random.Random(1).randbytes(300_000)


@pytest.fixture
def backup(connection: Connection, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Where the backup goes, if there is a program for it."""
    if request.config.getoption("--pgbouncer"):
        pytest.skip("dumps need a direct connection")
    found = re.search(r"(\d+)\.", programs.run("pg_dump", "--version"))
    assert found
    if int(found[1]) != connection.info.server_version // 10_000:
        pytest.skip(f"the server is not of pg_dump's version {found[1]}, and its dumps may set what it does not know")
    return tmp_path / "backup"


def rows(connection: Connection) -> dict[str, list[str]]:
    """Return every row of every table but the leases, as text."""
    tables = connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'strands%'").fetchall()
    return {
        table: [row for (row,) in connection.execute(f"SELECT t::text FROM {table} AS t ORDER BY 1".encode())]
        for (table,) in tables
        if table != "strands_leases"
    }


def test_what_is_restored_is_the_same_to_the_byte(
    direct_dsn: str, empty_dsn: str, connection: Connection, backup: Path
) -> None:
    with PostgresSessionRepository(direct_dsn) as repository:
        agent = build(repository, replies=LOOK_UP, tools=[look_up])
        agent("NUL \0, a lone surrogate \ud83d")
        repository.create_multi_agent("s", Team("m", {"b": -0.0, "a": [1e16, float("nan")]}))
        if has_storage:
            asyncio.run(PostgresStorage(repository).write("large", LARGE))
        with repository.lease("s"):
            programs.run("sh", RECIPES / "backup.sh", direct_dsn, backup)

    programs.run("sh", RECIPES / "restore.sh", empty_dsn, backup)

    assert catalog.layout(empty_dsn) == catalog.layout(direct_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as restored, PostgresSessionRepository(empty_dsn) as repository:
        assert rows(restored) == rows(connection)
        assert restored.execute("SELECT FROM strands_leases").fetchall() == []
        assert repository.status().ready
        assert dump(build(repository)) == dump(agent)
        if has_storage:
            assert asyncio.run(PostgresStorage(repository).read("large")) == LARGE
        build(repository)("and now?")
        assert len(texts(restored)) == 6


def test_an_agent_that_outlives_its_tables_is_refused(direct_dsn: str, connection: Connection, backup: Path) -> None:
    with PostgresSessionRepository(direct_dsn) as repository:
        agent = build(repository, replies=[["one"], ["two"], ["never said"]])
        agent("1")
        programs.run("sh", RECIPES / "backup.sh", direct_dsn, backup)
        before = rows(connection)
        agent("2")

        for table in [*before, "strands_leases"]:
            connection.execute(f"DROP TABLE {table} CASCADE".encode())
        programs.run("sh", RECIPES / "restore.sh", direct_dsn, backup)

        with pytest.raises(SessionConflictError):
            agent("3")
        assert rows(connection) == before
        build(repository, replies=[["two again"]])("2 again")
    assert texts(connection) == ["1", "one", "2 again", "two again"]
