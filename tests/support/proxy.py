"""A TCP proxy before a PostgreSQL server that can be slow, hold answers back, lose them, and cut or refuse connections.

It follows the protocol closely enough to count statements and to know when the server has answered one.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_T = TypeVar("_T")
_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_CHUNK = 256 * 1024
_DEADLINE = 30

# Encrypted connections could not be followed.
_PLAIN = {"sslmode": "disable", "gssencmode": "disable"}


class Held(NamedTuple):
    """From when to when an answer was kept from its client, on the clock of ``time.monotonic``."""

    since: float
    until: float


class Proxy:
    """Stands between clients and one server for the time of its ``with`` block, in a thread of its own.

    Methods can be called from any thread and have taken effect when they return. They concern all connections.

    Args:
        dsn: The server's, over TCP or a unix socket.

    Attributes:
        dsn: The same database through the proxy, on a port of 127.0.0.1.
        delay: For how many seconds every answer is kept back.
        translations: For texts of the server, others of the same length that clients get in their places.
        connections: How many connections have been accepted.
        round_trips: How many answers the server has given, apart from those to connects: one for each statement or
            pipeline, and one for each statement that the driver prepares.
        statements: How many statements the server has completed.
        waiting: How many answers are being kept back now, those to connects included.
        held: Which answers were kept back and have been passed on since.
    """

    def __init__(self, dsn: str) -> None:
        given = conninfo_to_dict(dsn)
        default = {option.keyword.decode(): (option.val or b"").decode() for option in pq.Conninfo.get_defaults()}
        self._host = str(given.get("host") or default.get("host") or "localhost")
        self._port = int(given.get("port") or default.get("port") or 5432)
        self._server_dsn = dsn
        self.delay = 0.0
        self.translations: dict[bytes, bytes] = {}
        self.connections = 0
        self.round_trips = 0
        self.statements = 0
        self.waiting = 0
        self.held: list[Held] = []
        self._connections: set[_Connection] = set()
        # What will happen to the next requests and answers: "pass", "lose" or "hold"; later ones pass.
        self._requests: deque[str] = deque()
        self._answers: deque[str] = deque()

    def __enter__(self) -> "Proxy":
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), name="proxy", daemon=True)
        self._thread.start()
        assert started.wait(_DEADLINE)
        self.dsn = make_conninfo(self._server_dsn, host="127.0.0.1", port=self._own_port, **_PLAIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(_DEADLINE)
        assert not self._thread.is_alive()

    def hold(self, *, after: int = 0) -> None:
        """Pass on ``after`` answers, then keep every answer back until ``release``; requests go on to the server."""
        if after:
            self._plan(self._answers, "hold", 1, after)
        else:
            self._do(self.released.clear)

    def release(self) -> None:
        """Pass on what ``hold`` keeps back, and later answers."""
        self._plan(self._answers, "pass", 0, 0)
        self._do(self.released.set)

    def cut(self) -> None:
        """Cut all connections, losing answers that are kept back. New connections can be made."""
        self._do(self._cut)

    def refuse(self) -> None:
        """Cut all connections and refuse new ones until ``accept``, as if no server ran."""
        self._do(self._stop)

    def accept(self) -> None:
        """Accept connections again after ``refuse``, on the same port."""
        self._wait_for(self._listen())

    def lose_requests(self, number: int = 1, *, after: int = 0) -> None:
        """Pass on ``after`` statements; cut the connections of the next ``number`` before the server has them."""
        self._plan(self._requests, "lose", number, after)

    def lose_answers(self, number: int = 1, *, after: int = 0) -> None:
        """Pass on ``after`` answers; for the next ``number``, cut the connection once the server has answered."""
        self._plan(self._answers, "lose", number, after)

    def requested(self) -> bool:
        """Take note of a statement from a client; tell whether it is to be lost. For the proxy's own use."""
        return bool(self._requests) and self._requests.popleft() == "lose"

    def answered(self) -> bool:
        """Take note of an answer from the server; tell whether it is to be lost. For the proxy's own use."""
        self.round_trips += 1
        fate = self._answers.popleft() if self._answers else "pass"
        if fate == "hold":
            self.released.clear()
        return fate == "lose"

    def _plan(self, plan: deque[str], fate: str, number: int, after: int) -> None:
        def replace() -> None:
            plan.clear()
            plan.extend(["pass"] * after + [fate] * number)

        self._do(replace)

    async def _run(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended, self.released = asyncio.Event(), asyncio.Event()
        self.released.set()
        self._own_port = 0
        await self._listen()
        started.set()
        await self._ended.wait()
        self._stop()
        await asyncio.gather(*(connection.ended.wait() for connection in self._connections))

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._own_port)
        self._own_port = self._listener.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(self, (reader, writer))
        self._connections.add(connection)
        try:
            with suppress(OSError):
                await connection.carry(self._host, self._port)
        finally:
            self._connections.discard(connection)
            connection.ended.set()

    def _stop(self) -> None:
        self._listener.close()
        self._cut()

    def _cut(self) -> None:
        for connection in self._connections:
            connection.cut()

    def _do(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._wait_for(act())

    def _wait_for(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_DEADLINE)


class _Connection:
    """One client's connection and the one to the server that belongs to it.

    Attributes:
        ended: Set when both have been closed.
    """

    def __init__(self, proxy: Proxy, client: _Stream) -> None:
        self._proxy = proxy
        self._client = client
        self._streams = [client]
        self._tasks: list[asyncio.Task[None]] = []
        self._cut = False
        self._answers: asyncio.Queue[tuple[float, bytes, int]] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def carry(self, host: str, port: int) -> None:
        """Carry data both ways until one side ends."""
        try:
            if host.startswith("/"):
                server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                server = await asyncio.open_connection(host, port)
            self._streams.append(server)
            if self._cut:
                return
            work = (self._take_requests(server), self._take_answers(server), self._pass_answers_on())
            self._tasks = [asyncio.create_task(each) for each in work]
            requests, _, passing_on = self._tasks
            await asyncio.wait([requests, passing_on], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for _, writer in self._streams:
                writer.transport.abort()

    def cut(self) -> None:
        """End both connections at once."""
        self._cut = True
        for task in self._tasks:
            task.cancel()

    async def _take_requests(self, server: _Stream) -> None:
        messages = _Messages(first_is_untyped=True)
        while data := await self._client[0].read(_CHUNK):
            # A statement takes effect with the message that asks for its end: Sync, or a simple Query.
            for _ in _each(b"SQ", messages.types(data)):
                if self._proxy.requested():
                    return
            server[1].write(data)
            await server[1].drain()

    async def _take_answers(self, server: _Stream) -> None:
        messages = _Messages(first_is_untyped=False)
        connected = False
        while data := await server[0].read(_CHUNK):
            answers = 0
            for kind in _each(b"CZ", messages.types(data)):
                if kind == ord("C"):
                    self._proxy.statements += 1
                    continue
                answers += 1
                if connected and self._proxy.answered():
                    self.cut()
                    return
                connected = True
            self._answers.put_nowait((time.monotonic(), data, answers))
        self._answers.put_nowait((time.monotonic(), b"", 0))

    async def _pass_answers_on(self) -> None:
        while True:
            since, data, answers = await self._answers.get()
            if not data:
                return
            for text, translation in self._proxy.translations.items():
                data = data.replace(text, translation.ljust(len(text)))
            if self._proxy.delay > 0 or not self._proxy.released.is_set():
                await self._keep_back(since, answers)
            self._client[1].write(data)
            await self._client[1].drain()

    async def _keep_back(self, since: float, answers: int) -> None:
        self._proxy.waiting += answers
        try:
            await asyncio.sleep(max(since + self._proxy.delay - time.monotonic(), 0))
            await self._proxy.released.wait()
        finally:
            self._proxy.waiting -= answers
        if answers:
            self._proxy.held.append(Held(since, time.monotonic()))


class _Messages:
    """Finds the types of the messages in one direction of a connection, as its data come in."""

    def __init__(self, *, first_is_untyped: bool) -> None:
        self._header_length = 4 if first_is_untyped else 5
        # Of a message that has begun: what has come of its header, or its type and how much of it is still to come.
        self._header = b""
        self._type: int | None = None
        self._missing = 0

    def types(self, data: bytes) -> Iterator[int]:
        """Yield the type of each message that ends in ``data``; the first one of a client has none."""
        position = self._missing
        if position > len(data):
            self._missing -= len(data)
            return
        if position and self._type is not None:
            yield self._type
        data, self._missing = self._header + data, 0
        while position + self._header_length <= len(data):
            length_at = position + self._header_length - 4
            end = length_at + int.from_bytes(data[length_at : length_at + 4], "big")
            self._type = None if length_at == position else data[position]
            self._header_length = 5
            if end > len(data):
                self._missing, position = end - len(data), len(data)
                break
            if self._type is not None:
                yield self._type
            position = end
        self._header = data[position:]


def _each(wanted: bytes, types: Iterable[int]) -> Iterator[int]:
    return (each for each in types if each in wanted)
