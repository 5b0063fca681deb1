"""Comparing an agent with what is stored of it; this alone decides what is written."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from strands.types.content import Message

from strands_psycopg.agent_sync.documents import documents_version, manager_state, to_session_agent
from strands_psycopg.agent_sync.fingerprint import fingerprint
from strands_psycopg.agent_sync.placement import Placement, matches_held, place_messages
from strands_psycopg.agent_sync.record import AgentRecord, HeldMessage, tracking_id
from strands_psycopg.repository.agents import EncodedAgent
from strands_psycopg.repository.window import Variant, Window, stored_places

if TYPE_CHECKING:
    from strands.types.agent import LocalAgent

# How many messages that memory no longer holds are remembered by their content, in case they come back.
_MAX_REMOVED = 1024


class PendingMessage(NamedTuple):
    """A message that Strands has passed to a hook, and that is not stored yet.

    Attributes:
        message: The message.
        replaces: Whether it takes the place of the one with its tracking id; otherwise it is a new one.
    """

    message: Message
    replaces: bool = False


class InMemoryAgent(NamedTuple):
    """An agent as it is in memory, or as it will be.

    Attributes:
        agent: The agent.
        messages: Its messages.
        manager_state: The state of its conversation manager.
    """

    agent: "LocalAgent"
    messages: Sequence[Message]
    manager_state: dict[str, Any]

    @classmethod
    def of(cls, agent: "LocalAgent") -> "InMemoryAgent":
        """Return an agent as it is."""
        # The list is copied, since others may change it during the comparison.
        return cls(agent, list(agent.messages), manager_state(agent))


class Write(NamedTuple):
    """What is to be written, all of it or nothing.

    Attributes:
        appended: Messages for the end of the log.
        replaced: Messages that take the place of others in the log, by their indexes.
        variants: New variants.
        documents: The agent's documents; None if they have not changed.
        window: The agent's window.
        stores_agent: Whether the agent's row changes.
        after: What is stored of the agent after the write.
    """

    appended: Sequence[Message]
    replaced: Mapping[int, Message]
    variants: Sequence[Variant]
    documents: EncodedAgent | None
    window: Window | None
    stores_agent: bool
    after: AgentRecord

    def __bool__(self) -> bool:
        return bool(self.appended or self.replaced or self.stores_agent)


def is_stored(memory: InMemoryAgent, record: AgentRecord) -> bool:
    """Return whether an agent is stored as it is; this neither encodes nor copies it."""
    return documents_version(memory.agent, memory.manager_state) == record.documents and matches_held(
        memory.messages, record.held
    )


def log_write(pending: Sequence[PendingMessage], in_memory: Sequence[Message], record: AgentRecord) -> Write:
    """Return the write that stores pending messages in the log, and nothing else.

    Args:
        pending: The messages, in order.
        in_memory: The agent's messages.
        record: What is stored.
    """
    held = list(record.held)
    end = record.next_message_id
    written: dict[int, Message] = {}
    places_follow = True  # whether the places are still those of the record, followed by the log's new indexes
    for message, replaces in pending:
        position = _find_replaced(message, held) if replaces else _find_continued(message, in_memory, held, end)
        if position is None:
            position = _find_unlogged(message, in_memory, held)
            places_follow = places_follow and position == len(held)
            held[position : position + 1] = [HeldMessage(end, end, fingerprint(message), message)]
            written[end] = message
            end += 1
        elif (index := held[position].original) is not None:
            places_follow = places_follow and held[position].place == index
            held[position] = HeldMessage(index, index, fingerprint(message), message)
            written[index] = message
    appended = [written.pop(index) for index in range(record.next_message_id, end)]
    redacted = {index: content for index, content in record.redacted.items() if index not in written}
    window = record.window if places_follow else Window.of([each.place for each in held], end)
    after = record._replace(held=held, next_message_id=end, redacted=redacted, window=window)
    return Write(appended, written, (), None, window, window != record.window, after)


def compare(memory: InMemoryAgent, pending: Sequence[PendingMessage], record: AgentRecord) -> Write:
    """Return the write after which an agent is stored as it is in memory.

    Args:
        memory: The agent.
        pending: Its pending messages, in order.
        record: What is stored.

    Raises:
        ValueError: The agent's documents cannot be stored.
        TypeError: The agent's documents hold something that JSON cannot.
    """
    log = log_write(pending, list(memory.agent.messages), record)
    stored = log.after
    if matches_held(memory.messages, stored.held):
        held, variants, identified = Placement(stored.held)
    else:
        held, variants, identified = place_messages(memory.messages, stored)
    documents, version, digest = _changed_documents(memory, record)
    window = _window(held, memory.manager_state, stored)
    after = stored._replace(
        held=held,
        next_variant_id=stored.next_variant_id + len(variants),
        window=window,
        documents=version,
        documents_digest=digest,
        removed=removed_messages(stored, held),
    )
    stores_agent = documents is not None or window != record.window or bool(identified)
    replaced = {**log.replaced, **identified}
    return Write(log.appended, replaced, variants, documents, window, stores_agent, after)


def _find_replaced(message: Message, held: Sequence[HeldMessage]) -> int | None:
    """Return the position of the last held message with the same tracking id."""
    key = tracking_id(message)
    return next((n for n in reversed(range(len(held))) if tracking_id(held[n].message) == key), None)


def _find_continued(
    message: Message, in_memory: Sequence[Message], held: Sequence[HeldMessage], end: int
) -> int | None:
    """Return the position of the log's last message, if a pending message takes its place.

    Strands continues a message by replacing it with one that has the same tracking id and more content. A message that
    is only repeated, such as the prompt of a retried turn, has no more.
    """
    key = tracking_id(message)
    position = next((n for n in reversed(range(len(held))) if held[n].original == end - 1), None)
    if key is None or position is None or tracking_id(held[position].message) != key:
        return None
    if sum(tracking_id(each) == key for each in in_memory) > 1:
        return None
    continued = held[position].message
    has_more = len(message.get("content") or ()) > len(continued.get("content") or ())
    return position if has_more and continued is not message else None


def _find_unlogged(message: Message, in_memory: Sequence[Message], held: Sequence[HeldMessage]) -> int:
    """Return the position of a message that a sync found before it was passed to a hook; otherwise the end."""
    same = [n for n, each in enumerate(held) if each.message is message]
    if same and len(same) >= sum(each is message for each in in_memory):
        return same[-1]
    key = tracking_id(message)
    for position, each in enumerate(held):
        if each.original is None and key is not None and tracking_id(each.message) == key:
            return position
    return len(held)


def _changed_documents(memory: InMemoryAgent, record: AgentRecord) -> tuple[EncodedAgent | None, Any, bytes]:
    """Return an agent's documents if they differ from the stored ones, and their version and digest."""
    version = documents_version(memory.agent, memory.manager_state)
    if version == record.documents:
        return None, version, record.documents_digest
    documents = EncodedAgent.of(to_session_agent(memory.agent, memory.manager_state))
    digest = documents_digest(documents)
    return (None if digest == record.documents_digest else documents), version, digest


def documents_digest(documents: EncodedAgent) -> bytes:
    """Return a hash of encoded documents."""
    return blake2b(repr(documents).encode(), digest_size=16).digest()


def _window(held: Sequence[HeldMessage], state: dict[str, Any], stored: AgentRecord) -> Window | None:
    """Return the window of an agent that holds these messages; None if they are the end of its log."""
    places, end = [each.place for each in held], stored.next_message_id
    # Without a window, the summary is restored with the end of the log.
    if places == stored_places(None, state, end) and not state.get("summary_message"):
        return None
    if stored.window is not None and places == stored.window.places(end):
        return stored.window
    return Window.of(places, end)


def removed_messages(stored: AgentRecord, held: Sequence[HeldMessage]) -> Mapping[bytes, int]:
    """Return the messages of the log that memory held and no longer holds, by fingerprint."""
    if held is stored.held:
        return stored.removed
    remaining = {each.place for each in held}
    gone = {
        each.fingerprint: each.place
        for each in stored.held
        if each.place >= 0 and each.place not in remaining and isinstance(each.fingerprint, bytes)
    }
    return dict(list({**stored.removed, **gone}.items())[-_MAX_REMOVED:]) if gone else stored.removed
