"""Storages in databases with settings of indexes and of the planner that a user may have made."""

import asyncio
import random

import pytest
from psycopg import sql

from strands_psycopg import PostgresSessionRepository, PostgresStorage
from support.scale import scale
from support.storage import needs_storage
from support.tables import Connection

_NUMBER = scale(24, 2000)


@needs_storage
@pytest.mark.parametrize(
    "settings",
    [
        {"gin_fuzzy_search_limit": "1", "enable_seqscan": "off"},
        {"gin_fuzzy_search_limit": "10", "enable_seqscan": "off"},
        {"enable_seqscan": "off", "enable_indexscan": "off"},
        {"enable_bitmapscan": "off"},
        {"work_mem": "64kB", "enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"},
        {"plan_cache_mode": "force_custom_plan", "jit": "on", "jit_above_cost": "0"},
        {"default_transaction_isolation": "serializable", "gin_pending_list_limit": "64kB"},
    ],
    ids=lambda settings: ", ".join(f"{name}={value}" for name, value in settings.items()),
)
def test_deleting_half_of_the_values_leaves_the_other_half_and_no_unused_chunk(
    dsn: str, connection: Connection, settings: dict[str, str]
) -> None:
    for name, value in settings.items():
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                sql.Identifier(connection.info.dbname), sql.Identifier(name), sql.Literal(value)
            )
        )
    common = random.Random(1).randbytes(100_000)
    values = {f"value-{number}": common + b"%d" % number for number in range(_NUMBER)}

    async def use(storage: PostgresStorage) -> None:
        for key, value in values.items():
            await storage.write(key, value)
        connection.execute("VACUUM (ANALYZE) strands_storage")
        for key in list(values)[::2]:
            await storage.delete(key)
            del values[key]
        for key, value in values.items():
            assert await storage.read(key) == value
        for key in values:
            await storage.delete(key)

    with PostgresSessionRepository(dsn) as repository:
        asyncio.run(use(PostgresStorage(repository)))

    assert connection.execute("SELECT count(*) FROM strands_chunks").fetchall() == [(0,)]
