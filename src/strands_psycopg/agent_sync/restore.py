"""Restoring an agent from what is stored, exactly as it was left."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from strands import Agent
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types._snapshot import SNAPSHOT_SCHEMA_VERSION, Snapshot
from strands.types.content import Message, Messages
from strands.types.session import SessionAgent, SessionMessage

from strands_psycopg.agent_sync.comparison import documents_digest
from strands_psycopg.agent_sync.documents import (
    documents_version,
    load_documents,
    manager_state,
    set_pinned,
    to_session_agent,
)
from strands_psycopg.agent_sync.fingerprint import fingerprint
from strands_psycopg.agent_sync.record import AgentRecord, HeldMessage, tracking_id
from strands_psycopg.repository.agents import EncodedAgent
from strands_psycopg.repository.checkpoints import PINNED, Checkpoint
from strands_psycopg.repository.conversations import Conversation, StoredMessage
from strands_psycopg.repository.window import Window, plain_start

if TYPE_CHECKING:
    from strands.types.agent import LocalAgent

logger = logging.getLogger(__name__)


def new_agent(agent: "LocalAgent") -> tuple[SessionAgent, list[SessionMessage], Window | None]:
    """Return the documents, messages and window to store of an agent that is not stored yet."""
    messages = [SessionMessage.from_message(message, index) for index, message in enumerate(agent.messages)]
    state = manager_state(agent)
    # A conversation manager may have removed messages of another agent before.
    window = None if plain_start(state) == 0 else Window((), 0)
    return to_session_agent(agent, state), messages, window


def new_record(agent: "LocalAgent", stored: SessionAgent, window: Window | None, write_id: UUID) -> AgentRecord:
    """Return the record of an agent that has just been stored for the first time."""
    held = [HeldMessage(n, n, fingerprint(message), message) for n, message in enumerate(agent.messages)]
    return _record(agent, EncodedAgent.of(stored), write_id, len(held), 1, window, held)


def restore(agent: "LocalAgent", conversation: Conversation) -> AgentRecord:
    """Restore an agent: documents, the messages of its window, and those that the log has after them.

    Calls of tools that a killed turn has left without results are repaired, as Strands repairs them; what that changes
    is stored with the agent's next write.

    Raises:
        ValueError: The agent's conversation manager is not of the kind whose state is stored.
    """
    stored = conversation.stored
    # Before the agent works on them.
    documents = EncodedAgent.of(stored.agent)
    before = load_documents(agent, stored.agent)
    held = _held(conversation, before)
    # A conversation that the model's provider keeps is not restored.
    if isinstance(agent, Agent) and agent.model.stateful:
        held = []
    else:
        summary = before if stored.window is None else []
        agent.messages = _repaired([*summary, *(each.message for each in held)])
    record = _record(
        agent,
        documents,
        stored.write_id,
        stored.next_message_id,
        conversation.next_variant_id,
        stored.window,
        held,
    )
    return with_redactions(record, conversation.messages)


def with_redactions(record: AgentRecord, messages: Sequence[StoredMessage]) -> AgentRecord:
    """Return the record of an agent whose log has these messages, with those of them that are redacted."""
    redacted = [each for each in messages if each.is_redacted]
    contents = {each.place: fingerprint(each.message.get("content")) for each in redacted}
    ids = {key: each.place for each in redacted if (key := tracking_id(each.message)) is not None}
    return record._replace(redacted={**record.redacted, **contents}, redacted_ids={**record.redacted_ids, **ids})


def load_checkpoint(agent: "LocalAgent", checkpoint: Checkpoint) -> list[HeldMessage]:
    """Set an agent to a checkpoint; return the messages that it then holds.

    Raises:
        RuntimeError: A bidirectional agent is running, or background tasks are.
    """
    data = dict(checkpoint.data)
    pinned = bool(data.pop(PINNED, False))
    messages = [each.message for each in checkpoint.messages]
    agent.load_snapshot(Snapshot("agent", SNAPSHOT_SCHEMA_VERSION, {**data, "messages": messages}, {}))
    set_pinned(agent, pinned=pinned)
    return [
        HeldMessage(each.place, each.original, fingerprint(message), message)
        for each, message in zip(checkpoint.messages, agent.messages, strict=True)
    ]


def check_loadable(agent: "LocalAgent") -> None:
    """Check that an agent can be restored now.

    Raises:
        RuntimeError: A bidirectional agent is running, or background tasks are.
    """
    # Before strands-agents 1.57 bidirectional agents have no snapshots.
    if hasattr(agent, "load_snapshot"):
        agent.load_snapshot(Snapshot("agent", SNAPSHOT_SCHEMA_VERSION, {}, {}))


def _held(conversation: Conversation, before: list[Message]) -> list[HeldMessage]:
    """Return the stored messages of an agent's memory.

    A message that the conversation manager has in its state, too, is the same object, as it was in memory.
    """
    of_manager = {fingerprint(message): message for message in before}
    held = []
    for place, original, message, _ in conversation.messages:
        known = fingerprint(message)
        held.append(HeldMessage(place, original, known, of_manager.get(known, message)))
    return held


def _record(
    agent: "LocalAgent",
    documents: EncodedAgent,
    write_id: UUID,
    next_message_id: int,
    next_variant_id: int,
    window: Window | None,
    held: list[HeldMessage],
) -> AgentRecord:
    state = manager_state(agent)
    return AgentRecord(
        write_id=write_id,
        next_message_id=next_message_id,
        next_variant_id=next_variant_id,
        window=window,
        documents=documents_version(agent, state),
        documents_digest=documents_digest(documents),
        held=held,
    )


def _repaired(messages: Messages) -> Messages:
    try:
        # It uses nothing of its manager.
        return RepositorySessionManager._fix_broken_tool_use(cast(Any, None), messages)
    except (KeyError, TypeError, AttributeError) as error:
        # Such an agent was in memory, so it is restored as it was.
        logger.warning("error=<%r> | messages are not in Strands' format, tool calls are not repaired", error)
        return messages
