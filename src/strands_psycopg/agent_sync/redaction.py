"""Finding the stored messages to redact, even if the agent's messages were copied or replaced meanwhile."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from strands.types.content import Message
from strands.types.exceptions import SessionException

from strands_psycopg.agent_sync.fingerprint import fingerprint, is_unchanged
from strands_psycopg.agent_sync.placement import find_messages
from strands_psycopg.agent_sync.record import AgentRecord, HeldMessage, tracking_id


class Redaction(NamedTuple):
    """What is to be redacted of an agent.

    Attributes:
        message_ids: Messages of the log, by their indexes, with all their variants.
        variant_ids: Variants of no message of the log.
        held: The positions of all these among the messages that memory holds.
    """

    message_ids: list[int]
    variant_ids: list[int]
    held: frozenset[int]


def find_known(redacted: Message, held: Sequence[HeldMessage]) -> Redaction:
    """Find the held messages that a redacted message is: those with its tracking id, or else the same object."""
    key = tracking_id(redacted)
    same = [n for n, each in enumerate(held) if key is not None and tracking_id(each.message) == key]
    same = same or [n for n, each in enumerate(held) if each.message is redacted]
    return _redaction(same, held)


def find_replaced(redacted: Message, in_memory: Sequence[Message], held: Sequence[HeldMessage]) -> Redaction:
    """Find the held message that a redacted message has replaced in memory.

    It is the last one of its role, before the place where the redacted message now stands, that memory no longer has.
    If there is none, it is the last one of its role.

    Args:
        redacted: The message as it is after the redaction.
        in_memory: The agent's messages.
        held: Those that have a place in the database.

    Raises:
        SessionException: The agent has no message to redact.
    """
    of_role = [n for n, each in enumerate(held) if each.message.get("role") == redacted.get("role")]
    if not of_role:
        raise SessionException("there is no message to redact")
    found = find_messages([(message, fingerprint(message)) for message in in_memory], held)
    position = next((n for n, message in enumerate(in_memory) if message is redacted), len(found))
    following = next((index for index in found[position + 1 :] if index is not None), len(held))
    remaining = set(found)
    replaced = [n for n in of_role if n < following and n not in remaining]
    return _redaction((replaced or of_role)[-1:], held)


def redacted_record(
    record: AgentRecord, redacted: Message, held: Collection[int], stored: Collection[int]
) -> AgentRecord:
    """Return the record of an agent after a redaction.

    Args:
        record: What was stored of it.
        redacted: The message as it is after the redaction.
        held: The positions of the messages that were redacted among those that memory holds.
        stored: The indexes of the messages of its log that were redacted.
    """
    known, content, key = fingerprint(redacted), fingerprint(redacted.get("content")), tracking_id(redacted)
    after = [
        HeldMessage(
            place=each.place if each.original is None else each.original,
            original=each.original,
            fingerprint=known,
            message=each.message,
            is_withheld=not is_unchanged(each.message.get("content"), content),
        )
        if n in held or each.original in stored
        else each
        for n, each in enumerate(record.held)
    ]
    return record._replace(
        held=after,
        redacted={**record.redacted, **dict.fromkeys(stored, content)},
        redactions={**record.redactions, **dict.fromkeys(stored, redacted)},
        redacted_ids={**record.redacted_ids, **({key: max(stored)} if key is not None and stored else {})},
    )


def _redaction(positions: Sequence[int], held: Sequence[HeldMessage]) -> Redaction:
    messages = [held[n] for n in positions]
    return Redaction(
        sorted({each.original for each in messages if each.original is not None}),
        [-each.place for each in messages if each.original is None],
        frozenset(positions),
    )
