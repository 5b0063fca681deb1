"""The directory layout of Strands' file and S3 session managers: one JSON file for each object of a session.

    session_<id>/session.json
    session_<id>/agents/agent_<id>/agent.json
    session_<id>/agents/agent_<id>/messages/message_<index>.json
    session_<id>/multi_agents/multi_agent_<id>/multi_agent.json

Ids are taken from directory names, not from the files, and messages are sorted by the numbers in their file names, as
Strands does.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from strands.types.session import SessionAgent

from strands_psycopg.repository.annotations import AnnotatedSession
from strands_psycopg.transfer.rows import Row, SessionRow, multi_agent_row, session_row
from strands_psycopg.transfer.sources import ImportIssues, SourceMessage, UnreadableError, agent_rows, with_times

SESSION_PREFIX = "session_"
SESSION_FILE = "session.json"
AGENT_PREFIX = "agent_"
MESSAGE_PREFIX = "message_"
MULTI_AGENT_PREFIX = "multi_agent_"
JSON_SUFFIX = ".json"


class SessionDirectory(Protocol):
    """The directory of one session, on a disk or in S3. A path in it is a sequence of names."""

    @property
    def session_id(self) -> str:
        """The session's id, from the directory's name."""

    def full_name(self, *path: str) -> str:
        """Return the full name of a file or directory, for messages to users."""

    def list_names(self, *path: str) -> list[str]:
        """Return the names of the entries of a directory in any order; an empty list if it does not exist.

        Raises:
            UnreadableError: The directory cannot be read.
        """

    def read(self, *path: str) -> bytes:
        """Return the content of a file.

        Raises:
            UnreadableError: The file cannot be read.
        """

    def readers(self, *path: str, names: Sequence[str]) -> Iterator[Callable[[], bytes]]:
        """Yield, for each of many files in a directory, a function that returns its content.

        The functions must be called in order; they raise what ``read`` raises.
        """


def session_rows(directory: SessionDirectory, issues: ImportIssues) -> Iterator[Row]:
    """Yield the rows of a session, as ``SourceSession.rows`` does."""
    session = issues.parse_or_skip(directory.full_name(SESSION_FILE), lambda: _read_session(directory))
    if session is None:
        return
    yield session
    for name in _list_names(directory, issues, AGENT_PREFIX, "agents"):
        yield from agent_rows(
            issues,
            session,
            directory.full_name("agents", name, "agent.json"),
            partial(_read_agent, directory, session, name),
            partial(_source_messages, directory, issues, name),
        )
    for name in _list_names(directory, issues, MULTI_AGENT_PREFIX, "multi_agents"):
        path = ("multi_agents", name, "multi_agent.json")
        row = issues.parse_or_skip(directory.full_name(*path), partial(_read_multi_agent, directory, session, path))
        if row is not None:
            yield row


def _list_names(directory: SessionDirectory, issues: ImportIssues, prefix: str, *path: str) -> list[str]:
    """Return the sorted names in a directory that start with a prefix."""
    names = issues.parse_or_skip(directory.full_name(*path), lambda: directory.list_names(*path))
    return sorted(name for name in names or () if name.startswith(prefix))


def _read_session(directory: SessionDirectory) -> SessionRow:
    record = _parse_record(directory.read(SESSION_FILE))
    updated_at = record.get("updated_at") or record["created_at"]
    changed = {"session_id": directory.session_id, "updated_at": updated_at}
    return session_row(AnnotatedSession.from_dict({**record, **changed}))


def _read_agent(directory: SessionDirectory, session: SessionRow, name: str) -> SessionAgent:
    record = with_times(session, _parse_record(directory.read("agents", name, "agent.json")))
    return SessionAgent.from_dict({**record, "agent_id": name.removeprefix(AGENT_PREFIX)})


def _source_messages(directory: SessionDirectory, issues: ImportIssues, agent_name: str) -> Iterator[SourceMessage]:
    path = ("agents", agent_name, "messages")
    found = []
    for name in _list_names(directory, issues, MESSAGE_PREFIX, *path):
        if name.endswith(JSON_SUFFIX):
            digits = name[len(MESSAGE_PREFIX) : -len(JSON_SUFFIX)]
            if digits.isascii() and digits.isdigit():
                found.append((int(digits), name))
            else:
                issues.skip(directory.full_name(*path, name), "has no index in its name")
    found.sort()
    readers = directory.readers(*path, names=[name for _, name in found])
    for (index, name), read in zip(found, readers, strict=True):
        yield SourceMessage(index, directory.full_name(*path, name), partial(_read_record, read))


def _read_multi_agent(directory: SessionDirectory, session: SessionRow, path: tuple[str, str, str]) -> Row:
    # Strands returns the state as it is in the file, without decoding bytes.
    state = _parse_record(directory.read(*path))
    times = with_times(session, {})
    return multi_agent_row(path[1].removeprefix(MULTI_AGENT_PREFIX), state, times["created_at"], times["updated_at"])


def _read_record(read: Callable[[], bytes]) -> dict[str, Any]:
    return _parse_record(read())


def _parse_record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data.decode())
    except UnicodeDecodeError:
        raise UnreadableError("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise UnreadableError(f"is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise UnreadableError("is not a JSON object")
    return record
