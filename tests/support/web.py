"""The recipe's web worker under uvicorn, and its clients."""

import asyncio
import json
import re
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from support import processes
from support.waiting import wait_until

_DEADLINE = 120

# The command uvicorn. Its supervisor forks its workers, which then need no imports either.
_SCRIPT = """
import json, multiprocessing, os, runpy, sys
from uvicorn import _subprocess

_, log, environment, *arguments = sys.argv
output = os.open(log, os.O_WRONLY | os.O_APPEND)
os.dup2(output, 1)
os.dup2(output, 2)
os.environ.update(json.loads(environment))
_subprocess.spawn = multiprocessing.get_context("fork")
sys.argv = ["uvicorn", *arguments]
runpy.run_module("uvicorn", run_name="__main__")
"""


class Web:
    """Uvicorn with the recipe's application, on a port of 127.0.0.1, for the time of its ``with`` block.

    Args:
        dsn: The database.
        application: What uvicorn's command is told to serve.
        workers: How many processes; with 1 there is no supervisor.
        **environment: Further variables.

    Attributes:
        url: Where it answers.
        last_words: What it has written until its end.
    """

    def __init__(
        self,
        dsn: str,
        *,
        application: Sequence[str] = ("recipes.web_worker:app",),
        workers: int = 1,
        **environment: str,
    ) -> None:
        self._application = application
        self._workers = workers
        self._environment = {"DATABASE_URL": dsn, "MODEL": "support.echo:Echo", **environment}

    def __enter__(self) -> "Web":
        self._log = tempfile.NamedTemporaryFile()
        # A worker that is short of the processor is not hung.
        options = ["--port", "0", "--workers", str(self._workers), "--timeout-worker-healthcheck", str(_DEADLINE)]
        arguments = [self._log.name, json.dumps(self._environment), *self._application, *options]
        self._process = processes.start(_SCRIPT, *arguments)
        try:
            wait_until(self._serves, seconds=_DEADLINE)
            [self.url] = re.findall(r"running on (http://[\d.:]+)", self.log())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.terminate()
        try:
            self.end()
        finally:
            self._process.close()
        self.last_words = self.log()
        self._log.close()

    def _serves(self) -> bool:
        log = self.log()
        return log.count("startup complete") == self._workers and "running on" in log

    def log(self) -> str:
        """Return what it has written."""
        with open(self._log.name) as log:  # noqa: PTH123
            return log.read()

    def pids(self) -> list[int]:
        """Return the ids of the processes that have served, in the order of their start."""
        return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", self.log())]

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.signal(signal.SIGTERM)

    def end(self) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        return self._process.end()


class Event(NamedTuple):
    """A server-sent event."""

    name: str
    data: Any


def client(url: str, owner: str = "alice") -> httpx.AsyncClient:
    """Return a client of the server there, who has logged in."""
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=_DEADLINE, limits=limits, headers={"X-Forwarded-User": owner})


@asynccontextmanager
async def turn(
    http: httpx.AsyncClient, session_id: str, prompt: str, **options: str
) -> AsyncIterator[AsyncIterator[Event]]:
    """Ask until it is not refused any more, and yield the events as they come. Leaving early hangs up."""
    give_up_at = time.monotonic() + _DEADLINE
    while True:
        path = f"/sessions/{quote(session_id, safe='')}/turns"
        async with http.stream("POST", path, json={"prompt": prompt, **options}) as response:
            if "Retry-After" not in response.headers:
                response.raise_for_status()
                yield _events(response)
                return
            await response.aread()
        assert time.monotonic() < give_up_at, response.text
        await asyncio.sleep(int(response.headers["Retry-After"]))


async def ask(http: httpx.AsyncClient, session_id: str, prompt: str, **options: str) -> list[Event]:
    """Ask until it is not refused any more, and return all events."""
    async with turn(http, session_id, prompt, **options) as events:
        return [event async for event in events]


def answer(events: list[Event]) -> str | None:
    """Return the answer if it was acknowledged."""
    if not events or events[-1].name != "done":
        return None
    return "".join(event.data for event in events[:-1])


async def _events(response: httpx.Response) -> AsyncIterator[Event]:
    name = ""
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield Event(name, json.loads(value))
