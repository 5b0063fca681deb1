"""Processes that take turns with agents, each on a session of its own, and report every turn that is acknowledged."""

import queue
import signal
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import psycopg

from support import processes
from support.crew import Process

_PROCESSES = 4
_DEADLINE = 600

# Every fourth turn calls a tool. A new agent every tenth turn restores what is stored.
_SCRIPT = """
import logging, sys
from support.agents import build, look_up
from support.load import ask, replies
from strands_psycopg import PostgresSessionRepository

class Retries(logging.Handler):
    number = 0

    def emit(self, record):
        Retries.number += record.getMessage().endswith("retrying")

logging.getLogger("strands_psycopg").setLevel("DEBUG")
logging.getLogger("strands_psycopg").addHandler(Retries())
dsn, session_id, turns = sys.argv[1], sys.argv[2], int(sys.argv[3])
with PostgresSessionRepository(dsn) as repository:
    repository.read_session(session_id)
    print("ready", flush=True)
    sys.stdin.readline()
    for turn in range(turns):
        if turn % 10 == 0:
            later = [reply for later_turn in range(turn, turns) for reply in replies(later_turn)]
            agent = build(repository, session_id, later, tools=[look_up])
        agent(ask(turn))
        print(f"turn {turn}", flush=True)
    print(f"retries {Retries.number}", flush=True)
"""


def ask(turn: int) -> str:
    """Return a turn's prompt."""
    return f"ask {turn}"


def replies(turn: int) -> list[list[str | dict[str, Any]]]:
    """Return what the model says in a turn, call by call."""
    answer: list[str | dict[str, Any]] = [f"answer {turn}"]
    if turn % 4:
        return [answer]
    return [[{"name": "look_up", "input": {"city": f"city {turn}"}, "toolUseId": f"use {turn}"}], answer]


def transcript(turns: int) -> list[str]:
    """Return what ``stored`` returns after a number of turns."""
    lines = []
    for turn in range(turns):
        lines.append(f"user: {ask(turn)}")
        if not turn % 4:
            lines += [f"assistant: use {turn}", f"user: result of use {turn}"]
        lines.append(f"assistant: answer {turn}")
    return lines


_STORED = """
    SELECT message_id, message->>'role' || ': ' || coalesce(
        message#>>'{content,0,text}',
        message#>>'{content,0,toolUse,toolUseId}',
        'result of ' || (message#>>'{content,0,toolResult,toolUseId}')
    )
    FROM strands_messages WHERE session_id = %s ORDER BY message_id
"""


def stored(connection: psycopg.Connection[Any], session_id: str) -> list[str]:
    """Read a session's messages, which have indexes from 0 up without a gap, as lines."""
    rows = connection.execute(_STORED, [session_id]).fetchall()
    assert [index for index, _ in rows] == list(range(len(rows)))
    return [line for _, line in rows]


class Load:
    """Four writing processes during the ``with`` block; those that still run at its end are killed.

    Args:
        dsn: The database.
        turns: How many turns they take in all.

    Attributes:
        sessions: The ids of their sessions.
        turns_each: How many turns each of them takes.
        acknowledged: How many turns have been acknowledged so far.
        retries: How many retries they report at their end.
    """

    def __init__(self, dsn: str, turns: int) -> None:
        self._dsn = dsn
        self.sessions = [f"session {number}" for number in range(_PROCESSES)]
        self.turns_each = -(-turns // _PROCESSES)
        self.acknowledged = 0
        self.retries = 0

    def __enter__(self) -> "Load":
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._processes = [
            processes.start(_SCRIPT, self._dsn, session_id, str(self.turns_each)) for session_id in self.sessions
        ]
        self._readers = [threading.Thread(target=self._read, args=(each,), daemon=True) for each in self._processes]
        for reader in self._readers:
            reader.start()
        try:
            for _ in self._processes:
                assert self._lines.get(timeout=_DEADLINE) == "ready", self._errors()
            for process in self._processes:
                process.write("go\n")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.signal(signal.SIGKILL)
        for reader in self._readers:
            reader.join()
        for process in self._processes:
            process.close()

    def __iter__(self) -> Iterator[int]:
        """Yield the number of acknowledged turns each time that it has grown, until all processes have ended well."""
        running, deadline = _PROCESSES, time.monotonic() + _DEADLINE
        while running:
            line = self._lines.get(timeout=max(deadline - time.monotonic(), 0))
            if line is None:
                running -= 1
            elif line.startswith("turn"):
                self.acknowledged += 1
                yield self.acknowledged
            else:
                self.retries += int(line.split()[1])
        assert [process.end() for process in self._processes] == [0] * _PROCESSES, self._errors()

    def _read(self, process: Process) -> None:
        for line in process:
            self._lines.put(line)
        self._lines.put(None)

    def _errors(self) -> str:
        return "\n".join(process.errors() for process in self._processes)
