"""Import from and export to the files of Strands' ``FileSessionManager``."""

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
from strands_psycopg.repository.window import stored_places
from strands_psycopg.system_errors import explain, is_exhausted
from strands_psycopg.transfer.layout import (
    AGENT_PREFIX,
    JSON_SUFFIX,
    MESSAGE_PREFIX,
    MULTI_AGENT_PREFIX,
    SESSION_FILE,
    SESSION_PREFIX,
    session_rows,
)
from strands_psycopg.transfer.result import TransferResult
from strands_psycopg.transfer.rows import MessageRow, Row, agent_row
from strands_psycopg.transfer.sources import ImportIssues, UnreadableError
from strands_psycopg.transfer.stored_sessions import AgentWithWindow, StoredSession, StoredSessions

# The limit of most file systems, in bytes.
_MAX_NAME_LENGTH = 255


class FileSessions:
    """The sessions in a directory of ``FileSessionManager``, as a source for ``import_sessions``.

    Symbolic links in it are refused, as in Strands.

    Args:
        directory: The manager's ``storage_dir``.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} directory={str(self._directory)!r}>"

    def sessions(self) -> Generator["_FileSession", None, None]:
        """Yield the sessions, ordered by id.

        Raises:
            TransferError: The directory cannot be read, or has no sessions.
        """
        try:
            names = sorted(path.name for path in self._directory.iterdir() if path.name.startswith(SESSION_PREFIX))
        except OSError as error:
            raise TransferError(f"the directory {self._directory} cannot be read: {explain(error)}") from error
        if not names:
            is_session = (self._directory / SESSION_FILE).exists()
            advice = "it is a session itself, so name its parent" if is_session else "name a manager's storage_dir"
            raise TransferError(f"{self._directory} has no {SESSION_PREFIX}* directories; {advice}")
        for name in names:
            yield _FileSession(self._directory / name)


class _FileSession:
    raw = False

    def __init__(self, path: Path) -> None:
        self._path = path
        # Paths that are known not to contain a symbolic link.
        self._checked: set[tuple[str, ...]] = set()

    @property
    def session_id(self) -> str:
        return self._path.name.removeprefix(SESSION_PREFIX)

    def rows(self, issues: ImportIssues) -> Iterator[Row]:
        """Yield the rows, as ``SourceSession.rows`` does."""
        return session_rows(self, issues)

    def full_name(self, *path: str) -> str:
        return str(self._path.joinpath(*path))

    def list_names(self, *path: str) -> list[str]:
        try:
            self._reject_symlinks(path)
            return [entry.name for entry in self._path.joinpath(*path).iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._failure(path, error) from error

    def read(self, *path: str) -> bytes:
        file = self._path.joinpath(*path)
        try:
            self._reject_symlinks(path)
            # Reading a pipe would wait for a writer.
            if not stat.S_ISREG(file.lstat().st_mode):
                raise UnreadableError("is not a regular file")
            return file.read_bytes()
        except FileNotFoundError:
            raise UnreadableError("is missing") from None
        except OSError as error:
            raise self._failure(path, error) from error

    def readers(self, *path: str, names: Sequence[str]) -> Iterator[Callable[[], bytes]]:
        return (partial(self.read, *path, name) for name in names)

    def _failure(self, path: tuple[str, ...], error: OSError) -> Exception:
        if is_exhausted(error):
            # The file is not bad, and must not be skipped.
            return TransferError(f"{self.full_name(*path)} cannot be read: {explain(error)}")
        return UnreadableError(f"cannot be read: {error.strerror}")

    def _reject_symlinks(self, path: tuple[str, ...]) -> None:
        if path and path[:-1] not in self._checked:
            self._reject_symlinks(path[:-1])
            self._checked.add(path[:-1])
        if (link := self._path.joinpath(*path)).is_symlink():
            raise UnreadableError(f"is refused because {link} is a symbolic link")


def export_files(
    repository: PostgresSessionRepository, session_id: str, directory: str | os.PathLike[str]
) -> TransferResult:
    """Write a session as files that Strands' ``FileSessionManager`` can continue with.

    The session's directory appears in the target directory when it is complete. If it already exists with the same
    content, the session counts as unchanged. Bytes in the state of a multi-agent, and dicts that look like encoded
    bytes, are refused, because Strands would not read back the same value.

    Files hold the agents with their logs, from which Strands restores the messages after those that its conversation
    manager has removed, and a summary of these. They have no place for what else the agents hold in memory (pinned and
    edited messages, offloaded results, ...), for checkpoints and for the session's storage: the result counts the
    agents for which that makes a difference, the checkpoints and the values. Export JSON lines to keep all of it.

    Args:
        repository: Where the session is stored.
        session_id: The session.
        directory: The manager's ``storage_dir``; created if it is missing.

    Raises:
        SessionNotFoundError: The session does not exist.
        SessionExistsError: The session's directory already exists with other content.
        TransferError: An id cannot be used as a file name, or a file cannot be written, or the session, an agent or
            messages were deleted meanwhile.
    """
    stored = StoredSessions(repository).read(session_id)
    name = _file_name("session", SESSION_PREFIX, session_id)
    target = Path(directory, name)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # On the same file system as the target, so that renaming is atomic.
        with tempfile.TemporaryDirectory(
            prefix=".strands_psycopg_", dir=target.parent, ignore_cleanup_errors=True
        ) as temporary:
            folder = Path(temporary, name)
            counts = _write_session(stored, folder)
            if not os.path.lexists(target):
                folder.rename(target)
                return counts
            if target.is_symlink() or not _is_same(folder, target):
                raise SessionExistsError(
                    f"exporting session {session_id!r}: {target} already exists with other content; remove it, or "
                    "export to another directory"
                )
            return TransferResult(unchanged=1)
    except OSError as error:
        raise TransferError(f"exporting session {session_id!r} to {directory}: {explain(error)}") from error


def _write_session(stored: StoredSession, folder: Path) -> TransferResult:
    """Write a session's directory and return the counts."""
    session_id = stored.session.session_id
    for path in (folder, folder / "agents", folder / "multi_agents"):
        path.mkdir(mode=0o700)
    session = stored.session.to_dict()
    times = _format_times(session["created_at"], session["updated_at"])
    _write_file(folder / SESSION_FILE, {**session, **times}, f"session {session_id!r}")
    messages = 0
    for agent in (each.agent for each in stored.agents.values()):
        path = folder / "agents" / _file_name("agent", AGENT_PREFIX, agent.agent_id)
        (path / "messages").mkdir(mode=0o700, parents=True)
        label = f"agent {agent.agent_id!r} of session {session_id!r}"
        _reject_encoded_bytes(label, *agent_row(agent))
        record = agent.to_dict()
        _write_file(path / "agent.json", {**record, **_format_times(agent.created_at, agent.updated_at)}, label)
        for row in stored.messages(agent.agent_id):
            label = f"message {row.message_id} of agent {agent.agent_id!r} in session {session_id!r}"
            _reject_encoded_bytes(label, *row)
            _write_file(
                path / "messages" / f"{MESSAGE_PREFIX}{row.message_id}{JSON_SUFFIX}", _message_record(row), label
            )
            messages += 1
    for multi_agent in stored.multi_agents.values():
        path = folder / "multi_agents" / _file_name("multi-agent", MULTI_AGENT_PREFIX, multi_agent.multi_agent_id)
        path.mkdir(mode=0o700)
        label = f"multi-agent {multi_agent.multi_agent_id!r} of session {session_id!r}"
        _write_file(path / "multi_agent.json", multi_agent.state, label)
    stored.check_not_deleted()
    return TransferResult(
        sessions=1,
        agents=len(stored.agents),
        messages=messages,
        multi_agents=len(stored.multi_agents),
        windows_omitted=sum(not _is_restored_by_strands(each) for each in stored.agents.values()),
        checkpoints_omitted=sum(stored.checkpoint_count(agent_id) for agent_id in stored.agents),
        values_omitted=len(stored.value_keys),
    )


def _is_restored_by_strands(stored: AgentWithWindow) -> bool:
    """Return whether Strands restores an agent with the messages of its window."""
    state = stored.agent.conversation_manager_state
    places = stored_places(stored.window, state, stored.messages)
    if state.get("summary_message") and places and places[0] < 0:
        # Strands restores the summary, too.
        del places[0]
    return places == stored_places(None, state, stored.messages)


def _message_record(row: MessageRow) -> dict[str, Any]:
    redaction = None if row.redact_message is None else decode(row.redact_message, row.redact_message_exact)
    times = _format_times(row.created_at.isoformat(), row.updated_at.isoformat())
    return SessionMessage(decode(row.message, row.message_exact), row.message_id, redaction, **times).to_dict()


def _format_times(created_at: str, updated_at: str) -> dict[str, str]:
    """Return the times as Strands writes them, without a fraction if it is 0."""
    return {
        "created_at": datetime.fromisoformat(created_at).isoformat(),
        "updated_at": datetime.fromisoformat(updated_at).isoformat(),
    }


def _reject_encoded_bytes(label: str, *columns: object) -> None:
    if any(isinstance(column, str) and column.startswith("bytes ") for column in columns):
        raise TransferError(
            f"{label} has a dict that Strands would read back from its files as bytes; export JSON lines instead"
        )


def _write_file(path: Path, record: dict[str, Any], label: str) -> None:
    try:
        data = json.dumps(record, indent=2, ensure_ascii=False).encode()
    except TypeError:
        raise TransferError(
            f"{label} has bytes in its state, which Strands' files cannot hold; export JSON lines instead"
        ) from None
    except UnicodeEncodeError:
        # There are lone surrogates, which Strands can read but not write.
        data = json.dumps(record, indent=2).encode()
    path.write_bytes(data)


def _file_name(kind: str, prefix: str, name: str) -> str:
    file_name = prefix + name
    if Path(file_name).name != file_name or len(os.fsencode(file_name)) > _MAX_NAME_LENGTH:
        raise TransferError(
            f"the {kind} id {name!r} cannot be used as a file name, as Strands' files require; export JSON lines "
            "instead"
        )
    return file_name


def _is_same(folder: Path, other: Path) -> bool:
    """Return whether two directories have the same files with the same bytes."""
    comparison = filecmp.dircmp(folder, other, ignore=[], hide=[])
    if comparison.left_only or comparison.right_only or comparison.common_funny:
        return False
    _, different, unreadable = filecmp.cmpfiles(folder, other, comparison.common_files, shallow=False)
    return (
        not different
        and not unreadable
        and all(_is_same(folder / name, other / name) for name in comparison.common_dirs)
    )
