import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from strands import Agent
from strands.session import FileSessionManager
from strands.types.session import Session, SessionAgent, SessionType

from strands_psycopg import PostgresSessionRepository, SessionExistsError, SessionNotFoundError
from strands_psycopg.errors import BadFileError, TransferError
from strands_psycopg.scripted_model import ScriptedModel
from strands_psycopg.transfer import (
    FileSessions,
    IncompleteTransferError,
    TransferResult,
    export_files,
    export_session,
    import_sessions,
    session_ids,
)
from support import agents, transfers
from support.multi_agents import Team


class Files(FileSessionManager):
    """Strands' file repository, without a session of its own."""

    def __init__(self, directory: Path) -> None:
        self.storage_dir = str(directory)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the bytes of every file in a folder, and None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def write_by_strands(folder: Path, session_id: str = "s") -> None:
    """Write a session of six messages with Strands; the second half is in the window."""
    files = Files(folder)
    files.create_session(Session(session_id, SessionType.AGENT))
    files.create_agent(session_id, transfers.agent("a"))
    for index in range(6):
        files.create_message(session_id, "a", transfers.message(index, {"z": index, "a": None}))


def texts(repository: PostgresSessionRepository, session_id: str = "s", offset: int = 0) -> list[Any]:
    found = repository.list_messages(session_id, "a", offset=offset)
    start = min(offset, len(found) + offset)
    assert [each.message_id for each in found] == list(range(start, start + len(found)))
    return [each.message["content"][0]["text"] for each in found]


@pytest.mark.parametrize("documents", [transfers.BY_STRANDS], ids=["odd documents"])
def test_imported_session_equals_what_strands_reads(
    repository: PostgresSessionRepository, folder: Path, documents: list[Any]
) -> None:
    transfers.fill(Files(folder), documents=documents)
    result = import_sessions(repository, FileSessions(folder))
    assert result == TransferResult(sessions=1, agents=2, messages=2 * len(documents), multi_agents=2)
    assert transfers.restored(repository) == transfers.restored(Files(folder))


def test_files_are_identical_after_import_and_export(
    repository: PostgresSessionRepository, folder: Path, tmp_path: Path
) -> None:
    transfers.fill(Files(folder), documents=transfers.BY_STRANDS)
    Files(folder).create_session(Session("empty", SessionType.AGENT, "2025-01-01T00:00:00+00:00"))
    result = import_sessions(repository, FileSessions(folder))
    back = TransferResult()
    for session_id in session_ids(repository):
        back += export_files(repository, session_id, tmp_path / "new" / "folder")
    assert back == result
    assert contents(tmp_path / "new" / "folder") == contents(folder)


def test_exported_files_hold_what_strands_can_read_but_not_write(
    repository: PostgresSessionRepository, folder: Path
) -> None:
    transfers.fill(repository, documents=transfers.IN_FILES)
    export_files(repository, "s", folder)
    in_files = transfers.restored(Files(folder))
    assert in_files == transfers.restored(repository)


def test_conversation_continues_after_import_and_export(repository: PostgresSessionRepository, folder: Path) -> None:
    def build_on_files(directory: str, *replies: str) -> Agent:
        manager = FileSessionManager("s", str(folder / directory))
        model = ScriptedModel([[reply] for reply in replies or ["unused"]])
        return Agent(model=model, session_manager=manager, callback_handler=None, tools=[agents.look_up])

    agent = build_on_files("1", "one")
    agent("first")
    import_sessions(repository, FileSessions(folder / "1"))
    moved = agents.build(repository, replies=agents.LOOK_UP, tools=[agents.look_up])
    assert agents.dump(moved) == agents.dump(agent)
    moved("second")
    export_files(repository, "s", folder / "2")
    agent = build_on_files("2", "three")
    assert agents.dump(agent) == agents.dump(moved)
    agent("third")
    assert [message["content"][0].get("text") for message in agent.messages][-2:] == ["third", "three"]
    assert agents.dump(build_on_files("2")) == agents.dump(agent)


def test_gaps_are_closed_in_order_and_counted(repository: PostgresSessionRepository, folder: Path) -> None:
    write_by_strands(folder)
    messages = folder / "session_s/agents/agent_a/messages"
    for index in (0, 3, 4):
        (messages / f"message_{index}.json").unlink()
    (messages / "message_5.json").rename(messages / "message_10.json")
    result = import_sessions(repository, FileSessions(folder))
    assert result == TransferResult(sessions=1, agents=1, messages=3, gaps_closed=2)
    assert texts(repository) == ["text 1", "text 2", "text 5"]
    assert import_sessions(repository, FileSessions(folder)) == TransferResult(unchanged=1)


def test_ids_are_taken_from_directory_names(repository: PostgresSessionRepository, folder: Path) -> None:
    write_by_strands(folder)
    shutil.copytree(folder / "session_s", folder / "session_copy")
    (folder / "session_copy/agents/agent_a").rename(folder / "session_copy/agents/agent_b")
    assert import_sessions(repository, FileSessions(folder)).sessions == 2
    assert len(repository.list_messages("copy", "b")) == 6


def test_other_files_are_ignored(repository: PostgresSessionRepository, folder: Path) -> None:
    write_by_strands(folder)
    session = folder / "session_s"
    for name in ("issues.txt", "session_s/.strands_x.tmp", "session_s/agents/agent_a/messages/.strands_y.tmp"):
        (folder / name).write_text("{")
    (session / "agents/agent_a/messages/message_1.json.bak").write_text("{")
    (folder / "other").mkdir()
    shutil.rmtree(session / "multi_agents")
    assert import_sessions(repository, FileSessions(folder)).messages == 6


def test_missing_times_are_replaced_by_the_sessions(repository: PostgresSessionRepository, folder: Path) -> None:
    write_by_strands(folder)
    for path in [*folder.rglob("agent.json"), *folder.rglob("message_*.json")]:
        record = json.loads(path.read_bytes())
        del record["created_at"], record["updated_at"]
        path.write_text(json.dumps(record))
    path = folder / "session_s/session.json"
    record = json.loads(path.read_bytes())
    path.write_text(
        json.dumps({**record, "created_at": "2025-01-02T03:04:05Z", "updated_at": "2025-01-03T01:00:00+01:00"})
    )
    import_sessions(repository, FileSessions(folder))
    session, agent = repository.read_session("s"), repository.read_agent("s", "a")
    assert session is not None
    assert agent is not None
    assert (session.created_at, session.updated_at) == (
        "2025-01-02T03:04:05.000000+00:00",
        "2025-01-03T00:00:00.000000+00:00",
    )
    assert {agent.created_at, *(each.updated_at for each in repository.list_messages("s", "a"))} == {session.created_at}
    assert import_sessions(repository, FileSessions(folder)).unchanged == 1


# The content of bad files and the reason in the error.
_BAD = {
    "cut": (b'{"message": {"role', "is not JSON: Unterminated string"),
    "empty": (b"", "is not JSON: Expecting value"),
    "list": (b"[]", "is not a JSON object"),
    "latin": ('{"message": "é"}'.encode("latin-1"), "is not UTF-8"),
    "deep": (b'{"message": ' + b"[" * 100_000, "is nested too deeply"),
    "without a message": (b"{}", "lacks 'message'"),
    "text": (b'{"message": "secret"}', "cannot be read: message must be a JSON object, not str"),
    "no base64": (b'{"message": {"a": {"__bytes_encoded__": true, "data": "a"}}}', "cannot be read: "),
    "time": (b'{"message": {}, "created_at": "secret"}', "cannot be read: created_at is not a time in ISO 8601"),
}


@pytest.mark.parametrize("kind", _BAD)
def test_bad_file_is_named_and_skipped_only_on_request(
    repository: PostgresSessionRepository, folder: Path, kind: str
) -> None:
    write_by_strands(folder)
    write_by_strands(folder, "t")
    bad = folder / "session_s/agents/agent_a/messages/message_4.json"
    bad.write_bytes(_BAD[kind][0])
    with pytest.raises(IncompleteTransferError) as caught:
        import_sessions(repository, FileSessions(folder))
    failure = caught.value.failures["s"]
    assert isinstance(failure, BadFileError)
    assert failure.file == str(bad)
    assert f"{bad} {_BAD[kind][1]}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.result == TransferResult(sessions=1, agents=1, messages=6)
    assert list(session_ids(repository)) == ["t"]
    result = import_sessions(repository, FileSessions(folder), skip_bad=True)
    assert (result.sessions, result.messages, result.unchanged, result.gaps_closed) == (1, 5, 1, 0)
    assert [each.startswith(f"{bad} {_BAD[kind][1]}") for each in result.skipped] == [True]
    assert texts(repository) == ["text 0", "text 1", "text 2", "text 3", "text 5"]
    assert import_sessions(repository, FileSessions(folder), skip_bad=True).unchanged == 2


def test_window_begins_with_the_same_message_when_one_before_it_is_skipped(
    repository: PostgresSessionRepository, folder: Path
) -> None:
    write_by_strands(folder)
    for index in (1, 4):
        (folder / f"session_s/agents/agent_a/messages/message_{index}.json").write_text("")
    assert len(import_sessions(repository, FileSessions(folder), skip_bad=True).skipped) == 2
    agent = repository.read_agent("s", "a")
    assert agent is not None
    assert json.dumps(agent.conversation_manager_state) == '{"removed_message_count": 2, "a": 1}'
    assert texts(repository, offset=2) == ["text 3", "text 5"]


@pytest.mark.parametrize(
    ("file", "left"),
    [
        ("session.json", TransferResult()),
        ("agents/agent_a/agent.json", TransferResult(sessions=1, agents=1, messages=5, multi_agents=2)),
        (
            "multi_agents/multi_agent_graph/multi_agent.json",
            TransferResult(sessions=1, agents=2, messages=10, multi_agents=1),
        ),
    ],
)
@pytest.mark.parametrize("content", ["{", None], ids=["bad", "missing"])
def test_skipping_a_bad_file_skips_what_depends_on_it(
    repository: PostgresSessionRepository, folder: Path, file: str, left: TransferResult, content: str | None
) -> None:
    transfers.fill(Files(folder), documents=[{"a": 1}] * 5)
    bad = folder / "session_s" / file
    bad.unlink() if content is None else bad.write_text(content)
    reason = "is missing" if content is None else "is not JSON: Expecting property name"
    with pytest.raises(IncompleteTransferError, match=reason):
        import_sessions(repository, FileSessions(folder))
    assert list(session_ids(repository)) == []
    result = import_sessions(repository, FileSessions(folder), skip_bad=True)
    skipped, *more = result.skipped
    assert not more
    assert skipped.startswith(f"{bad} {reason}")
    assert result == TransferResult(**{**vars(left), "skipped": (skipped,)})


def test_message_file_without_an_index_is_bad(repository: PostgresSessionRepository, folder: Path) -> None:
    write_by_strands(folder)
    messages = folder / "session_s/agents/agent_a/messages"
    (messages / "message_5.json").rename(messages / "message_five.json")
    with pytest.raises(IncompleteTransferError, match=r"message_five\.json has no index in its name"):
        import_sessions(repository, FileSessions(folder))
    assert import_sessions(repository, FileSessions(folder), skip_bad=True).messages == 5


@pytest.mark.parametrize(
    "path",
    [
        "",
        "session.json",
        "agents",
        "agents/agent_a",
        "agents/agent_a/messages",
        "agents/agent_a/messages/message_2.json",
    ],
)
def test_symbolic_links_are_refused(
    repository: PostgresSessionRepository, folder: Path, tmp_path: Path, path: str
) -> None:
    write_by_strands(folder)
    link = folder / "session_s" / path
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IncompleteTransferError, match=f"is refused because {link} is a symbolic link"):
        import_sessions(repository, FileSessions(folder))
    result = import_sessions(repository, FileSessions(folder), skip_bad=True)
    assert str(link) in result.skipped[0]
    assert result.messages == (5 if path.endswith("2.json") else 0)


def test_pipe_is_not_waited_for(repository: PostgresSessionRepository, folder: Path) -> None:
    write_by_strands(folder)
    os.mkfifo(folder / "session_s/agents/agent_a/messages/message_6.json")
    with pytest.raises(IncompleteTransferError, match=r"message_6\.json is not a regular file"):
        import_sessions(repository, FileSessions(folder))


def test_missing_directory_is_named(repository: PostgresSessionRepository, folder: Path) -> None:
    with pytest.raises(TransferError, match=f"the directory {folder} cannot be read: No such file or directory"):
        import_sessions(repository, FileSessions(folder))


@pytest.mark.parametrize("session_id", ["a/b", "../up", "x" * 250, "/"])
def test_session_id_that_cannot_be_a_file_name_is_refused(
    repository: PostgresSessionRepository, folder: Path, session_id: str
) -> None:
    repository.create_session(Session(session_id, SessionType.AGENT))
    with pytest.raises(TransferError, match=f"the session id '{session_id}' cannot be used as a file name"):
        export_files(repository, session_id, folder)
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["agent", "multi-agent"])
def test_other_ids_that_cannot_be_file_names_are_refused(
    repository: PostgresSessionRepository, folder: Path, kind: str
) -> None:
    repository.create_session(Session("..", SessionType.AGENT))
    repository.create_agent("..", SessionAgent("../a" if kind == "agent" else ".", {}, {}))
    repository.create_multi_agent("..", Team("../a" if kind == "multi-agent" else "m", {}))
    with pytest.raises(TransferError, match=rf"the {kind} id '\.\./a' cannot be used as a file name"):
        export_files(repository, "..", folder)
    assert contents(folder) == {}


@pytest.mark.parametrize("place", ["message", "agent", "multi-agent"])
def test_what_strands_would_read_back_differently_is_refused(
    repository: PostgresSessionRepository, folder: Path, place: str
) -> None:
    lookalike = {"__bytes_encoded__": True, "data": "aGk="}
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", SessionAgent("a", {"x": lookalike if place == "agent" else 1}, {}))
    repository.create_message("s", "a", transfers.message(0, lookalike if place == "message" else b"hi"))
    repository.create_multi_agent("s", Team("m", {"x": b"hi" if place == "multi-agent" else lookalike}))
    with pytest.raises(TransferError, match=f"{place} .* of .*bytes.*; export JSON lines instead"):
        export_files(repository, "s", folder)
    assert contents(folder) == {}


def test_exporting_again_finds_the_same_files(repository: PostgresSessionRepository, folder: Path) -> None:
    transfers.fill(repository, documents=transfers.IN_FILES)
    assert export_files(repository, "s", folder).sessions == 1
    before = contents(folder)
    assert export_files(repository, "s", folder) == TransferResult(unchanged=1)
    for change in ("more", "less", "other"):
        path = folder / "session_s/agents/agent_a/messages/message_2.json"
        data = path.read_bytes()
        if change == "more":
            path.with_name("message_9.json").write_text("{}")
        elif change == "less":
            path.unlink()
        else:
            path.write_bytes(data.replace(b"text 2", b"text 3"))
        changed = contents(folder)
        with pytest.raises(SessionExistsError, match="session_s already exists with other content; remove it"):
            export_files(repository, "s", folder)
        assert contents(folder) == changed != before
        path.with_name("message_9.json").unlink(missing_ok=True)
        path.write_bytes(data)


def test_nothing_is_left_of_an_export_that_fails(
    repository: PostgresSessionRepository, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers.fill(repository, documents=transfers.IN_FILES)
    write_bytes = Path.write_bytes

    def interrupt(path: Path, data: bytes) -> int:
        if path.name == "message_3.json":
            raise KeyboardInterrupt
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_files(repository, "s", folder)
    assert contents(folder) == {}
    with pytest.raises(SessionNotFoundError):
        export_files(repository, "missing", folder)


def test_files_and_lines_agree(repository: PostgresSessionRepository, folder: Path) -> None:
    transfers.fill(repository, documents=transfers.IN_FILES)
    lines = list(export_session(repository, "s"))
    export_files(repository, "s", folder)
    repository.delete_session("s")
    import_sessions(repository, FileSessions(folder))
    # Files have no times for multi-agents.
    imported = list(export_session(repository, "s"))
    assert [line for line in imported if "multi_agent" not in line] == [
        line for line in lines if "multi_agent" not in line
    ]
