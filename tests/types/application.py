"""What an application writes, for type checkers: mypy and pyright accept it, and find what is marked as wrong.

Nothing runs it.
"""

import os
from datetime import timedelta

from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool
from strands import Agent

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository, PostgresStorage, Status

DSN = "postgresql://localhost/agents"


def repositories() -> list[PostgresSessionRepository]:
    return [
        PostgresSessionRepository(DSN),
        PostgresSessionRepository(DSN, schema="app", retry_timeout=5, max_size=20, timeout=2.5),
        PostgresSessionRepository(lambda: os.environ["DATABASE_URL"], kwargs={"prepare_threshold": None}),
        PostgresSessionRepository(ConnectionPool(DSN)),
        PostgresSessionRepository(ConnectionPool(DSN, kwargs={"row_factory": dict_row}, open=False)),
        PostgresSessionRepository(
            ConnectionPool(DSN, connection_class=Connection[DictRow], kwargs={"row_factory": dict_row})
        ),
    ]


def wrong() -> None:
    PostgresSessionRepository(DSN, max_sise=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    PostgresSessionRepository(DSN, max_size="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    PostgresSessionRepository(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def turn(repository: PostgresSessionRepository) -> str:
    with repository.lease("user-42", wait=30, ttl=60) as lease:
        manager = PostgresSessionManager("user-42", repository, keep_snapshots=10)
        agent = Agent(session_manager=manager)
        return f"{lease.session_id}: {agent('hello')}"


async def turn_async(repository: PostgresSessionRepository) -> None:
    async with repository.lease("user-42"):
        agent = Agent(session_manager=PostgresSessionManager("user-42", repository))
        await agent.invoke_async("hello")


def operate() -> tuple[int, str | None]:
    with PostgresSessionRepository(DSN) as repository:
        repository.ensure_schema()
        status: Status = repository.status()
        purged = repository.purge_sessions(idle_for=timedelta(days=90))
        page = repository.list_sessions(limit=10)
        return purged.sessions + len(page.sessions), status.server_version


async def store(repository: PostgresSessionRepository) -> bytes | None:
    storage = PostgresStorage(repository, prefix="snapshots")
    await storage.namespace("a").write("key", b"value")
    async with PostgresSessionRepository(DSN) as own, PostgresStorage(own) as other:
        await other.write("key", b"value")
    return await storage.read("a/key")
