"""Sessions as JSON lines: for backups, for other databases and for programs that read JSON.

A session is a line of kind ``session`` with the format's name and version, the lines of each agent, a line for each
``multi_agent``, one for each ``value`` of its storage, and a line of kind ``end`` with their counts. The lines of an
agent are one of kind ``agent``, one for each message of its log (``message``), one for each message that it or a
checkpoint has in another form (``message_variant``), and one for each ``checkpoint``. A session without the last line
is incomplete. A file may contain several sessions. If the first line has ``"raw": true``, documents are those that a
payload codec has returned, and an import stores them as they are. See ``lines`` for the lines themselves.
"""

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from strands_psycopg.errors import BadFileError, TransferError
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.repository.annotations import AnnotatedSession
from strands_psycopg.storage.session_values import rename_key
from strands_psycopg.transfer.importing import import_one
from strands_psycopg.transfer.lines import KINDS, format_line, kind_of, parse_metadata, parse_row
from strands_psycopg.transfer.result import TransferResult
from strands_psycopg.transfer.rows import (
    AgentRow,
    CheckpointRow,
    MessageRow,
    MultiAgentRow,
    PartRow,
    Row,
    SessionRow,
    ValueRow,
    VariantRow,
    agent_row,
    multi_agent_row,
    session_row,
)
from strands_psycopg.transfer.sources import ImportIssues
from strands_psycopg.transfer.stored_sessions import StoredSession, StoredSessions
from strands_psycopg.transfer.temporary_lines import TemporaryLines

_T = TypeVar("_T")

FORMAT = "strands-psycopg"
VERSION = 1

# What the last line of a session counts.
_COUNTS = ("agents", "messages", "message_variants", "checkpoints", "multi_agents", "values")

# Before the place of an agent's first message.
_START = (0, -1)


def export_session(repository: PostgresSessionRepository, session_id: str, *, raw: bool = False) -> Iterator[str]:
    """Return an iterator over a session's JSON lines, each with its line end.

    Agents with their windows, message variants and checkpoints, multi-agents, the values of the session's storage that
    have not expired, and the number of each agent's messages are those at the time of this call. Messages are read page
    by page while the iterator is consumed, and variants, checkpoints and values wait in a temporary file if they are
    many, so memory use does not grow with the session and no transaction is held.

    Agents may go on writing meanwhile. What they add is not exported, and what they delete is. What they redact is
    redacted in the lines that follow, in messages and their variants; except in a variant of no message of the log,
    such as a summary, that is redacted and then deleted. As in the database, the documents of agents and checkpoints
    and the values of storages are not redacted.

    Args:
        repository: Where the session is stored.
        session_id: The session.
        raw: Export documents as they are stored, for a backup that stays encrypted, instead of what the repository's
            ``payload_codec`` decodes. An import stores such lines as they are. Import them under the same id, since a
            codec may bind documents to their session.

    Raises:
        PayloadCodecError: The ``payload_codec`` failed; raised by the iterator for messages, variants,
            checkpoints and values.
        SessionNotFoundError: The session does not exist.
        TransferError: The temporary file cannot be written. Raised by the iterator: it cannot be read, or the session,
            an agent or messages were deleted meanwhile. The last line is missing then, so that an import refuses the
            lines.
    """
    return _export_lines(StoredSessions(repository, raw=raw).read(session_id))


def import_session(
    repository: PostgresSessionRepository, lines: Iterable[str], *, session_id: str | None = None
) -> TransferResult:
    """Store a session from its JSON lines with its original times, completely or not at all.

    A session that already exists with the same content counts as unchanged. The repository's ``payload_codec`` encodes
    documents, unless the lines were exported with ``raw=True``.

    Args:
        repository: Where to store the session.
        lines: The lines that ``export_session`` returned.
        session_id: A new id for the session. It replaces the old one in the keys of what Strands stashes and snapshots.

    Raises:
        SessionExistsError: A session of this id exists with other content.
        BadFileError: A line cannot be read.
        TransferError: There is no session, or more than one, or a part of it is missing, or its format is that of a
            newer version, or a temporary file cannot be written.
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
            TransferError: There are no lines, or a temporary file cannot be written.
        """
        lines = enumerate(self._lines, start=1)
        header = next(lines, None)
        if header is None:
            raise TransferError("there is nothing to import: no line was read; pass the output of export")
        while header is not None:
            number, line = header
            header = None
            if kind_of(line) == "session":
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
        self._lines = TemporaryLines()

    @property
    def session_id(self) -> str:
        """The session's id, or the number of its first line if that contains none."""
        try:
            return self._new_id or str(json.loads(self._header)["session_id"])
        except (ValueError, KeyError):
            return f"line {self._first_line}"

    @property
    def raw(self) -> bool:
        """Whether documents are stored as they are, without a payload codec."""
        try:
            return json.loads(self._header).get("raw") is True
        except (ValueError, AttributeError):
            return False

    def spool(self, lines: Iterator[tuple[int, str]]) -> tuple[int, str] | None:
        """Read lines up to the end of the session, and return the next session's first line if it was read too."""
        for number, line in lines:
            kind = kind_of(line)
            if kind == "session":
                return number, line
            self._lines.write(f"{line.strip()}\n".encode("utf-8", "surrogatepass"))
            if kind == "end":
                self._is_complete = True
                break
        return None

    def rows(self, _issues: ImportIssues) -> Iterator[Row]:
        """Yield the rows, as ``SourceSession.rows`` does."""
        yield self._parse(self._first_line, self._header, self._parse_session)
        if not self._is_complete:
            raise self._inconsistent("is cut off before its last line")
        counts = dict.fromkeys(_COUNTS, 0)
        order = _RowOrder()
        parse = partial(parse_row, raw=self.raw)
        for number, data in enumerate(self._lines.lines(), start=self._first_line + 1):
            line = data.decode("utf-8", "surrogatepass")
            if not line.strip():
                continue
            if kind_of(line) == "end":
                if self._parse(number, line, lambda record: {name: record[name] for name in counts}) != counts:
                    raise self._inconsistent("does not match the counts in its last line")
                return
            row = self._parse(number, line, parse)
            if problem := order.problem(row):
                raise self._inconsistent(f"{problem} in line {number}")
            if isinstance(row, ValueRow) and self._new_id is not None:
                original_id = str(json.loads(self._header)["session_id"])
                row = row._replace(key=rename_key(row.key, original_id, self._new_id))
            counts[f"{KINDS[type(row)]}s"] += 1
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
        changed = {"session_id": self._new_id or record["session_id"], "metadata": parse_metadata(record)}
        return session_row(AnnotatedSession.from_dict({**record, **changed}), raw=self.raw)

    def _inconsistent(self, problem: str) -> TransferError:
        return TransferError(
            f"session {self.session_id!r}, which begins in line {self._first_line}, {problem}; export it again"
        )


class _RowOrder:
    """Checks that the rows of a session follow each other as in an export."""

    def __init__(self) -> None:
        self._agent_id: str | None = None
        self._latest = _START
        self._latest_key = ""
        self._seen: set[tuple[type[Row], str]] = set()

    def problem(self, row: Row) -> str | None:
        """Return what is wrong with the session, whose next row this is; None if nothing is."""
        match row:
            case AgentRow() | MultiAgentRow():
                if (type(row), row[0]) in self._seen:
                    return "repeats an agent or multi-agent"
                self._seen.add((type(row), row[0]))
                self._agent_id, self._latest = (row.agent_id if isinstance(row, AgentRow) else None), _START
            case ValueRow():
                if row.key <= self._latest_key:
                    return "does not have the next value of its storage"
                self._latest_key = row.key
            case MessageRow() | VariantRow() | CheckpointRow():
                place = _place(row)
                has_gap = isinstance(row, MessageRow) and place != (0, self._latest[1] + 1)
                if row.agent_id != self._agent_id or place <= self._latest or has_gap:
                    return "does not have the next message, variant or checkpoint of its agent"
                self._latest = place
        return None


def _place(row: PartRow) -> tuple[int, int]:
    """Return what the lines of an agent are ordered by."""
    match row:
        case MessageRow():
            return 0, row.message_id
        case VariantRow():
            return 1, row.variant_id
        case CheckpointRow():
            return 2, UUID(row.snapshot_id).int


def _export_lines(stored: StoredSession) -> Iterator[str]:
    counts = dict.fromkeys(_COUNTS, 0)
    header = f'"format": "{FORMAT}", "version": {VERSION}' + (', "raw": true' if stored.raw else "")
    yield format_line(session_row(stored.session, raw=stored.raw), header)
    for row in _rows(stored):
        yield format_line(row)
        counts[f"{KINDS[type(row)]}s"] += 1
    stored.check_not_deleted()
    yield json.dumps({"kind": "end", **counts}) + "\n"


def _rows(stored: StoredSession) -> Iterator[Row]:
    for agent_id, agent in stored.agents.items():
        yield agent_row(agent.agent, agent.window, raw=stored.raw)
        yield from stored.parts(agent_id)
    for multi_agent in stored.multi_agents.values():
        yield multi_agent_row(*multi_agent, raw=stored.raw)
    yield from stored.values()
