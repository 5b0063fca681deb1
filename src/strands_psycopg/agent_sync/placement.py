"""Finding the messages of memory among those that are stored."""

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple, cast

from strands.types.content import Message

from strands_psycopg.agent_sync.fingerprint import Fingerprint, are_unchanged, fingerprint, is_unchanged
from strands_psycopg.agent_sync.record import AgentRecord, HeldMessage, tracking_id
from strands_psycopg.repository.window import Variant

_FINGERPRINT = attrgetter("fingerprint")


def matches_held(messages: Sequence[Message], held: Sequence[HeldMessage]) -> bool:
    """Return whether memory has the messages that a record holds, unchanged and in order, and no others."""
    return len(messages) == len(held) and are_unchanged(messages, map(_FINGERPRINT, held))


class Placement(NamedTuple):
    """Where the messages of memory are stored.

    Attributes:
        held: The messages with their places, in order.
        variants: Those that must be stored.
        identified: Messages of the log, by their indexes, whose only edit is the tracking id that Strands has added.
    """

    held: Sequence[HeldMessage]
    variants: Sequence[Variant] = ()
    identified: Mapping[int, Message] = MappingProxyType({})


def place_messages(messages: Sequence[Message], record: AgentRecord) -> Placement:
    """Return the place of every message of memory.

    A message is found by identity, by content, by tracking id or by its neighbours. One that is found and has been
    edited, and one that is not found, becomes a variant. But what was redacted is never stored again: another form of a
    redacted message is a variant only if it has the content of the redaction, or is an edit of a message that had it;
    otherwise the redaction is stored in its place.
    """
    start = next((n for n, each in enumerate(record.held) if messages and each.message is messages[0]), 0)
    if start and matches_held(messages, record.held[start:]):
        return Placement(record.held[start:])
    sought = [(message, fingerprint(message)) for message in messages]
    next_variant_id = record.next_variant_id
    held: list[HeldMessage] = []
    variants: list[Variant] = []
    identified: dict[int, Message] = {}
    place: int
    original: int | None
    found = find_messages(sought, record.held)
    for (message, known), index, replaced in zip(sought, found, _find_replaced(messages, found, record), strict=True):
        match = None if index is None else record.held[index]
        removed = record.removed.get(known) if isinstance(known, bytes) else None
        if match is None and removed is not None:
            place = original = removed
            is_withheld = _is_unredacted(message, original, record)
        else:
            original = replaced if match is None else match.original
            is_withheld = (
                original is not None
                and _is_unredacted(message, original, record)
                and not _is_edit(message, known, match, record.redactions.get(original))
            )
            if match is not None and match.fingerprint == known:
                place = match.place
            elif is_withheld and original is not None:
                place = original
            elif match is not None and match.place == original and _is_identified(message, match):
                place = original
                identified[original] = message
            else:
                place = -next_variant_id
                variants.append(Variant(next_variant_id, original, message))
                next_variant_id += 1
        held.append(HeldMessage(place, original, known, message, is_withheld))
    return Placement(held, variants, identified)


def _is_unredacted(message: Message, original: int, record: AgentRecord) -> bool:
    """Return whether a message of the log was redacted, but this form of it has another content than the redaction."""
    redaction = record.redacted.get(original)
    return redaction is not None and not is_unchanged(message.get("content"), redaction)


def _is_edit(message: Message, known: Fingerprint, match: HeldMessage | None, redacted: Message | None) -> bool:
    """Return whether a message is, or now equals, one that had the content of its redaction."""
    held = None if match is None or match.is_withheld else match.message
    return any(each is message or is_unchanged(each, known) for each in (held, redacted) if each is not None)


def _is_identified(message: Message, match: HeldMessage) -> bool:
    """Return whether the only edit of a message is that Strands has added a tracking id."""
    if match.message is not message or tracking_id(message) is None:
        return False
    return is_unchanged({key: value for key, value in message.items() if key != "tracking_id"}, match.fingerprint)


def _find_replaced(messages: Sequence[Message], found: Sequence[int | None], record: AgentRecord) -> list[int | None]:
    """Return, for messages that were not found, the indexes in the log of those that they have replaced.

    They replace as many messages of the same roles between the same neighbours, so one that an application has put in
    the place of another is known to be a form of it. What has been redacted is only known by its tracking id.
    """
    replaced: list[int | None] = [record.redacted_ids.get(tracking_id(message) or "") for message in messages]
    remaining = set(found)
    start = 0
    while start < len(found):
        stop = next((n for n in range(start, len(found)) if found[n] is not None), len(found))
        if start < stop:
            before = -1 if start == 0 else cast(int, found[start - 1])
            after = len(record.held) if stop == len(found) else cast(int, found[stop])
            gone = [n for n in range(before + 1, after) if n not in remaining]
            roles = [record.held[n].message.get("role") for n in gone]
            if roles == [message.get("role") for message in messages[start:stop]]:
                for position, index in enumerate(gone, start):
                    original = record.held[index].original
                    if replaced[position] is None and original not in record.redacted:
                        replaced[position] = original
        start = stop + 1
    return replaced


def find_messages(sought: Sequence[tuple[Message, Fingerprint]], held: Sequence[HeldMessage]) -> list[int | None]:
    """Find each message among those that are held, and return their positions; a repeated one is found again."""
    by_object = _indexes(id(each.message) for each in held)
    by_content = _indexes(each.fingerprint for each in held)
    by_tracking_id = _indexes(tracking_id(each.message) for each in held)
    taken: set[int] = set()

    def take(indexes: "deque[int] | None") -> int | None:
        if indexes is None:
            return None
        while len(indexes) > 1 and indexes[0] in taken:
            indexes.popleft()
        taken.add(indexes[0])
        return indexes[0]

    found = [take(by_object.get(id(message))) for message, _ in sought]
    for position, (message, known) in enumerate(sought):
        if found[position] is None:
            found[position] = take(by_content.get(known))
        if found[position] is None:
            found[position] = take(by_tracking_id.get(tracking_id(message)))
    return found


def _indexes(keys: Iterable[Hashable]) -> "dict[Hashable, deque[int]]":
    found: dict[Hashable, deque[int]] = defaultdict(deque)
    for index, key in enumerate(keys):
        if key is not None:
            found[key].append(index)
    return dict(found)
