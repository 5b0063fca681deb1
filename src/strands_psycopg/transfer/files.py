"""The folders of Strands' ``FileSessionManager``, in both directions."""

import filecmp
import json
import os
import stat
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from strands.types.session import SessionMessage

from strands_psycopg.codec import decode
from strands_psycopg.errors import SessionExistsError, TransferError
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.transfer.layout import AGENT, JSON, MESSAGE, MULTI_AGENT, SESSION, folder_rows
from strands_psycopg.transfer.result import TransferResult
from strands_psycopg.transfer.rows import MessageRow, Row, agent_row
from strands_psycopg.transfer.sources import ImportIssues, UnreadableError
from strands_psycopg.transfer.stored import StoredSession, StoredSessions

# What file systems take as a name, in bytes.
_LONGEST_NAME = 255


class FileSessions:
    """The sessions in a directory of ``FileSessionManager``, as a source for ``import_sessions``.

    Symbolic links in it are refused, as Strands refuses them.

    Args:
        directory: The manager's ``storage_dir``.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def sessions(self) -> Generator["_SessionFolder", None, None]:
        """Give the sessions, sorted by their ids.

        Raises:
            TransferError: The directory cannot be read.
        """
        try:
            names = sorted(path.name for path in self._directory.iterdir() if path.name.startswith(SESSION))
        except OSError as error:
            raise TransferError(f"the directory {self._directory} cannot be read: {error.strerror}") from error
        for name in names:
            yield _SessionFolder(self._directory / name)


class _SessionFolder:
    def __init__(self, path: Path) -> None:
        self._path = path
        # Of which it is known that no symbolic link leads to them.
        self._plain: set[tuple[str, ...]] = set()

    @property
    def session_id(self) -> str:
        return self._path.name.removeprefix(SESSION)

    def rows(self, issues: ImportIssues) -> Iterator[Row]:
        """Give the rows, as every source does."""
        return folder_rows(self, issues)

    def name(self, *path: str) -> str:
        return str(self._path.joinpath(*path))

    def names(self, *path: str) -> list[str]:
        try:
            self._refuse_links(path)
            return [child.name for child in self._path.joinpath(*path).iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from error

    def read(self, *path: str) -> bytes:
        file = self._path.joinpath(*path)
        try:
            self._refuse_links(path)
            # A pipe would be waited for.
            if not stat.S_ISREG(file.lstat().st_mode):
                raise UnreadableError("is no regular file")
            return file.read_bytes()
        except FileNotFoundError:
            raise UnreadableError("is missing") from None
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from error

    def readers(self, *path: str, names: Sequence[str]) -> Iterator[Callable[[], bytes]]:
        return (partial(self.read, *path, name) for name in names)

    def _refuse_links(self, path: tuple[str, ...]) -> None:
        if path and path[:-1] not in self._plain:
            self._refuse_links(path[:-1])
            self._plain.add(path[:-1])
        if (link := self._path.joinpath(*path)).is_symlink():
            raise UnreadableError(f"is refused, since {link} is a symbolic link")


def export_files(
    repository: PostgresSessionRepository, session_id: str, directory: str | os.PathLike[str]
) -> TransferResult:
    """Write a session as Strands' ``FileSessionManager`` does, so that it can go on with it.

    The session's folder appears in the directory when it is complete. Bytes in multi-agents' states, and dicts that
    look like encoded bytes, are refused, since Strands would give them back as something else.

    Args:
        repository: Where the session is.
        session_id: The session.
        directory: The manager's ``storage_dir``; created if it is missing.

    Raises:
        SessionNotFoundError: The session does not exist.
        SessionExistsError: The directory has a folder for the session with other content; the very same counts as
            already there.
        TransferError: An id is no plain file name, or a file cannot be written, or the session changed meanwhile.
    """
    stored = StoredSessions(repository).read(session_id)
    name = _file_name("session", SESSION, session_id)
    target = Path(directory, name)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Beside the target, so that it can take its place at once.
        with tempfile.TemporaryDirectory(prefix=".strands_psycopg_", dir=target.parent) as temporary:
            folder = Path(temporary, name)
            counts = _write(stored, folder)
            if not os.path.lexists(target):
                folder.rename(target)
                return counts
            if target.is_symlink() or not _is_same(folder, target):
                raise SessionExistsError(
                    f"exporting session {session_id!r}: {target} exists and is not the same; remove it first, or "
                    "export to another directory"
                )
            return TransferResult(already_there=1)
    except OSError as error:
        raise TransferError(f"exporting session {session_id!r} to {directory}: {error.strerror}") from error


def _write(stored: StoredSession, folder: Path) -> TransferResult:
    """Write a session's folder; give what is in it."""
    session_id = stored.session.session_id
    for path in (folder, folder / "agents", folder / "multi_agents"):
        path.mkdir(mode=0o700)
    session = stored.session.to_dict()
    times = _times(session["created_at"], session["updated_at"])
    _write_file(folder / "session.json", {**session, **times}, f"session {session_id!r}")
    messages = 0
    for agent in (each.agent for each in stored.agents.values()):
        path = folder / "agents" / _file_name("agent", AGENT, agent.agent_id)
        (path / "messages").mkdir(mode=0o700, parents=True)
        what = f"agent {agent.agent_id!r} of session {session_id!r}"
        _refuse_lookalikes(what, *agent_row(agent))
        record = agent.to_dict()
        _write_file(path / "agent.json", {**record, **_times(agent.created_at, agent.updated_at)}, what)
        for row in stored.messages(agent.agent_id):
            what = f"message {row.message_id} of agent {agent.agent_id!r} in session {session_id!r}"
            _refuse_lookalikes(what, *row)
            _write_file(path / "messages" / f"{MESSAGE}{row.message_id}{JSON}", _message(row), what)
            messages += 1
    for multi_agent in stored.multi_agents.values():
        path = folder / "multi_agents" / _file_name("multi-agent", MULTI_AGENT, multi_agent.multi_agent_id)
        path.mkdir(mode=0o700)
        what = f"multi-agent {multi_agent.multi_agent_id!r} of session {session_id!r}"
        _write_file(path / "multi_agent.json", multi_agent.state, what)
    stored.check()
    return TransferResult(
        sessions=1, agents=len(stored.agents), messages=messages, multi_agents=len(stored.multi_agents)
    )


def _message(row: MessageRow) -> dict[str, Any]:
    redaction = None if row.redact_message is None else decode(row.redact_message, row.redact_message_exact)
    times = _times(row.created_at.isoformat(), row.updated_at.isoformat())
    return SessionMessage(decode(row.message, row.message_exact), row.message_id, redaction, **times).to_dict()


def _times(created_at: str, updated_at: str) -> dict[str, str]:
    """Give times in Strands' form, which has no fraction if that is 0."""
    return {
        "created_at": datetime.fromisoformat(created_at).isoformat(),
        "updated_at": datetime.fromisoformat(updated_at).isoformat(),
    }


def _refuse_lookalikes(what: str, *columns: object) -> None:
    if any(isinstance(column, str) and column.startswith("bytes ") for column in columns):
        raise TransferError(
            f"{what} has a dict that Strands' files would give back as bytes; export JSON lines instead"
        )


def _write_file(path: Path, record: dict[str, Any], what: str) -> None:
    try:
        data = json.dumps(record, indent=2, ensure_ascii=False).encode()
    except TypeError:
        raise TransferError(
            f"{what} has bytes in its state, for which Strands' files have no place; export JSON lines instead"
        ) from None
    except UnicodeEncodeError:
        # Lone surrogates, which Strands reads but cannot write.
        data = json.dumps(record, indent=2).encode()
    path.write_bytes(data)


def _file_name(kind: str, prefix: str, name: str) -> str:
    file_name = prefix + name
    if Path(file_name).name != file_name or len(os.fsencode(file_name)) > _LONGEST_NAME:
        raise TransferError(
            f"the {kind} id {name!r} is no plain file name, so it has no place in Strands' files; export JSON lines "
            "instead"
        )
    return file_name


def _is_same(folder: Path, other: Path) -> bool:
    """Compare two folders to the byte."""
    comparison = filecmp.dircmp(folder, other, ignore=[], hide=[])
    if comparison.left_only or comparison.right_only or comparison.common_funny:
        return False
    _, different, unreadable = filecmp.cmpfiles(folder, other, comparison.common_files, shallow=False)
    return (
        not different
        and not unreadable
        and all(_is_same(folder / name, other / name) for name in comparison.common_dirs)
    )
