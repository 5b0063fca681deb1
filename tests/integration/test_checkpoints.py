"""Checkpoints of agents: saved by reference, listed in the order of time, restored in this process or another one."""

import asyncio
import copy
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast
from uuid import UUID

import pytest
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager, SummarizingConversationManager
from strands.types.content import Message

from strands_psycopg import (
    LeaseLostError,
    PostgresSessionManager,
    PostgresSessionRepository,
    SessionConflictError,
    SessionNotFoundError,
)
from strands_psycopg.scripted_model import ScriptedModel
from support import processes
from support.agents import OverflowingModel, build, dump
from support.tables import Connection, one

CHECKPOINTS = "SELECT count(*) FROM strands_checkpoints"
VARIANTS = "SELECT count(*) FROM strands_message_variants"

RESTORE = """
import asyncio, sys
from support.agents import build, dump
from strands_psycopg import PostgresSessionRepository
with PostgresSessionRepository(sys.argv[1]) as repository:
    agent = build(repository, replies=[["from another process"]])
    assert asyncio.run(agent._session_manager.restore_snapshot(agent, snapshot_id=sys.argv[2]))
    print(dump(agent))
    agent("go on")
    print(dump(agent))
"""


def manager_of(agent: Any) -> PostgresSessionManager:
    return cast(PostgresSessionManager, agent._session_manager)


def save(agent: Any) -> str:
    snapshot_id = asyncio.run(manager_of(agent).save_snapshot(agent))
    assert snapshot_id is not None
    return snapshot_id


def restore(agent: Any, snapshot_id: str | None) -> bool:
    return asyncio.run(manager_of(agent).restore_snapshot(agent, snapshot_id=snapshot_id))


def ids(agent: Any, **window: Any) -> list[str]:
    return asyncio.run(manager_of(agent).list_snapshot_ids(agent, **window))


def log(repository: PostgresSessionRepository, agent_id: str = "default") -> list[str]:
    messages = repository.list_messages("s", agent_id)
    assert [message.message_id for message in messages] == list(range(len(messages)))
    return [str(message.message["content"][0].get("text", "-")) for message in messages]


def with_manager(repository: PostgresSessionRepository, **options: Any) -> Agent:
    manager = PostgresSessionManager("s", repository, **options)
    return Agent(model=ScriptedModel([["ok"]]), session_manager=manager, callback_handler=None)


def test_conversation_goes_on_from_an_old_checkpoint_and_the_log_keeps_everything(
    dsn: str, repository: PostgresSessionRepository
) -> None:
    agent = build(repository, replies=[["one"], ["two"], ["three"], ["four"]], system_prompt="Be brief.")
    agent.state.set("mood", "good")
    agent("1")
    first, then = save(agent), dump(agent)
    agent.state.set("mood", "bad")
    agent.system_prompt = "Be verbose."
    agent.messages[0]["content"].append({"text": "edited"})
    agent("2")
    second, later = save(agent), dump(agent)

    assert restore(agent, first)
    assert dump(agent) == then
    assert agent.system_prompt == "Be brief."
    agent("3")
    assert log(repository) == ["1", "one", "2", "two", "3", "three"]
    assert dump(build(repository)) == dump(agent)
    assert json.loads(dump(agent))["messages"][:2] == json.loads(then)["messages"]
    assert len(agent.messages) == 4

    assert restore(agent, second)
    assert dump(agent) == later
    agent("4")
    assert dump(build(repository)) == dump(agent)

    at_once, after_a_turn = processes.run(RESTORE, dsn, first).splitlines()
    assert at_once == then
    assert after_a_turn == dump(build(repository))
    assert log(repository) == ["1", "one", "2", "two", "3", "three", "4", "four", "go on", "from another process"]


def test_restored_checkpoint_is_stored_with_the_next_event(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    agent("1")
    first, then = save(agent), dump(agent)
    agent("2")
    now = dump(agent)
    assert restore(agent, first)
    assert dump(build(repository)) == now
    manager_of(agent).sync_agent(agent)
    assert dump(build(repository)) == then


def test_agent_is_set_to_what_is_stored_of_it_last(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    agent("1")
    now = dump(agent)
    agent.messages.clear()
    agent.state.set("mood", "bad")
    assert restore(agent, None)
    assert dump(agent) == now
    agent("2")
    assert log(repository) == ["1", "ok", "2", "ok"]
    assert dump(build(repository)) == dump(agent)


def test_ids_are_uuids_of_version_7_in_the_order_of_time(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    before = time.time_ns() // 1_000_000
    saved = [save(agent) for _ in range(6)]
    after = time.time_ns() // 1_000_000

    assert all(UUID(each).version == 7 and UUID(each).variant == "specified in RFC 4122" for each in saved)
    assert all(before <= UUID(each).int >> 80 <= after + 1 for each in saved)
    assert ids(agent) == saved == sorted(saved)
    assert ids(build(repository)) == saved
    assert ids(agent, limit=2) == saved[:2]
    assert ids(agent, limit=0) == ids(agent, limit=-1) == []
    assert ids(agent, start_after=saved[1]) == saved[2:]
    assert ids(agent, limit=2, start_after=saved[1]) == saved[2:4]
    assert ids(agent, start_after=saved[-1]) == []
    # Those of other agents and sessions are not among them.
    assert ids(build(repository, agent_id="other")) == []
    assert ids(build(repository, "other")) == []


def test_snapshots_of_the_latest_state_are_no_checkpoints(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    agent.state.set("mood", "good")
    assert asyncio.run(manager_of(agent).save_snapshot(agent, is_latest=True)) is None
    assert build(repository).state.get() == {"mood": "good"}
    assert one(connection, CHECKPOINTS) == 0


@pytest.mark.parametrize(
    "wrong",
    ["", "x", "58dbae1f-a824-4af6-943b-e1e427442108", "../../etc/passwd", "0190A8C0-7A3E-7000-8000-000000000000", 7],
)
def test_wrong_id_is_a_value_error(repository: PostgresSessionRepository, wrong: Any) -> None:
    agent = build(repository)
    before = dump(agent)
    with pytest.raises(ValueError, match="not a snapshot id"):
        restore(agent, wrong)
    with pytest.raises(ValueError, match="not a snapshot id"):
        ids(agent, start_after=wrong)
    assert dump(agent) == before


def test_checkpoint_that_does_not_exist_leaves_the_agent_as_it_is(repository: PostgresSessionRepository) -> None:
    agent, other = build(repository), build(repository, "other")
    agent("1")
    before = dump(agent)
    for missing in ("0190a8c0-7a3e-7000-8000-000000000000", save(other)):
        assert not restore(agent, missing)
    assert dump(agent) == before
    agent("2")
    assert dump(build(repository)) == dump(agent)


def test_agent_of_another_manager_is_refused(repository: PostgresSessionRepository) -> None:
    agent, stranger = build(repository), Agent(model=ScriptedModel([["ok"]]), agent_id="x", callback_handler=None)
    for call in ("save_snapshot", "list_snapshot_ids", "restore_snapshot"):
        if call != "list_snapshot_ids":
            with pytest.raises(SessionNotFoundError, match="not one of this session manager's"):
                asyncio.run(getattr(manager_of(agent), call)(stranger))


def test_row_of_a_checkpoint_is_about_a_kilobyte_whatever_the_conversation_is(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    text = "word " * 2_000
    messages: Any = [
        {"role": role, "content": [{"text": f"{text} {n}"}]} for n in range(60) for role in ("user", "assistant")
    ]
    agent = build(repository, messages=messages)
    for position in (25, 40):
        agent.messages[position]["content"].append({"text": "edited"})
    save(agent)
    agent("next")
    save(agent)
    sizes = "SELECT max(pg_column_size(c.*)), max(length(to_jsonb(c)::text)) FROM strands_checkpoints AS c"
    assert all(size < 1_500 for size in connection.execute(sizes.encode()).fetchall()[0])
    assert one(connection, VARIANTS) == 2


def test_conversation_managers_come_back_with_their_pins_and_summaries(repository: PostgresSessionRepository) -> None:
    def agent(session_id: str) -> Agent:
        model = OverflowingModel([["answer"]], overflows={3, 6})
        manager = SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)
        return build(repository, session_id, model=model, conversation_manager=manager)

    living = agent("s")
    for number in range(4):
        living(str(number))
    snapshot_id, then = save(living), dump(living)
    assert "summary_message" in then
    for number in range(4):
        living(str(number))
    assert restore(living, snapshot_id)
    assert dump(living) == then
    manager_of(living).sync_agent(living)
    assert dump(agent("s")) == then


def test_trigger_saves_a_checkpoint_after_the_invocation(repository: PostgresSessionRepository) -> None:
    seen: list[int] = []

    def trigger(*, agent_data: Any, **kwargs: Any) -> bool:
        seen.append(len(agent_data.messages))
        if len(seen) == 3:
            raise RuntimeError("no")
        return len(seen) != 2

    agent = with_manager(repository, snapshot_trigger=trigger)
    dumps = []
    for number in range(4):
        agent(str(number))
        dumps.append(dump(agent))
    assert seen == [2, 4, 6, 8]
    saved = ids(agent)
    assert len(saved) == 2
    assert log(repository) == [text for number in range(4) for text in (str(number), "ok")]
    for snapshot_id, then in zip(saved, (dumps[0], dumps[3]), strict=True):
        assert restore(agent, snapshot_id)
        assert dump(agent) == then


def test_only_so_many_checkpoints_are_kept_with_the_forms_of_messages_that_they_have(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = with_manager(repository, keep_snapshots=2)
    agent("1")
    other = build(repository, agent_id="other")
    others = save(other)
    saved, dumps = [], []
    for number in range(5):
        agent.messages[0]["content"] = [{"text": f"edited {number}"}]
        saved.append(save(agent))
        dumps.append(dump(agent))
        assert ids(agent) == saved[-2:]
        # Those of the two checkpoints; the newer one's is the window's, too.
        assert one(connection, VARIANTS) == min(number + 1, 2)
    assert ids(other) == [others]
    for snapshot_id, then in zip(saved[-2:], dumps[-2:], strict=True):
        assert restore(agent, snapshot_id)
        assert dump(agent) == then

    # The window has the last form; a checkpoint without it, and another one, take the places of both.
    manager_of(agent).sync_agent(agent)
    agent.messages.clear()
    save(agent)
    save(agent)
    assert one(connection, VARIANTS) == 0
    assert dump(build(repository)) == dump(agent)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2"])
def test_wrong_number_of_checkpoints_is_a_value_error(repository: PostgresSessionRepository, wrong: Any) -> None:
    with pytest.raises(ValueError, match="keep_snapshots must be an integer from 1 up"):
        PostgresSessionManager("s", repository, keep_snapshots=wrong)


def test_forms_that_only_a_checkpoint_has_stay_until_it_goes(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    agent("1")
    agent.messages[0]["content"].append({"text": "edited"})
    snapshot_id, then = save(agent), dump(agent)
    agent.messages.clear()
    agent("2")
    agent.messages[0]["content"].append({"text": "edited"})
    agent("3")
    agent.messages.clear()
    manager_of(agent).sync_agent(agent)
    assert one(connection, VARIANTS) == 1
    assert restore(agent, snapshot_id)
    assert dump(agent) == then
    repository.delete_agent("s", "default")
    assert one(connection, CHECKPOINTS) == one(connection, VARIANTS) == 0


def conflict(agent: Agent, repository: PostgresSessionRepository) -> None:
    other = build(repository)
    other.state.set("winner", True)
    manager_of(other).sync_agent(other)


def test_checkpoint_of_an_overtaken_agent_is_a_conflict_and_nothing_is_stored(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    agent("1")
    conflict(agent, repository)
    for _ in range(2):
        with pytest.raises(SessionConflictError):
            save(agent)
    with pytest.raises(SessionConflictError):
        agent("2")
    assert one(connection, CHECKPOINTS) == 0
    assert log(repository) == ["1", "ok"]
    assert build(repository).state.get() == {"winner": True}


def test_checkpoint_needs_the_lease_that_its_manager_was_built_in(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    with repository.lease("s"):
        agent = build(repository)
        agent("1")
        save(agent)
        connection.execute("UPDATE strands_leases SET term = gen_random_uuid()")
        with pytest.raises(LeaseLostError):
            save(agent)
    assert one(connection, CHECKPOINTS) == 1


def test_checkpoints_saved_at_once_are_each_complete(repository: PostgresSessionRepository) -> None:
    agent = build(repository)
    agent("1")
    manager = manager_of(agent)

    async def both() -> list[str | None]:
        agent.messages[0]["content"].append({"text": "edited"})
        return await asyncio.gather(*(manager.save_snapshot(agent) for _ in range(5)))

    saved = asyncio.run(both())
    assert sorted(map(str, saved)) == ids(agent)
    now = dump(agent)
    for snapshot_id in saved:
        agent.messages.clear()
        assert restore(agent, snapshot_id)
        assert dump(agent) == now


def test_messages_that_come_back_after_a_restore_are_those_of_the_log(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(repository)
    first = save(agent)
    agent("1")
    later = agent.take_snapshot(preset="session")
    assert restore(agent, first)
    manager_of(agent).sync_agent(agent)
    agent.load_snapshot(later)
    manager_of(agent).sync_agent(agent)

    assert one(connection, VARIANTS) == 0
    assert dump(build(repository)) == dump(agent)
    assert len(agent.messages) == 2


def test_full_window_of_a_checkpoint_is_restored_with_what_it_has_dropped_since(
    repository: PostgresSessionRepository,
) -> None:
    def agent() -> Agent:
        return build(repository, conversation_manager=SlidingWindowConversationManager(window_size=2))

    living = agent()
    for number in range(3):
        living(str(number))
    snapshot_id, then = save(living), dump(living)
    for number in range(3):
        living(str(number))
    assert restore(living, snapshot_id)
    assert dump(living) == then
    living("go on")
    assert dump(agent()) == dump(living)


def test_bidirectional_agents_have_checkpoints_and_must_be_stopped_for_a_restore(
    repository: PostgresSessionRepository,
) -> None:
    bidi = pytest.importorskip("strands.bidi", reason="strands-agents before 1.57 has other bidirectional agents")
    if not hasattr(bidi.BidiAgent, "load_snapshot"):
        pytest.skip("bidirectional agents have no snapshots yet")

    class SilentModel(bidi.models.BidiModel):  # type: ignore[misc,name-defined,unused-ignore]
        def get_config(self) -> Any:
            return {"model_id": "silent"}

        def update_config(self, **config: Any) -> None: ...

        async def start(self, *arguments: Any, **kwargs: Any) -> None: ...

        async def stop(self) -> None: ...

        async def send(self, content: Any) -> None: ...

        async def receive(self) -> Any:
            await asyncio.Event().wait()
            yield

    def said(text: str) -> Message:
        return {"role": "user", "content": [{"text": text}]}

    async def talk(agent: Any, *messages: Message, meanwhile: Callable[[], Awaitable[object]] | None = None) -> None:
        await agent.start()
        await agent._append_messages(*messages)
        if meanwhile is not None:
            await meanwhile()
        await agent.stop()

    triggered: list[int] = []

    def trigger(*, agent_data: Any, **kwargs: Any) -> bool:
        triggered.append(len(agent_data.messages))
        return len(triggered) == 1

    manager = PostgresSessionManager("s", repository, snapshot_trigger=trigger)
    agent = bidi.BidiAgent(model=SilentModel(), session_manager=manager, agent_id="voice")
    agent.state.set("mood", "good")
    asyncio.run(talk(agent, said("1")))
    (snapshot_id,) = ids(agent)
    then = copy.deepcopy(agent.messages)
    agent.state.set("mood", "bad")

    async def restore_meanwhile() -> None:
        for each in (snapshot_id, None):
            with pytest.raises(RuntimeError, match="started"):
                await manager.restore_snapshot(agent, snapshot_id=each)

    asyncio.run(talk(agent, said("2"), meanwhile=restore_meanwhile))
    assert triggered == [1, 2]
    assert len(agent.messages) == 2

    assert restore(agent, snapshot_id)
    assert json.dumps(agent.messages) == json.dumps(then)
    assert agent.state.get() == {"mood": "good"}
    asyncio.run(talk(agent, said("3")))
    restored = bidi.BidiAgent(
        model=SilentModel(), session_manager=PostgresSessionManager("s", repository), agent_id="voice"
    )
    assert json.dumps(restored.messages) == json.dumps(agent.messages)
    assert len(agent.messages) == 2
    assert log(repository, "voice") == ["1", "2", "3"]
