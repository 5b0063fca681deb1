"""The numbers of statements, round trips and commits of a storage's calls, by libpq's trace of the connection."""

import asyncio
import random
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from strands.types.session import Session, SessionType

from strands_psycopg import PostgresSessionRepository, PostgresStorage
from support.storage import needs_storage
from support.wire import ONE, Exchange, Wire

pytestmark = [
    needs_storage,
    pytest.mark.skipif(sys.platform != "linux", reason="psycopg gives access to libpq's trace on Linux only"),
]

LARGE = random.Random(1).randbytes(200_000)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture(params=["plain", "guarded", "of a session", "of a session, in a lease", "of an owner's session"])
def storage(request: pytest.FixtureRequest, dsn: str, wire: Wire) -> Iterator[PostgresStorage]:
    """A storage with a small and a large value; it has seen them, and that there is no ``new`` one."""
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "configure": wire.configure}
    with (
        PostgresSessionRepository(dsn, kwargs={"prepare_threshold": None}, **options) as repository,
        ExitStack() as stack,
    ):
        storage = PostgresStorage(repository, guard_overwrites=request.param == "guarded")
        if request.param == "of an owner's session":
            repository.create_session(Session("s", SessionType.AGENT), owner="Alice")
            storage = repository.storage("s", owner="Alice")
        if request.param.startswith("of a session"):
            repository.create_session(Session("s", SessionType.AGENT))
            storage = repository.storage("s")
        if request.param == "of a session, in a lease":
            stack.enter_context(repository.lease("s", ttl=3600))
        asyncio.run(storage.write("small", b"one apple"))
        asyncio.run(storage.write("large", LARGE))
        assert asyncio.run(storage.read("new")) is None
        yield storage


def during(wire: Wire, call: Callable[[], Coroutine[Any, Any, object]]) -> Exchange:
    return wire.during(lambda: asyncio.run(call()))


# They can be called one after the other.
METHODS: dict[str, Callable[[PostgresStorage], Coroutine[Any, Any, object]]] = {
    "read": lambda storage: storage.read("small"),
    "read large": lambda storage: storage.read("large"),
    "list": lambda storage: storage.list(""),
    "search": lambda storage: storage.search("apple"),
    "delete missing": lambda storage: storage.delete("new"),
    "write": lambda storage: storage.write("new", b"x" * 32_768),
    "overwrite": lambda storage: storage.write("small", b"x" * 32_768),
    "delete": lambda storage: storage.delete("small"),
}


def test_each_method_is_one_statement_one_round_trip_and_one_commit(storage: PostgresStorage, wire: Wire) -> None:
    found = {name: during(wire, partial(call, storage))[1:] for name, call in METHODS.items()}
    assert found == dict.fromkeys(METHODS, ONE)


@pytest.mark.parametrize("key", ["next", "large"])
def test_writing_a_large_value_is_one_transaction(storage: PostgresStorage, wire: Wire, key: str) -> None:
    exchange = during(wire, lambda: storage.write(key, LARGE + b"more"))
    assert exchange.states == ["T"] * (len(exchange.states) - 1) + ["I"]
    assert len(exchange.states) == len(["BEGIN, lock value and chunks", "insert, upsert, delete", "COMMIT"])
