"""Sessions as JSON lines: for backups, for other databases and for programs that read JSON.

A session is a line of kind ``session`` with the format's name and version, a line for each ``agent`` followed by one
for each of its messages (``message``), a line for each ``multi_agent``, and a line of kind ``end`` with their counts. A
session without that last line is incomplete. ``kind`` is the first key of every line. A file may contain several
sessions.

Every line is ASCII and JSON that any program can read. Documents keep the order of their keys. If a document contains
values that programs read differently (NaN, lone surrogates, -0.0, large floats, ...), a key ``<name>_exact`` beside it
contains its exact text, which an import reads instead; see ``codec``.
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

# For each kind, the plain fields and the documents of its lines. The times follow.
_FIELDS = {
    "session": (("session_id", "session_type"), ()),
    "agent": (("agent_id",), ("state", "conversation_manager_state", "_internal_state")),
    "message": (("agent_id", "message_id"), ("message", "redact_message")),
    "multi_agent": (("multi_agent_id",), ("state",)),
}

_TIMES = ("created_at", "updated_at")

_KIND = re.compile(r'\s*\{\s*"kind"\s*:\s*"(\w+)"')

# A session of more than this many bytes is kept in a temporary file while it is read.
_MAX_IN_MEMORY = 2**22


def export_session(repository: PostgresSessionRepository, session_id: str) -> Iterator[str]:
    """Return an iterator over a session's JSON lines, each with its line end.

    Agents, multi-agents and the number of each agent's messages are those at the time of this call. Messages are read
    page by page while the iterator is consumed, so memory use is constant and no transaction is held. Agents may go on
    writing meanwhile: what they add is not exported; what they redact is redacted in the lines that follow.

    Raises:
        SessionNotFoundError: The session does not exist.
        TransferError: Raised by the iterator: the session, an agent or messages were deleted meanwhile. The last line
            is missing then, so that an import refuses the lines.
    """
    return _export_lines(StoredSessions(repository).read(session_id))


def import_session(
    repository: PostgresSessionRepository, lines: Iterable[str], *, session_id: str | None = None
) -> TransferResult:
    """Store a session from its JSON lines with its original times, completely or not at all.

    A session that already exists with the same content counts as unchanged.

    Args:
        repository: Where to store the session.
        lines: The lines that ``export_session`` returned.
        session_id: A new id for the session.

    Raises:
        SessionExistsError: A session of this id exists with other content.
        BadFileError: A line cannot be read.
        TransferError: There is no session, or more than one, or a part of it is missing, or its format is that of a
            newer version.
    """
    rest = iter(lines)
    with closing(SessionLines(rest, session_id=session_id).sessions()) as sessions:
        session = next(sessions, None)
        if session is None:
            raise TransferError("the lines contain no session")
        if any(line.strip() for line in rest):
            raise TransferError("the lines contain more than one session; use import_sessions")
        return import_one(repository, session)


class SessionLines:
    """Sessions in JSON lines, as a source for ``import_sessions``. Bad lines cannot be skipped.

    Args:
        lines: The lines that ``export_session`` returned for any number of sessions. They are read once.
        session_id: A new id for the session in them.
    """

    def __init__(self, lines: Iterable[str], *, session_id: str | None = None) -> None:
        self._lines = lines
        self._session_id = session_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} session_id={self._session_id!r}>"

    def sessions(self) -> Generator["_LinesSession", None, None]:
        """Yield the sessions in the order of the lines.

        Raises:
            BadFileError: A line belongs to no session.
        """
        lines = enumerate(self._lines, start=1)
        header = next(lines, None)
        while header is not None:
            number, line = header
            header = None
            if _kind(line) == "session":
                with closing(_LinesSession(number, line, self._session_id)) as session:
                    header = session.spool(lines)
                    yield session
            elif line.strip():
                file = f"line {number}"
                raise BadFileError(
                    f"{file} belongs to no session; only the output of export can be imported", file=file
                )
            header = header or next(lines, None)


class _LinesSession:
    """The lines of one session, kept so that they can be read again; in a temporary file if there are many."""

    def __init__(self, number: int, header: str, new_id: str | None) -> None:
        self._first_line = number
        self._header = header
        self._new_id = new_id
        self._is_complete = False
        self._lines = SpooledTemporaryFile(  # noqa: SIM115
            _MAX_IN_MEMORY, "w+", encoding="utf-8", errors="surrogatepass", newline="\n"
        )

    @property
    def session_id(self) -> str:
        """The session's id, or the number of its first line if that contains none."""
        try:
            return self._new_id or str(json.loads(self._header)["session_id"])
        except (ValueError, KeyError):
            return f"line {self._first_line}"

    def spool(self, lines: Iterator[tuple[int, str]]) -> tuple[int, str] | None:
        """Read lines up to the end of the session, and return the next session's first line if it was read too."""
        for number, line in lines:
            kind = _kind(line)
            if kind == "session":
                return number, line
            self._lines.write(line.strip() + "\n")
            if kind == "end":
                self._is_complete = True
                break
        return None

    def rows(self, _issues: ImportIssues) -> Iterator[Row]:
        """Yield the rows, as ``SourceSession.rows`` does."""
        yield self._parse(self._first_line, self._header, self._parse_session)
        if not self._is_complete:
            raise self._inconsistent("is cut off before its last line")
        counts = dict.fromkeys(("agents", "messages", "multi_agents"), 0)
        agent_id, index = None, 0
        seen: set[tuple[type[Row], str]] = set()
        self._lines.seek(0)
        for number, line in enumerate(self._lines, start=self._first_line + 1):
            if not line.strip():
                continue
            kind = _kind(line)
            if kind == "end":
                if self._parse(number, line, lambda record: {name: record[name] for name in counts}) != counts:
                    raise self._inconsistent("does not match the counts in its last line")
                return
            row = self._parse(number, line, _parse_row)
            if isinstance(row, MessageRow):
                if (row.agent_id, row.message_id) != (agent_id, index):
                    raise self._inconsistent(f"does not have the next message of its agent in line {number}")
                index += 1
            else:
                if (type(row), row[0]) in seen:
                    raise self._inconsistent(f"repeats an agent or multi-agent in line {number}")
                seen.add((type(row), row[0]))
                agent_id, index = (row.agent_id if isinstance(row, AgentRow) else None), 0
            counts[f"{kind}s"] += 1
            yield row

    def close(self) -> None:
        """Delete the kept lines."""
        self._lines.close()

    def _parse(self, number: int, line: str, build: Callable[[dict[str, Any]], _T]) -> _T:
        issues = ImportIssues(skip_bad=False, hint="export the session again")
        parsed = issues.parse_or_skip(f"line {number}", lambda: build(json.loads(line)))
        assert parsed is not None
        return parsed

    def _parse_session(self, record: dict[str, Any]) -> SessionRow:
        if record["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if record["version"] != VERSION:
            raise TransferError(
                f"session {self.session_id!r} has version {record['version']!r} of the format, and this package reads "
                f"version {VERSION}; install the version of strands-psycopg that wrote it, or a newer one"
            )
        return session_row(Session.from_dict({**record, "session_id": self._new_id or record["session_id"]}))

    def _inconsistent(self, problem: str) -> TransferError:
        return TransferError(
            f"session {self.session_id!r}, which begins in line {self._first_line}, {problem}; export it again"
        )


def _export_lines(stored: StoredSession) -> Iterator[str]:
    yield _format_line("session", session_row(stored.session), f'"format": "{FORMAT}", "version": {VERSION}')
    messages = 0
    for agent in stored.agents.values():
        yield _format_line("agent", agent_row(agent.agent))
        for message in stored.messages(agent.agent.agent_id):
            yield _format_line("message", message)
            messages += 1
    for multi_agent in stored.multi_agents.values():
        yield _format_line("multi_agent", multi_agent_row(*multi_agent))
    stored.check_not_deleted()
    counts = {"agents": len(stored.agents), "messages": messages, "multi_agents": len(stored.multi_agents)}
    yield json.dumps({"kind": "end", **counts}) + "\n"


def _format_line(kind: str, row: Row, *more: str) -> str:
    plain, documents = _FIELDS[kind]
    parts = [f'"kind": "{kind}"', *more, *(f'"{name}": {json.dumps(getattr(row, name))}' for name in plain)]
    for name in documents:
        column = name.lstrip("_")
        text, exact = getattr(row, column), getattr(row, f"{column}_exact")
        parts.append(f'"{name}": {"null" if text is None else text}')
        # The JSON text above already has the order of keys.
        if exact is not None and not exact.startswith("order "):
            parts.append(f'"{name}_exact": {json.dumps(exact)}')
    parts += [f'"{name}": "{getattr(row, name).isoformat(timespec="microseconds")}"' for name in _TIMES]
    return "{" + ", ".join(parts) + "}\n"


def _kind(line: str) -> str | None:
    match = _KIND.match(line)
    return match and match[1]


def _parse_row(record: dict[str, Any]) -> Row:
    kind = record["kind"]
    if kind not in _FIELDS or kind == "session":
        raise ValueError("its kind is unknown")
    documents = {name: _decode_document(record, name) for name in _FIELDS[kind][1]}
    times = [record[name] for name in _TIMES]
    if kind == "agent":
        return agent_row(SessionAgent(record["agent_id"], *documents.values(), *times))
    if kind == "message":
        message, redaction = documents.values()
        return message_row(record["agent_id"], SessionMessage(message, record["message_id"], redaction, *times))
    return multi_agent_row(record["multi_agent_id"], documents["state"], *times)


def _decode_document(record: dict[str, Any], name: str) -> Any:
    exact = record.get(f"{name}_exact")
    if exact is not None and not isinstance(exact, str):
        raise ValueError(f"{name}_exact must be a string")
    if exact is not None:
        return decode("null", exact)
    # Only the codec decodes bytes.
    return decode(json.dumps(record[name]), None)
