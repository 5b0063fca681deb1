"""Agents move with all that they hold in memory, and with their checkpoints."""

import asyncio
import copy
import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager, SummarizingConversationManager
from strands.session import FileSessionManager
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionType

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository, PostgresStorage, SessionExistsError
from strands_psycopg.repository import session_tables
from strands_psycopg.repository.window import Variant, Window
from strands_psycopg.transfer import (
    FileSessions,
    TransferResult,
    export_files,
    export_session,
    import_session,
    import_sessions,
)
from strands_psycopg.transfer.stored_sessions import StoredSessions
from support import transfers
from support.agents import OverflowingModel, build, dump
from support.pausing import pause_before
from support.scale import scale
from support.tables import one

PINS = hasattr(SlidingWindowConversationManager(), "pin_first")
SNAPSHOTS = hasattr(Agent, "take_snapshot")
try:
    from strands.storage.storage import StorageSearchResult  # noqa: F401

    OFFLOADS = "context_manager" in inspect.signature(Agent).parameters
except ImportError:  # before strands-agents 1.54
    OFFLOADS = False

needs_checkpoints = pytest.mark.skipif(not SNAPSHOTS, reason="this version of Strands has no snapshots")


@tool
def weigh(thing: str) -> str:
    """Weigh a thing."""
    return "\n".join(f"{thing} {number}: " + "kilo" * 20 for number in range(500))


@pytest.fixture
def other(empty_dsn: str, pool_options: dict[str, Any]) -> Iterator[PostgresSessionRepository]:
    """Yield a repository on another database."""
    with PostgresSessionRepository(empty_dsn, **pool_options) as repository:
        repository.ensure_schema()
        yield repository


def text(role: Any, content: str) -> Message:
    return {"role": role, "content": [{"text": content}]}


def move(repository: PostgresSessionRepository, other: PostgresSessionRepository) -> TransferResult:
    """Import the session into another database and compare what an export of both contains."""
    result = import_session(other, export_session(repository, "s"))
    assert list(export_session(other, "s")) == list(export_session(repository, "s"))
    return result


# For each case, an agent's options and what happens to the agent.
Case = tuple[Callable[[PostgresSessionRepository], dict[str, Any]], Callable[[Agent], None]]


def talk(agent: Agent) -> None:
    for number in range(5):
        agent(str(number))


def edit(agent: Agent) -> None:
    talk(agent)
    agent.messages[3]["content"].append({"text": "more"})
    agent.messages.insert(2, text("user", "inserted"))
    agent.messages[6] = text("user", "replaced")
    agent.messages.append(copy.deepcopy(agent.messages[0]))
    del agent.messages[4]


def clear(agent: Agent) -> None:
    talk(agent)
    agent.messages.clear()


def load(agent: Agent) -> None:
    talk(agent)
    snapshot = agent.take_snapshot(preset="session")
    talk(agent)
    agent.load_snapshot(snapshot)


def nothing(_: PostgresSessionRepository) -> dict[str, Any]:
    return {}


def summarizing(_: PostgresSessionRepository, **options: Any) -> dict[str, Any]:
    manager = SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2, **options)
    return {"conversation_manager": manager, "model": OverflowingModel([["ok"]], overflows={3})}


def pinning(_: PostgresSessionRepository) -> dict[str, Any]:
    manager: Any = SlidingWindowConversationManager
    return {"conversation_manager": manager(window_size=4, pin_first=1)}


def offloading(repository: PostgresSessionRepository) -> dict[str, Any]:
    return {
        "context_manager": "auto",
        "storage": PostgresStorage(repository),
        "tools": [weigh],
        "replies": [[{"name": "weigh", "input": {"thing": "x"}}], ["done"]],
    }


CASES: dict[str, Case] = {
    "summary": (summarizing, talk),
    "edits": (nothing, edit),
    "cleared": (nothing, clear),
}
if PINS:
    CASES["pins"] = (pinning, talk)
    CASES["pins and summary"] = (lambda repository: summarizing(repository, pin_first=1), talk)
if SNAPSHOTS:
    CASES["snapshot"] = (nothing, load)
if OFFLOADS:
    CASES["offloaded results"] = (offloading, talk)


@pytest.mark.filterwarnings("ignore:context_window_limit is not set:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_agent_comes_back_as_it_was_left(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, name: str
) -> None:
    options, live = CASES[name]
    agent = build(repository, **options(repository))
    live(agent)
    session_manager: Any = agent._session_manager
    session_manager.sync_agent(agent)
    said = [each.to_dict() for each in repository.list_messages("s", "default")]

    move(repository, other)

    moved = build(other, **options(other))
    assert dump(moved) == dump(agent)
    assert [each.to_dict() for each in other.list_messages("s", "default")] == said
    assert len(said) > len(moved.messages) or name in ("edits", "offloaded results")

    moved("further")
    assert dump(build(other, **options(other))) == dump(moved)
    assert len(other.list_messages("s", "default")) > len(said)


@needs_checkpoints
def test_checkpoints_can_be_restored_and_forked_from(
    repository: PostgresSessionRepository, other: PostgresSessionRepository
) -> None:
    agent = build(repository, **summarizing(repository))
    agent.state.set("odd", [-0.0, {"z": 1, "a": "\0"}])
    manager: Any = agent._session_manager
    assert isinstance(manager, PostgresSessionManager)
    snapshot_ids = []
    for number in range(4):
        agent(str(number))
        agent.messages[0]["content"].append({"text": f"edit {number}"})
        snapshot_ids.append(asyncio.run(manager.save_snapshot(agent)))
        agent.state.set("number", number)
    agent("further")

    assert move(repository, other).checkpoints == 4

    moved = build(other, **summarizing(other))
    moved_manager: Any = moved._session_manager
    assert dump(moved) == dump(agent)
    assert asyncio.run(moved_manager.list_snapshot_ids(moved)) == snapshot_ids
    for snapshot_id in snapshot_ids:
        for each, restoring in ((agent, manager), (moved, moved_manager)):
            assert asyncio.run(restoring.restore_snapshot(each, snapshot_id=snapshot_id))
        assert dump(moved) == dump(agent)
        forks = []
        for place in (repository, other):
            place.fork_session("s", f"fork of {snapshot_id}", snapshot_id=snapshot_id)
            forks.append(dump(build(place, f"fork of {snapshot_id}", **summarizing(place))))
        assert forks == [dump(agent)] * 2
    moved("goes on")
    assert dump(build(other, **summarizing(other))) == dump(moved)


# Indexes of the log, and minus the ids of variants.
windows = st.lists(st.integers(-4, 6), max_size=8)


@settings(max_examples=scale(20, 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=windows, following=st.none() | st.integers(0, 7), checkpoints=st.lists(windows, max_size=3))
def test_any_window_survives(
    repository: PostgresSessionRepository, window: list[int], following: int | None, checkpoints: list[list[int]]
) -> None:
    session_id = next(_NUMBERS)
    tables = session_tables(repository)
    repository.create_session(Session(session_id, SessionType.AGENT))
    log = [transfers.message(index) for index in range(7)]
    tables.agents.create(session_id, SessionAgent("a", {}, {"removed_message_count": 3}), log, write_id=uuid4())
    variants = [
        Variant(number, original, text("user", f"variant {number}"))
        for number, original in ((1, None), (2, 0), (3, 6), (4, None))
    ]
    transfers.store_window(repository, session_id, "a", Window((1, 2, 3, 4), None), *variants)
    snapshot_ids = [
        transfers.store_checkpoint(repository, session_id, "a", number, Window.of(found), {"state": {"number": number}})
        for number, found in enumerate(checkpoints)
    ]
    stored = Window(Window.of(window).items, following)
    transfers.store_window(repository, session_id, "a", stored)

    copied = f"copy of {session_id}"
    lines = list(export_session(repository, session_id))
    result = import_session(repository, lines, session_id=copied)

    used = {-place for each in (window, *checkpoints) for place in each if place < 0}
    assert (result.message_variants, result.checkpoints) == (len(used), len(checkpoints))
    assert list(export_session(repository, copied))[1:] == lines[1:]
    before, after = (tables.conversations.read(each, "a") for each in (session_id, copied))
    assert before is not None
    assert after is not None
    assert after.messages == before.messages
    assert after.stored.window == before.stored.window == stored
    assert after.next_variant_id == before.next_variant_id
    for snapshot_id in snapshot_ids:
        read = [tables.checkpoints.read(each, "a", snapshot_id) for each in (session_id, copied)]
        assert read[0] is not None
        assert read[0] == read[1]


_NUMBERS = map(str, itertools.count())


def test_same_window_is_unchanged_and_another_is_refused(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    edit(agent)
    manager: Any = agent._session_manager
    manager.sync_agent(agent)
    lines = list(export_session(repository, "s"))
    assert import_session(repository, lines) == TransferResult(unchanged=1)
    agent.messages.pop()
    manager.sync_agent(agent)
    with pytest.raises(SessionExistsError):
        import_session(repository, lines)


def export_while(repository: PostgresSessionRepository, change: Callable[[], object]) -> str:
    """Export a session that changes once the agents have been read, and return the lines."""
    lines = export_session(repository, "s")
    change()
    return "".join(lines)


def edited(repository: PostgresSessionRepository) -> tuple[Agent, Any]:
    """Return an agent whose memory has its prompt in another form, and its session manager."""
    agent = build(repository)
    agent("SECRET")
    agent.messages[0]["content"].append({"text": "more"})
    agent.messages.append(text("user", "not in the log"))
    manager: Any = agent._session_manager
    manager.sync_agent(agent)
    return agent, manager


def test_variant_that_is_deleted_meanwhile_is_exported(repository: PostgresSessionRepository) -> None:
    def change() -> None:
        agent.messages.clear()
        manager.sync_agent(agent)
        assert session_tables(repository).conversations.read("s", "default").next_variant_id == 1  # type: ignore[union-attr]

    agent, manager = edited(repository)
    before = dump(agent)
    lines = export_while(repository, change)
    import_session(repository, lines.splitlines(), session_id="copy")
    assert dump(build(repository, "copy")) == before


def test_variant_is_not_mistaken_for_a_later_one_of_the_same_id(repository: PostgresSessionRepository) -> None:
    def change() -> None:
        agent.messages.clear()
        manager.sync_agent(agent)
        later = build(repository)
        later.messages.append(text("user", "later"))
        later_manager: Any = later._session_manager
        later_manager.sync_agent(later)
        later.messages.append(text("user", "later"))
        later_manager.sync_agent(later)

    agent, manager = edited(repository)
    before = dump(agent)
    lines = export_while(repository, change)
    assert "later" not in lines
    import_session(repository, lines.splitlines(), session_id="copy")
    assert dump(build(repository, "copy")) == before


@pytest.mark.parametrize("is_kept", [False, True], ids=["deleted", "kept for a checkpoint"])
def test_variant_that_is_redacted_meanwhile_is_redacted(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any], is_kept: bool
) -> None:
    def change() -> None:
        agent.messages[0]["content"] = [{"text": "[redacted]"}]
        manager.redact_latest_message(agent.messages[0], agent)
        assert one(connection, "SELECT count(*) FROM strands_message_variants") == is_kept

    agent, manager = edited(repository)
    # Before strands-agents 1.48 there are no tracking ids, and the latest message of the user is redacted.
    agent.messages.pop()
    manager.sync_agent(agent)
    if is_kept:
        transfers.store_checkpoint(repository, "s", "default", 2, Window((1,), None), {})
    lines = export_while(repository, change)
    assert "SECRET" not in lines
    assert '"kind": "message_variant"' in lines


@needs_checkpoints
def test_checkpoint_that_is_deleted_meanwhile_is_exported(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    agent, manager = edited(repository)
    snapshot_id = asyncio.run(manager.save_snapshot(agent))
    lines = export_while(repository, lambda: connection.execute("DELETE FROM strands_checkpoints"))
    import_session(repository, lines.splitlines(), session_id="copy")
    copied = build(repository, "copy")
    copied_manager: Any = copied._session_manager
    assert asyncio.run(copied_manager.restore_snapshot(copied, snapshot_id=snapshot_id))
    assert dump(copied) == dump(agent)


def test_variants_and_window_are_of_one_snapshot(
    repository: PostgresSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, manager = edited(repository)
    before = dump(agent)
    # Agents are read by then, and variants are not.
    reached, go = pause_before(monkeypatch, StoredSessions(repository)._multi_agents)
    with ThreadPoolExecutor() as threads:
        export = threads.submit(lambda: list(export_session(repository, "s")))
        assert reached.wait(30)
        agent.messages.clear()
        manager.sync_agent(agent)
        go.set()
        import_session(repository, export.result(30), session_id="copy")
    assert dump(build(repository, "copy")) == before


def test_files_hold_what_strands_restores_from_the_log(repository: PostgresSessionRepository, tmp_path: Any) -> None:
    agent, manager = edited(repository)
    agent("further")
    if SNAPSHOTS:
        asyncio.run(manager.save_snapshot(agent))
    result = export_files(repository, "s", tmp_path)
    assert result == TransferResult(
        sessions=1, agents=1, messages=4, windows_omitted=1, checkpoints_omitted=int(SNAPSHOTS)
    )
    assert export_files(repository, "s", tmp_path) == TransferResult(unchanged=1)
    from_files = Agent(session_manager=FileSessionManager("s", str(tmp_path)), callback_handler=None)
    texts = [message["content"][0]["text"] for message in from_files.messages]
    assert texts == ["SECRET", "ok", "further", "ok"]

    # What is imported from files is the log.
    with pytest.raises(Exception, match="already exists with other content"):
        import_sessions(repository, FileSessions(tmp_path))
    repository.delete_session("s")
    import_sessions(repository, FileSessions(tmp_path))
    assert session_tables(repository).conversations.read("s", "default").stored.window is None  # type: ignore[union-attr]
    assert dump(build(repository)) == dump(from_files)


@pytest.mark.parametrize("options", [nothing, summarizing], ids=["plain", "summary"])
def test_window_that_strands_restores_from_files_is_not_counted(
    repository: PostgresSessionRepository, options: Any, tmp_path: Any
) -> None:
    agent = build(repository, **options(repository))
    talk(agent)
    assert export_files(repository, "s", tmp_path) == TransferResult(sessions=1, agents=1, messages=10)
    from_files = Agent(
        session_manager=FileSessionManager("s", str(tmp_path)), callback_handler=None, **options(repository)
    )
    assert json.loads(dump(from_files))["messages"] == json.loads(dump(agent))["messages"]
