"""A link that goes down without a word, between two network namespaces. TCP's own settings find that out."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from strands_psycopg.embedded import Server
from support import namespaces
from support.load import stored
from support.namespaces import Cable
from support.tables import blocked
from support.waiting import wait_until

# No answer is waited for so long: it is not the watchdog that finds the link down.
CLIENT = """
import logging, sys
from support.agents import build
from strands_psycopg import PostgresSessionRepository

class Reports(logging.Handler):
    def emit(self, record):
        if record.getMessage().endswith("retrying"):
            print(f"retry: {record.args[2]}", flush=True)

logging.getLogger("strands_psycopg").setLevel("DEBUG")
logging.getLogger("strands_psycopg").addHandler(Reports())
settings = {
    "tcp_user_timeout": 1000, "keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 1,
    "connect_timeout": 2,
}
with PostgresSessionRepository(sys.argv[1], response_timeout=600, kwargs=settings) as repository:
    agent = build(repository)
    agent("first")
    print("ready", flush=True)
    sys.stdin.readline()
    agent("second")
    print("acknowledged", flush=True)
"""


@pytest.fixture
def cable(own_server: Server, own_dsn: str) -> Iterator[Cable]:
    reason = namespaces.missing()
    if reason:
        pytest.skip(f"network namespaces cannot be made here: {reason}")
    socket = str((own_server.path / "socket").readlink())
    with namespaces.cable(make_conninfo(own_dsn, host=socket)) as cable:
        yield cable


@pytest.mark.parametrize("down", ["before the statement is sent", "while its answer is waited for"])
def test_turn_goes_on_when_the_link_does(down: str, cable: Cable, own_dsn: str, look: psycopg.Connection[Any]) -> None:
    with cable.start(CLIENT, cable.dsn) as client, psycopg.connect(own_dsn) as locker:
        assert client.line() == "ready"
        if down == "before the statement is sent":
            cable.pull()
        else:
            locker.execute("SELECT FROM strands_agents FOR UPDATE")
        client.write("go\n")
        if down != "before the statement is sent":
            # The client has nothing to send any more, so only its keepalives can tell.
            wait_until(lambda: blocked(look) == 1)
            cable.pull()
        assert "timed out" in client.line()
        locker.rollback()
        cable.plug()
        status, written, errors = client.finish()
    assert status == 0, errors
    assert written.splitlines()[-1] == "acknowledged"
    assert stored(look, "s") == ["user: first", "assistant: ok", "user: second", "assistant: ok"]
