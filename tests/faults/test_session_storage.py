"""The storage of a session under faults: killed writers, two writers at once, and a move to another database."""

import asyncio
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.conninfo import make_conninfo
from strands.types.session import Session, SessionType

from strands_psycopg import PostgresSessionRepository, PostgresStorage, StorageConflictError
from strands_psycopg.transfer import export_session, import_session
from support.crew import Crew
from support.scale import scale
from support.storage import OF_SESSIONS, chunks, needs_storage, values
from support.tables import Connection, one
from support.waiting import wait_until

pytestmark = needs_storage

WRITE = """
import asyncio, random, sys
from strands_psycopg import PostgresSessionRepository

def value(number):
    return random.Random(number).randbytes(100_000 if number % 3 else 1_000)

with PostgresSessionRepository(sys.argv[1]) as repository:
    storage = repository.storage("s")
    asyncio.run(storage.read("k"))
    number = int(sys.argv[2])
    while True:
        number += 1
        print("begin", number, flush=True)
        asyncio.run(storage.write("k", value(number)))
        print("end", number, flush=True)
"""


def value(number: int) -> bytes:
    """Return the same as in the script."""
    return random.Random(number).randbytes(100_000 if number % 3 else 1_000)


def test_writer_that_is_killed_leaves_the_old_or_the_new_value(crew: Crew, own_dsn: str, look: Connection) -> None:
    moments = random.Random()
    stored = 0
    with PostgresSessionRepository(own_dsn) as repository:
        repository.create_session(Session("s", SessionType.AGENT))
        asyncio.run(repository.storage("s").write("k", value(0)))
        for _ in range(scale(4, 100)):
            with crew.start(WRITE, make_conninfo(own_dsn, application_name="writer"), str(stored)) as writer:
                begun = writer.line()
                # A random moment, so there is no condition to wait for.
                time.sleep(moments.uniform(0, 0.2))
                writer.signal(signal.SIGKILL)
                lines = [line for line in [begun, *writer.lines()] if line.startswith(("begin ", "end "))]
                assert writer.end() == -signal.SIGKILL, writer.errors()
            wait_until(
                lambda: one(look, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'writer'") == 0
            )
            last = int(lines[-1].split()[1])
            possible = {last} if lines[-1].startswith("end") else {last - 1, last}
            assert values(look, OF_SESSIONS)["k"] in [value(number) for number in possible]
            assert asyncio.run(repository.storage("s").read("k")) == values(look, OF_SESSIONS)["k"]
            # Of values that were replaced, chunks may be left until the next write of a large one.
            stored = last + 1
            asyncio.run(repository.storage("s").write("k", value(stored)))
        asyncio.run(repository.storage("s").write("k", value(1)))
        asyncio.run(repository.storage("s").write("k", value(2)))
        assert (chunks(look, OF_SESSIONS).size, chunks(look, OF_SESSIONS).unused) == (100_000, 0)
        repository.delete_session("s")
        assert (values(look, OF_SESSIONS), chunks(look, OF_SESSIONS).number) == ({}, 0)


@pytest.mark.parametrize("owner", [None, "Alice"])
def test_of_two_writers_at_once_one_is_refused_and_its_value_is_not_stored(
    own_dsn: str, look: Connection, owner: str | None
) -> None:
    barrier = threading.Barrier(2, timeout=60)

    def write(storage: PostgresStorage, data: bytes) -> bool:
        barrier.wait()
        try:
            asyncio.run(storage.write("k", data))
        except StorageConflictError:
            return False
        return True

    with PostgresSessionRepository(own_dsn) as repository, ThreadPoolExecutor(2) as threads:
        repository.create_session(Session("s", SessionType.AGENT), owner="Alice")
        for number in range(scale(10, 500)):
            storages = [repository.storage("s", owner=owner) for _ in range(2)]
            seen = [asyncio.run(storage.read("k")) for storage in storages]
            data = [bytes([writer, number % 256]) * (10 if (number + writer) % 2 else 30_000) for writer in range(2)]
            stored = list(threads.map(write, storages, data))
            assert sorted(stored) == [False, True], seen
            assert values(look, OF_SESSIONS)["k"] == data[stored.index(True)]
        assert chunks(look, OF_SESSIONS).unused == 0


def test_values_of_all_sizes_are_the_same_in_a_fork_and_in_another_database(own_dsn: str, dsn: str) -> None:
    contents = {f"n/{size}": random.Random(size).randbytes(size) for size in (0, 1, 8_192, 8_193, 300_000)}
    contents |= {"n/repeated": b"\0" * 200_000, "n/shared": contents["n/300000"] + b"more", "n/ü €/k": b"\xff"}

    def read(storage: PostgresStorage) -> dict[str, bytes | None]:
        return {key: asyncio.run(storage.read(key)) for key in asyncio.run(storage.list())}

    with PostgresSessionRepository(own_dsn) as here, PostgresSessionRepository(dsn) as there:
        here.create_session(Session("s", SessionType.AGENT), owner="Alice")
        for key, data in contents.items():
            asyncio.run(here.storage("s").write(key, data))
        here.fork_session("s", "fork")
        for session_id in ("s", "fork"):
            assert import_session(there, export_session(here, session_id)).values == len(contents)
            for repository in (here, there):
                assert read(repository.storage(session_id, owner="Alice")) == contents
        here.delete_session("s")
        assert read(here.storage("fork")) == read(there.storage("s")) == contents
