"""Which stored messages a redaction means, whatever has copied or replaced the agent's messages meanwhile."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from strands.types.content import Message
from strands.types.exceptions import SessionException

from strands_psycopg.agent_sync.fingerprint import fingerprint
from strands_psycopg.agent_sync.record import AgentRecord, HeldMessage, tracking_id


class Redaction(NamedTuple):
    """What is to be redacted of an agent.

    Attributes:
        message_ids: Messages of the log, by their indexes, with all their variants.
        variant_ids: Variants of no message of the log.
        after: What is stored of the agent after it.
    """

    message_ids: list[int]
    variant_ids: list[int]
    after: AgentRecord


def find_redaction(redacted: Message, in_memory: Sequence[Message], record: AgentRecord) -> Redaction:
    """Find the stored messages that a redacted message stands for.

    They are those of its tracking id, or the message that it is or has replaced in memory, or else the last one of its
    role.

    Args:
        redacted: The message as it is after the redaction.
        in_memory: The agent's messages.
        record: What is stored of the agent.

    Raises:
        SessionException: The agent has no message to redact.
    """
    held = record.held
    meant = {id(each) for each in _meant(redacted, in_memory, held)}
    if not meant:
        raise SessionException("there is no message to redact")
    message_ids = {each.original for each in held if id(each) in meant and each.original is not None}
    variant_ids = [-each.place for each in held if id(each) in meant and each.original is None]
    known, content = fingerprint(redacted), fingerprint(redacted["content"])
    after = [
        HeldMessage(each.place if each.original is None else each.original, each.original, known, each.message)
        if id(each) in meant or each.original in message_ids
        else each
        for each in held
    ]
    redactions = {**record.redacted, **dict.fromkeys(message_ids, content)}
    return Redaction(sorted(message_ids), variant_ids, replace(record, held=after, redacted=redactions))


def _meant(redacted: Message, in_memory: Sequence[Message], held: Sequence[HeldMessage]) -> list[HeldMessage]:
    key = tracking_id(redacted)
    same = [each for each in held if key is not None and tracking_id(each.message) == key]
    same = same or [each for each in held if each.message is redacted]
    if same:
        return same
    of_role = [each for each in held if each.message["role"] == redacted["role"]]
    position = next((n for n, message in enumerate(in_memory) if message is redacted), len(held))
    replaced = held[position : position + 1]
    if replaced and replaced[0] in of_role and all(message is not replaced[0].message for message in in_memory):
        return list(replaced)
    return of_role[-1:]
