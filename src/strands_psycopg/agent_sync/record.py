"""What the database holds of an agent, as the agent's manager last read or wrote it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

from strands.types.content import Message

from strands_psycopg.agent_sync.documents import DocumentsVersion
from strands_psycopg.agent_sync.fingerprint import Fingerprint
from strands_psycopg.repository.window import Window


class HeldMessage(NamedTuple):
    """A message of memory whose place in the database is known.

    Attributes:
        place: Where it is stored (see ``Window``).
        original: The index in the log of the message that this is, or that this is another form of; None if the log
            has no such message.
        fingerprint: The fingerprint of the message in memory.
        message: The object that was in memory, not a copy.
        is_withheld: Whether the form in memory is not stored, since it may have what was redacted of the message.
    """

    place: int
    original: int | None
    fingerprint: Fingerprint
    message: Message
    is_withheld: bool = False


class AgentRecord(NamedTuple):
    """What is stored of an agent.

    Attributes:
        write_id: The write id of the last write to the agent's row.
        next_message_id: The index that the log's next message will have.
        next_variant_id: The id that the next variant will have.
        window: The row's window.
        documents: The version in memory of the documents that the row has.
        documents_digest: A hash of these documents.
        held: The messages of memory that have a place, in order.
        redacted: What messages of the log were redacted to, by their indexes: the fingerprint of their content.
        redactions: The redacted messages that were passed to the manager, by the same indexes.
        redacted_ids: The indexes of those with a tracking id, by that id.
        removed: The latest messages of the log that memory held and no longer holds, by fingerprint.
    """

    write_id: UUID
    next_message_id: int
    next_variant_id: int
    window: Window | None
    documents: DocumentsVersion
    documents_digest: bytes
    held: Sequence[HeldMessage]
    redacted: Mapping[int, Fingerprint] = MappingProxyType({})
    redactions: Mapping[int, Message] = MappingProxyType({})
    redacted_ids: Mapping[str, int] = MappingProxyType({})
    removed: Mapping[bytes, int] = MappingProxyType({})


def tracking_id(message: Message) -> str | None:
    """Return the id that Strands has added to a message; None if it has none, as before strands-agents 1.48."""
    key = message.get("tracking_id")
    return key if isinstance(key, str) and key else None
