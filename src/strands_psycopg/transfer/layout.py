"""The layout in which Strands' file and S3 session managers keep a session: a JSON file for each thing in it.

    session_<id>/session.json
    session_<id>/agents/agent_<id>/agent.json
    session_<id>/agents/agent_<id>/messages/message_<index>.json
    session_<id>/multi_agents/multi_agent_<id>/multi_agent.json

What a folder is called counts, not the id in its file, and messages are ordered by the numbers in their names: so it is
for Strands.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from strands.types.session import Session, SessionAgent

from strands_psycopg.transfer.rows import Row, SessionRow, multi_agent_row, session_row
from strands_psycopg.transfer.sources import ImportIssues, SourceMessage, UnreadableError, agent_rows, with_times

SESSION = "session_"
AGENT = "agent_"
MESSAGE = "message_"
MULTI_AGENT = "multi_agent_"
JSON = ".json"


class Folder(Protocol):
    """The folder of one session, wherever it is. A path in it is a sequence of names."""

    @property
    def session_id(self) -> str:
        """The session's id, from the folder's name."""

    def name(self, *path: str) -> str:
        """Give a file or folder's full name, for users."""

    def names(self, *path: str) -> list[str]:
        """Give the names of what is in a folder, in any order; nothing if there is no such folder.

        Raises:
            UnreadableError: It cannot be read.
        """

    def read(self, *path: str) -> bytes:
        """Give what is in a file.

        Raises:
            UnreadableError: It cannot be read.
        """

    def readers(self, *path: str, names: Sequence[str]) -> Iterator[Callable[[], bytes]]:
        """For each of many files in a folder, give a function that gives what is in it.

        They are to be called in order, and raise what ``read`` does.
        """


def folder_rows(folder: Folder, issues: ImportIssues) -> Iterator[Row]:
    """Give the rows of a session, as every source does."""
    session = issues.parsed(folder.name("session.json"), lambda: _session(folder))
    if session is None:
        return
    yield session
    for name in _listed(folder, issues, AGENT, "agents"):
        yield from agent_rows(
            issues,
            session,
            folder.name("agents", name, "agent.json"),
            partial(_agent, folder, session, name),
            partial(_messages, folder, issues, name),
        )
    for name in _listed(folder, issues, MULTI_AGENT, "multi_agents"):
        path = ("multi_agents", name, "multi_agent.json")
        row = issues.parsed(folder.name(*path), partial(_multi_agent, folder, session, path))
        if row is not None:
            yield row


def _listed(folder: Folder, issues: ImportIssues, prefix: str, *path: str) -> list[str]:
    """Give the names in a folder that begin so, sorted."""
    names = issues.parsed(folder.name(*path), lambda: folder.names(*path))
    return sorted(name for name in names or () if name.startswith(prefix))


def _session(folder: Folder) -> SessionRow:
    record = _record(folder.read("session.json"))
    updated_at = record.get("updated_at") or record["created_at"]
    return session_row(Session.from_dict({**record, "session_id": folder.session_id, "updated_at": updated_at}))


def _agent(folder: Folder, session: SessionRow, name: str) -> SessionAgent:
    record = with_times(session, _record(folder.read("agents", name, "agent.json")))
    return SessionAgent.from_dict({**record, "agent_id": name.removeprefix(AGENT)})


def _messages(folder: Folder, issues: ImportIssues, agent: str) -> Iterator[SourceMessage]:
    path = ("agents", agent, "messages")
    found = []
    for name in _listed(folder, issues, MESSAGE, *path):
        if name.endswith(JSON):
            digits = name[len(MESSAGE) : -len(JSON)]
            if digits.isascii() and digits.isdigit():
                found.append((int(digits), name))
            else:
                issues.bad(folder.name(*path, name), "has no index in its name")
    found.sort()
    readers = folder.readers(*path, names=[name for _, name in found])
    for (index, name), read in zip(found, readers, strict=True):
        yield SourceMessage(index, folder.name(*path, name), partial(_read_record, read))


def _multi_agent(folder: Folder, session: SessionRow, path: tuple[str, str, str]) -> Row:
    # Strands gives the state back as it is in the file, without looking for bytes.
    state = _record(folder.read(*path))
    times = with_times(session, {})
    return multi_agent_row(path[1].removeprefix(MULTI_AGENT), state, times["created_at"], times["updated_at"])


def _read_record(read: Callable[[], bytes]) -> dict[str, Any]:
    return _record(read())


def _record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data.decode())
    except UnicodeDecodeError:
        raise UnreadableError("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise UnreadableError(f"is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise UnreadableError("holds no JSON object")
    return record
