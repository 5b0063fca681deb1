"""A process that is frozen between two calls, while its connection dies in one way or another."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext

import psycopg
import pytest

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.embedded import Server
from support import processes
from support.crew import Process
from support.servers import QuickServer
from support.stopping import stopped
from support.tables import texts
from support.waiting import wait_until

RUNTIME = """
import json, sys
from recipes.lambda_function import handler

print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(handler(json.loads(line), None)), flush=True)
"""

OF_THE_FUNCTION = "SELECT pid FROM pg_stat_activity WHERE application_name = 'strands-psycopg'"


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with QuickServer() as server:
        with PostgresSessionRepository(server.dsn) as repository:
            repository.ensure_schema()
        yield server


@pytest.fixture
def function(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator["Function"]:
    monkeypatch.setenv("DATABASE_URL", own_server.dsn)
    monkeypatch.setenv("MODEL", "support.echo:Echo")
    with processes.start(RUNTIME) as process:
        assert process.line() == "ready"
        yield Function(own_server, process)


class Function:
    """The process in which the function runs, and the server that it uses."""

    def __init__(self, server: Server, process: Process) -> None:
        self.server = server
        self.pid = process.pid
        self._process = process

    def call(self, session_id: str, prompt: str) -> str:
        """Call the function and return the answer."""
        self._process.write(json.dumps({"session_id": session_id, "prompt": prompt}) + "\n")
        answer: str = json.loads(self._process.line())["answer"]
        return answer

    def backends(self) -> list[int]:
        """Return the ids of the server's processes that serve it."""
        with psycopg.connect(self.server.dsn) as connection:
            return [pid for (pid,) in connection.execute(OF_THE_FUNCTION)]


def terminate(function: Function) -> AbstractContextManager[None]:
    with psycopg.connect(function.server.dsn, autocommit=True) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM ({OF_THE_FUNCTION}) AS own".encode())
    return nullcontext()


def restart(function: Function) -> AbstractContextManager[None]:
    function.server.restart()
    return nullcontext()


def silence(function: Function) -> AbstractContextManager[None]:
    """Stop the other end of the connection, without telling anybody."""
    return stopped(*function.backends())


@pytest.mark.parametrize("death", [terminate, restart, silence])
def test_call_after_a_freeze_works_though_the_connection_has_died(
    function: Function, death: Callable[[Function], AbstractContextManager[None]]
) -> None:
    session_id = death.__name__
    wait_until(lambda: function.backends() == [])
    answers = [function.call(session_id, "before")]
    before = function.backends()
    assert len(before) == 1

    with ExitStack() as dead:
        with stopped(function.pid):
            dead.enter_context(death(function))
        answers.append(function.call(session_id, "after"))
        answers.append(function.call(session_id, "and again"))
        assert len(set(function.backends()) - set(before)) == 1

    assert answers == [f"{function.pid} heard {prompt}\n" for prompt in ("before", "after", "and again")]
    with psycopg.connect(function.server.dsn) as connection:
        assert texts(connection, session_id) == [
            text for prompt in ("before", "after", "and again") for text in (prompt, f"{function.pid} heard {prompt}")
        ]
        assert connection.execute("SELECT FROM strands_leases").fetchall() == []
