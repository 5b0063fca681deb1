"""The web worker under uvicorn: what it has acknowledged is stored once and in order, whatever happens to it."""

import asyncio
import os
import re
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.embedded import Server
from support import processes
from support.scale import scale
from support.servers import QuickServer
from support.stopping import stopped
from support.tables import Connection, one, texts
from support.waiting import until, wait_until
from support.web import Event, Web, answer, ask, client, turn
from support.writes import message

_CLIENTS = scale(24, 100)
_SESSIONS = scale(8, 20)
_TURNS = 2

PAGE = Path(__file__).with_name("README.md")

# So many processes may be short of the processor.
_DEADLINE = 120

OF_THE_WORKERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'strands-psycopg'
"""

# What gunicorn does with --preload. A line on standard input ends it.
FORK_AFTER_IMPORT = """
import os, signal, socket, sys, warnings
import uvicorn
from recipes import web_worker

# From Python 3.12 on, of a fork beside the threads of a pool.
warnings.simplefilter("ignore", DeprecationWarning)
listener = socket.create_server(("127.0.0.1", 0))
if sys.argv[1] == "used":
    web_worker.build("parent")("before the fork")
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        uvicorn.Server(uvicorn.Config(web_worker.app, log_level="warning")).run([listener])
        os._exit(1)  # it ends by the signal, when all is closed
    children.append(child)
print(listener.getsockname()[1], *children, flush=True)
web_worker.build("parent")("after the fork")
sys.stdin.readline()
for child in children:
    os.kill(child, signal.SIGTERM)
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
web_worker.repository.close()
"""


def test_every_acknowledged_turn_is_stored_once_and_in_order_though_a_worker_is_killed(
    direct_dsn: str, connection: Connection, tmp_path: Path
) -> None:
    asked: defaultdict[str, list[str]] = defaultdict(list)
    acknowledged: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)

    async def talk(http: httpx.AsyncClient, number: int) -> None:
        """Take turns; what was not acknowledged is asked again in other words, so that it can be told apart."""
        session_id, turns, attempt = f"session-{number % _SESSIONS}", 0, 0
        while turns < _TURNS:
            prompt = f"client {number}, turn {turns}, attempt {attempt}"
            attempt += 1
            asked[session_id].append(prompt)
            try:
                said = answer(await ask(http, session_id, prompt))
            except httpx.TransportError:
                said = None
            if said is not None:
                assert said in texts(connection, session_id)
                acknowledged[session_id].append((prompt, said))
                turns += 1

    async def kill(http: httpx.AsyncClient) -> None:
        """Kill the worker that is in the middle of most of three turns, and of whatever else it has taken on."""
        go = tmp_path / "go"
        waiting: defaultdict[str, list[tuple[str, AsyncIterator[Event]]]] = defaultdict(list)
        async with AsyncExitStack() as open_turns:
            for session_id in ("waiting-1", "waiting-2", "waiting-3"):
                events = await open_turns.enter_async_context(turn(http, session_id, f"wait until {go}"))
                waiting[(await anext(events)).data].append((session_id, events))
            await until(lambda: sum(map(len, acknowledged.values())) >= _CLIENTS // 2, seconds=_DEADLINE)
            pid, cut = max(waiting.items(), key=lambda item: len(item[1]))
            os.kill(int(pid), signal.SIGKILL)
            for _, events in cut:
                with pytest.raises(httpx.TransportError):
                    await anext(events)
            go.touch()
        for session_id, _ in cut:
            said = answer(await ask(http, session_id, "and now?"))
            assert texts(connection, session_id) == [f"wait until {go}", "and now?", said]
            assert said != f"{pid} heard and now?"

    async def all_clients() -> None:
        async with client(web.url) as http:
            await asyncio.gather(kill(http), *(talk(http, number) for number in range(_CLIENTS)))

    with Web(direct_dsn, workers=2, LEASE_TTL="4") as web:
        asyncio.run(all_clients())
        wait_until(lambda: len(web.pids()) == 3, seconds=_DEADLINE)
        web.terminate()
        assert web.end() == 0, web.log()

    for number in range(_SESSIONS):
        stored = texts(connection, f"session-{number}")
        for prompt in asked[f"session-{number}"]:
            assert stored.count(prompt) <= 1
        order = []
        for prompt, said in acknowledged[f"session-{number}"]:
            order.append(stored.index(prompt))
            assert stored[order[-1] + 1] == said
            assert said.endswith(f" heard {prompt}")
        assert len(order) == _TURNS * _CLIENTS // _SESSIONS
    wait_until(lambda: one(connection, OF_THE_WORKERS) == 0, seconds=_DEADLINE)
    assert one(connection, "SELECT count(*) FROM strands_leases") == 0


@pytest.mark.parametrize("before", ["imported", "used"])
def test_both_processes_serve_that_were_forked_after_the_import(
    before: str, direct_dsn: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", direct_dsn)
    monkeypatch.setenv("MODEL", "support.echo:Echo")
    answers = []

    async def ask_one(port: int, child: int) -> None:
        async with client(f"http://127.0.0.1:{port}") as http:
            answers.append(answer(await ask(http, "shared", f"asking {child}")))

    with processes.start(FORK_AFTER_IMPORT, before) as process:
        port, *children = map(int, process.line().split())
        for child, other in (children, children[::-1]):
            with stopped(other):
                asyncio.run(ask_one(port, child))
        # The parent's and theirs: none uses another's connection.
        assert one(connection, OF_THE_WORKERS) >= 3
        process.write("\n")
        status, written, errors = process.finish()

    assert (status, errors) == (0, "")
    assert written == f"{-signal.SIGTERM} {-signal.SIGTERM}\n"
    assert answers == [f"{child} heard asking {child}" for child in children]
    assert texts(connection, "shared") == [
        text for child in children for text in (f"asking {child}", f"{child} heard asking {child}")
    ]
    assert texts(connection, "parent")[-2] == "after the fork"
    assert one(connection, "SELECT count(*) FROM strands_leases") == 0
    wait_until(lambda: one(connection, OF_THE_WORKERS) == 0, seconds=_DEADLINE)


def test_turns_under_way_end_before_the_worker_does(direct_dsn: str, connection: Connection, tmp_path: Path) -> None:
    go, go_too = tmp_path / "go", tmp_path / "go too"

    async def leave(http: httpx.AsyncClient) -> str:
        async with turn(http, "left", f"wait until {go_too}") as events:
            return str((await anext(events)).data)

    async def stay(http: httpx.AsyncClient) -> str | None:
        async with turn(http, "stayed", f"wait until {go}") as events:
            first = await anext(events)
            web.terminate()
            await until(lambda: "Shutting down" in web.log())
            go.touch()
            return answer([first, *[event async for event in events]])

    async def both() -> list[str | None]:
        async with client(web.url) as http:
            answers = [await leave(http), await stay(http)]
        await until(lambda: "waiting for turns" in web.log())
        go_too.touch()
        return answers

    with Web(direct_dsn) as web:
        pid, said = asyncio.run(both())
        assert web.end() == -signal.SIGTERM, web.log()

    assert said == f"{pid} heard wait until {go}"
    assert texts(connection, "stayed") == [f"wait until {go}", said]
    assert texts(connection, "left") == [f"wait until {go_too}", f"{pid} heard wait until {go_too}"]
    assert one(connection, "SELECT count(*) FROM strands_leases") == 0
    assert one(connection, OF_THE_WORKERS) == 0
    assert "Error" not in web.last_words


def test_what_clients_are_told(direct_dsn: str, repository: PostgresSessionRepository, tmp_path: Path) -> None:
    go = tmp_path / "go"

    async def talk() -> None:
        async with client(web.url) as http:
            assert [event.name for event in await ask(http, "s", "hello")] == ["text", "text", "done"]
            stored = (await http.get("/sessions/s")).json()
            assert [each["content"][0]["text"] for each in stored] == texts_of(repository, "s")

            with repository.lease("s", wait=0):
                busy = await http.post("/sessions/s/turns", json={"prompt": "and now?"})
            assert (busy.status_code, busy.headers["Retry-After"]) == (409, "1")

            async with turn(http, "s", f"wait until {go}") as events:
                first = await anext(events)
                repository.create_message("s", "default", message(3, "of a writer without a lease"))
                go.touch()
                rest = [event async for event in events]
            assert first.name == "text"
            assert rest[-1] == Event("error", {"status": 409, "detail": "another turn of this session came between"})

            # Strands wraps the error.
            assert (await ask(http, "conflict", "conflict"))[-1] == rest[-1]

            assert answer(await ask(http, "s/turns/ä?", "who?", agent="helper-2")) is not None
            other = (await http.get("/sessions/s%2Fturns%2F%C3%A4%3F?agent=helper-2")).json()
            assert other[0]["content"][0]["text"] == "who?"
            assert (await http.get("/sessions/s%2Fturns%2F%C3%A4%3F")).status_code == 404

            hello = {"prompt": "hello"}
            for response, status in [
                (await http.post("/sessions/s/turns", content=b"no JSON"), 400),
                (await http.post("/sessions/s/turns", json=["no object"]), 400),
                (await http.post("/sessions/s/turns", json={"prompt": None}), 400),
                (await http.post("/sessions/s/turns", json={"prompt": " "}), 400),
                (await http.post("/sessions/s/turns", json={**hello, "agent": "a/b"}), 400),
                (await http.post(f"/sessions/{'s' * 256}/turns", json=hello), 400),
                (await http.post("/sessions/%00/turns", json=hello), 400),
                (await http.get("/sessions/unknown"), 404),
                (await http.get("/sessions/%00"), 400),
                (await http.get("/sessions/s?agent=unknown"), 404),
                (await http.get("/health"), 200),
            ]:
                assert response.status_code == status, response.text

        async with client(web.url, owner="bob") as http:
            assert (await http.post("/sessions/s/turns", json=hello)).status_code == 404
            with repository.lease("s", wait=0):  # nor is it told whether a turn is being taken
                assert (await http.post("/sessions/s/turns", json=hello)).status_code == 404
            assert (await http.get("/sessions/s")).status_code == 404
            del http.headers["X-Forwarded-User"]
            assert (await http.post("/sessions/s/turns", json=hello)).status_code == 401
            assert (await http.get("/sessions/s")).status_code == 401

    with Web(direct_dsn, LEASE_WAIT="0") as web:
        asyncio.run(talk())


def texts_of(repository: PostgresSessionRepository, session_id: str) -> list[str]:
    return [each.message["content"][0]["text"] for each in repository.list_messages(session_id, "default")]


def test_worker_outlives_the_database() -> None:
    async def talk(server: Server, url: str) -> None:
        async with client(url) as http:
            assert (await http.get("/health")).status_code == 503
            refused = await http.post("/sessions/s/turns", json={"prompt": "hello"})
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            server.start()
            said = answer(await ask(http, "s", "hello"))
            assert said is not None
            assert (await http.get("/health")).status_code == 200

    with QuickServer() as server:
        with PostgresSessionRepository(server.dsn) as repository:
            repository.ensure_schema()
        server.stop()
        with Web(server.dsn, DATABASE_TIMEOUT="1") as web:
            asyncio.run(talk(server, web.url))


def test_what_clients_of_the_block_on_the_page_are_told(
    direct_dsn: str, repository: PostgresSessionRepository, tmp_path: Path
) -> None:
    [block] = re.findall(r"^```python\n(.*?^app = .*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    block = block.replace("postgresql://localhost/agents", direct_dsn).replace("wait=10", "wait=0")
    block = block.replace("return Agent(", "from support.echo import Echo; return Agent(model=Echo(), ")
    (tmp_path / "block_of_the_page.py").write_text(block)
    go = tmp_path / "go"

    async def talk() -> None:
        hello = {"prompt": "hello"}
        async with client(web.url) as http:
            assert [event.name for event in await ask(http, "a/b", "hello")] == ["text", "text", "done"]
            assert texts_of(repository, "a/b")[0] == "hello"
            with repository.lease("a/b", wait=0):
                assert (await http.post("/sessions/a%2Fb/turns", json=hello)).status_code == 409
            async with turn(http, "a/b", f"wait until {go}") as events:
                first = await anext(events)
                repository.create_message("a/b", "default", message(3, "of a writer without a lease"))
                go.touch()
                assert first.name == "text"
                assert [event async for event in events][-1] == Event("error", 409)
            assert (await ask(http, "conflict", "conflict"))[-1] == Event("error", 409)
            for path, body in [("s", {"prompt": None}), ("s", {}), ("s", []), ("s" * 300, hello)]:
                assert (await http.post(f"/sessions/{path}/turns", json=body)).status_code == 400
        async with client(web.url, owner="bob") as http:
            with repository.lease("a/b", wait=0):
                assert (await http.post("/sessions/a%2Fb/turns", json=hello)).status_code == 404
            del http.headers["X-Forwarded-User"]
            assert (await http.post("/sessions/s/turns", json=hello)).status_code == 401

    with Web(direct_dsn, application=("--app-dir", str(tmp_path), "block_of_the_page:app")) as web:
        asyncio.run(talk())
