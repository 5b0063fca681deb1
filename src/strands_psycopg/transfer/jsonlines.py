"""Sessions as lines of JSON: for backups, for other databases and for programs that read JSON.

A session is a line of kind ``session`` with the format's name and version, a line for each ``agent``, followed by one
for each ``message`` of it, one for each ``multi_agent``, and a line of kind ``end`` with their numbers, without which
the session counts as cut off. ``kind`` is the first key of each. Several sessions may follow each other.

Every line is ASCII and JSON that any program can read. A document stands in it with its keys in their own order. What
programs do not agree about (NaN, lone surrogates, -0.0, large floats, ...) is kept as text in a key ``<name>_exact``
beside it, which then is what counts; see ``codec``.
"""

import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from tempfile import SpooledTemporaryFile
from typing import Any, TypeVar

from strands.types.session import Session, SessionAgent, SessionMessage

from strands_psycopg.codec import decode
from strands_psycopg.errors import BadFileError, TransferError
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.transfer.importing import import_one
from strands_psycopg.transfer.result import TransferResult
from strands_psycopg.transfer.rows import (
    AgentRow,
    MessageRow,
    Row,
    SessionRow,
    agent_row,
    message_row,
    multi_agent_row,
    session_row,
)
from strands_psycopg.transfer.sources import ImportIssues
from strands_psycopg.transfer.stored import StoredSession, StoredSessions

_T = TypeVar("_T")

FORMAT = "strands-psycopg"
VERSION = 1

# For each kind, what its lines have besides documents, the documents, and then times.
_FIELDS = {
    "session": (("session_id", "session_type"), ()),
    "agent": (("agent_id",), ("state", "conversation_manager_state", "_internal_state")),
    "message": (("agent_id", "message_id"), ("message", "redact_message")),
    "multi_agent": (("multi_agent_id",), ("state",)),
}

_TIMES = ("created_at", "updated_at")

_KIND = re.compile(r'\s*\{\s*"kind"\s*:\s*"(\w+)"')

# A session of more characters is kept in a file while it is being read.
_IN_MEMORY = 2**22


def export_session(repository: PostgresSessionRepository, session_id: str) -> Iterator[str]:
    """Give a session as lines of JSON, each with its line end.

    Agents, multi-agents and the number of each agent's messages are those of the moment of this call; messages are
    read page by page as lines are taken, so memory stays flat and no transaction is held. Agents may go on meanwhile:
    what they add is left out; what they redact is redacted in the lines that are still to come.

    Raises:
        SessionNotFoundError: The session does not exist.
        TransferError: Raised while lines are taken: the session, an agent or messages were deleted meanwhile. The last
            line is missing then, so what was written is not taken for a whole session.
    """
    return _lines(StoredSessions(repository).read(session_id))


def import_session(
    repository: PostgresSessionRepository, lines: Iterable[str], *, session_id: str | None = None
) -> TransferResult:
    """Store a session from its lines, with the times it had; whole, or not at all.

    Args:
        repository: Where to store it.
        lines: What ``export_session`` gave.
        session_id: The id to store it under, instead of its own.

    Raises:
        SessionExistsError: A session of this id exists and is not the same; one that is counts as already there.
        BadFileError: A line cannot be read.
        TransferError: There is no session, or more than one, or a part of it is missing, or its format is that of a
            newer version.
    """
    rest = iter(lines)
    with closing(SessionLines(rest, session_id=session_id).sessions()) as sessions:
        session = next(sessions, None)
        if session is None:
            raise TransferError("the lines hold no session")
        if any(line.strip() for line in rest):
            raise TransferError("the lines hold more than one session; use import_sessions")
        return import_one(repository, session)


class SessionLines:
    """Sessions in lines, as a source for ``import_sessions``; bad lines cannot be skipped.

    Args:
        lines: What ``export_session`` gave, of any number of sessions. They are read once.
        session_id: An id for the session in them, instead of its own.
    """

    def __init__(self, lines: Iterable[str], *, session_id: str | None = None) -> None:
        self._lines = lines
        self._session_id = session_id

    def sessions(self) -> Generator["_LinesOfSession", None, None]:
        """Give the sessions one after another.

        Raises:
            BadFileError: A line is in no session.
        """
        lines = enumerate(self._lines, start=1)
        header = next(lines, None)
        while header is not None:
            number, line = header
            header = None
            if _kind(line) == "session":
                with closing(_LinesOfSession(number, line, self._session_id)) as session:
                    header = session.fill(lines)
                    yield session
            elif line.strip():
                file = f"line {number}"
                raise BadFileError(f"{file} is in no session; only what export wrote can be imported", file=file)
            header = header or next(lines, None)


class _LinesOfSession:
    """The lines of one session, in a temporary file if they are many, so that they can be read again."""

    def __init__(self, number: int, header: str, given_id: str | None) -> None:
        self._first = number
        self._header = header
        self._given_id = given_id
        self._ends = False
        self._spool = SpooledTemporaryFile(  # noqa: SIM115
            _IN_MEMORY, "w+", encoding="utf-8", errors="surrogatepass", newline="\n"
        )

    @property
    def session_id(self) -> str:
        """Its id, or where it begins if the line there tells none."""
        try:
            return self._given_id or str(json.loads(self._header)["session_id"])
        except (ValueError, KeyError):
            return f"line {self._first}"

    def fill(self, lines: Iterator[tuple[int, str]]) -> tuple[int, str] | None:
        """Take the lines up to the session's last; give the next one if that had to be taken to find the end."""
        for number, line in lines:
            kind = _kind(line)
            if kind == "session":
                return number, line
            self._spool.write(line.strip() + "\n")
            if kind == "end":
                self._ends = True
                break
        return None

    def rows(self, _issues: ImportIssues) -> Iterator[Row]:
        """Give the rows, as every source does."""
        yield self._parsed(self._first, self._header, self._session)
        if not self._ends:
            raise self._incomplete("is cut off before its last line")
        counts = dict.fromkeys(("agents", "messages", "multi_agents"), 0)
        agent_id, index = None, 0
        seen: set[tuple[type[Row], str]] = set()
        self._spool.seek(0)
        for number, line in enumerate(self._spool, start=self._first + 1):
            if not line.strip():
                continue
            kind = _kind(line)
            if kind == "end":
                if self._parsed(number, line, lambda record: {name: record[name] for name in counts}) != counts:
                    raise self._incomplete("has not the numbers of agents and messages that its last line tells")
                return
            row = self._parsed(number, line, _row)
            if isinstance(row, MessageRow):
                if (row.agent_id, row.message_id) != (agent_id, index):
                    raise self._incomplete(f"has, in line {number}, not the next message of the agent before it")
                index += 1
            else:
                if (type(row), row[0]) in seen:
                    raise self._incomplete(f"has, in line {number}, an agent for the second time")
                seen.add((type(row), row[0]))
                agent_id, index = (row.agent_id if isinstance(row, AgentRow) else None), 0
            counts[f"{kind}s"] += 1
            yield row

    def close(self) -> None:
        """Delete what is kept."""
        self._spool.close()

    def _parsed(self, number: int, line: str, build: Callable[[dict[str, Any]], _T]) -> _T:
        issues = ImportIssues(skip_bad=False, advice="export the session again")
        parsed = issues.parsed(f"line {number}", lambda: build(json.loads(line)))
        assert parsed is not None
        return parsed

    def _session(self, record: dict[str, Any]) -> SessionRow:
        if record["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if record["version"] != VERSION:
            raise TransferError(
                f"session {self.session_id!r} has version {record['version']!r} of the format, and this package reads "
                f"version {VERSION}; install the version of strands-psycopg that wrote it, or a newer one"
            )
        return session_row(Session.from_dict({**record, "session_id": self._given_id or record["session_id"]}))

    def _incomplete(self, what: str) -> TransferError:
        return TransferError(
            f"session {self.session_id!r}, which begins in line {self._first}, {what}; export it again"
        )


def _lines(stored: StoredSession) -> Iterator[str]:
    yield _line("session", session_row(stored.session), f'"format": "{FORMAT}", "version": {VERSION}')
    messages = 0
    for agent in stored.agents.values():
        yield _line("agent", agent_row(agent.agent))
        for message in stored.messages(agent.agent.agent_id):
            yield _line("message", message)
            messages += 1
    for multi_agent in stored.multi_agents.values():
        yield _line("multi_agent", multi_agent_row(*multi_agent))
    stored.check()
    counts = {"agents": len(stored.agents), "messages": messages, "multi_agents": len(stored.multi_agents)}
    yield json.dumps({"kind": "end", **counts}) + "\n"


def _line(kind: str, row: Row, *more: str) -> str:
    plain, documents = _FIELDS[kind]
    parts = [f'"kind": "{kind}"', *more, *(f'"{name}": {json.dumps(getattr(row, name))}' for name in plain)]
    for name in documents:
        column = name.lstrip("_")
        text, exact = getattr(row, column), getattr(row, f"{column}_exact")
        parts.append(f'"{name}": {"null" if text is None else text}')
        # The order of keys is that of the text.
        if exact is not None and not exact.startswith("order "):
            parts.append(f'"{name}_exact": {json.dumps(exact)}')
    parts += [f'"{name}": "{getattr(row, name).isoformat(timespec="microseconds")}"' for name in _TIMES]
    return "{" + ", ".join(parts) + "}\n"


def _kind(line: str) -> str | None:
    match = _KIND.match(line)
    return match and match[1]


def _row(record: dict[str, Any]) -> Row:
    kind = record["kind"]
    if kind not in _FIELDS or kind == "session":
        raise ValueError("its kind is unknown")
    documents = {name: _document(record, name) for name in _FIELDS[kind][1]}
    times = [record[name] for name in _TIMES]
    if kind == "agent":
        return agent_row(SessionAgent(record["agent_id"], *documents.values(), *times))
    if kind == "message":
        message, redaction = documents.values()
        return message_row(record["agent_id"], SessionMessage(message, record["message_id"], redaction, *times))
    return multi_agent_row(record["multi_agent_id"], documents["state"], *times)


def _document(record: dict[str, Any], name: str) -> Any:
    exact = record.get(f"{name}_exact")
    if exact is not None and not isinstance(exact, str):
        raise ValueError(f"{name}_exact must be a string")
    if exact is not None:
        return decode("null", exact)
    # Only what the codec decodes has bytes in it.
    return decode(json.dumps(record[name]), None)
