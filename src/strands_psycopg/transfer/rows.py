"""Rows for export and import: Strands' objects encoded for the columns, with the times of their source."""

import re
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeAlias

from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg.arguments import check_id, check_index, check_text, is_storable, parse_snapshot_id
from strands_psycopg.codec import decode, encode
from strands_psycopg.payload import PayloadKind, Payloads
from strands_psycopg.repository.annotations import Annotations, encode_metadata
from strands_psycopg.repository.window import Window, dumps_window, plain_start
from strands_psycopg.storage.scope import MAX_KEY_SIZE
from strands_psycopg.storage.value_writer import MAX_VALUE_SIZE

_MAX_RAW_TITLE_LENGTH = 2**20

# Quoted words with positions and weights: 'sat':3A,7 'the cat''s'.
_WORD = r"'(?:[^'\\]|''|\\\\)+'(?::\d+[ABC]?(?:,\d+[ABC]?)*)?"
_SEARCH_VECTOR = re.compile(f"(?:{_WORD}(?: {_WORD})*)?")


class SessionRow(NamedTuple):
    """A session. Field names are column names, as in the other rows."""

    session_id: str
    session_type: str
    owner: str | None
    title: str | None
    metadata: str | None
    metadata_exact: str | None
    created_at: datetime
    updated_at: datetime


class AgentRow(NamedTuple):
    """An agent."""

    agent_id: str
    state: str
    state_exact: str | None
    conversation_manager_state: str
    conversation_manager_state_exact: str | None
    internal_state: str
    internal_state_exact: str | None
    memory_window: str | None
    created_at: datetime
    updated_at: datetime


class MessageRow(NamedTuple):
    """A message."""

    agent_id: str
    message_id: int
    message: str
    message_exact: str | None
    redact_message: str | None
    redact_message_exact: str | None
    created_at: datetime
    updated_at: datetime


class VariantRow(NamedTuple):
    """A message in a form that the agent's log does not have."""

    agent_id: str
    variant_id: int
    message_id: int | None
    message: str
    message_exact: str | None
    created_at: datetime


class CheckpointRow(NamedTuple):
    """A checkpoint of an agent."""

    agent_id: str
    snapshot_id: str
    message_count: int
    memory_window: str
    variant_ids: list[int]
    data: str
    data_exact: str | None
    created_at: datetime


class MultiAgentRow(NamedTuple):
    """A multi-agent."""

    multi_agent_id: str
    state: str
    state_exact: str | None
    created_at: datetime
    updated_at: datetime


class ValueRow(NamedTuple):
    """A value of the session's storage. It has no search vector if that is not known."""

    key: str
    data: bytes
    search_vector: str | None
    updated_at: datetime
    expires_at: datetime | None


# The rows that belong to an agent. They follow its own row, in this order.
PartRow: TypeAlias = MessageRow | VariantRow | CheckpointRow

Row: TypeAlias = SessionRow | AgentRow | PartRow | MultiAgentRow | ValueRow


def session_row(session: Session, *, raw: bool = False) -> SessionRow:
    """Encode a session.

    ``raw`` says, here and in the other functions, that documents may be any JSON: what a payload codec has returned.

    Raises:
        ValueError: A value cannot be stored. The other functions raise it too.
    """
    owner, title, metadata = Annotations.of(session)
    if raw and title is not None:
        # What a codec has returned for a title may be longer.
        check_text("title", title, 0, _MAX_RAW_TITLE_LENGTH)
    Annotations(owner, None if raw else title, metadata).check()
    metadata_text, metadata_exact = encode_metadata(metadata)
    return SessionRow(
        check_id("session_id", session.session_id),
        SessionType(session.session_type).value,
        owner,
        title,
        metadata_text,
        metadata_exact,
        *_times(session),
    )


def agent_row(agent: SessionAgent, window: Window | None = None, *, raw: bool = False) -> AgentRow:
    """Encode an agent and its window; None is the end of its log."""
    return AgentRow(
        check_id("agent_id", agent.agent_id),
        *_encode("state", agent.state, raw=raw),
        *_encode("conversation_manager_state", agent.conversation_manager_state, raw=raw),
        *_encode("_internal_state", agent._internal_state, raw=raw),
        None if window is None else window.dumps(),
        *_times(agent),
    )


def message_row(agent_id: str, message: SessionMessage, *, raw: bool = False) -> MessageRow:
    """Encode a message of an agent."""
    redaction: tuple[str | None, str | None] = (None, None)
    if message.redact_message is not None:
        redaction = _encode("redact_message", message.redact_message, raw=raw)
    return MessageRow(
        check_id("agent_id", agent_id),
        check_index("message_id", message.message_id),
        *_encode("message", message.message, raw=raw),
        *redaction,
        *_times(message),
    )


def variant_row(
    agent_id: str, variant_id: int, message_id: int | None, message: Any, created_at: str, *, raw: bool
) -> VariantRow:
    """Encode a variant of a message."""
    return VariantRow(
        check_id("agent_id", agent_id),
        _check_variant_id(variant_id),
        None if message_id is None else check_index("message_id", message_id),
        *_encode("message", message, raw=raw),
        _parse_time("created_at", created_at),
    )


def checkpoint_row(
    agent_id: str,
    snapshot_id: str,
    message_count: int,
    window: Window,
    data: Any,
    created_at: str,
    *,
    raw: bool,
) -> CheckpointRow:
    """Encode a checkpoint."""
    return CheckpointRow(
        check_id("agent_id", agent_id),
        _check_snapshot_id(snapshot_id),
        check_index("message_count", message_count),
        window.dumps(),
        sorted(set(window.variant_ids)),
        *_encode("data", data, raw=raw),
        _parse_time("created_at", created_at),
    )


def multi_agent_row(
    multi_agent_id: str, state: Any, created_at: str, updated_at: str, *, raw: bool = False
) -> MultiAgentRow:
    """Encode a multi-agent's state."""
    return MultiAgentRow(
        check_id("multi_agent_id", multi_agent_id),
        *_encode("state", state, raw=raw),
        _parse_time("created_at", created_at),
        _parse_time("updated_at", updated_at),
    )


def value_row(key: Any, data: bytes, search_vector: Any, updated_at: str, expires_at: str | None) -> ValueRow:
    """Check a value of a storage."""
    if not isinstance(key, str) or not key or not is_storable(key) or len(key.encode()) > MAX_KEY_SIZE:
        raise ValueError(f"key must be a string of up to {MAX_KEY_SIZE} bytes of UTF-8, without NUL or lone surrogates")
    if len(data) > MAX_VALUE_SIZE:
        raise ValueError(f"data may have {MAX_VALUE_SIZE} bytes, not {len(data)}")
    if search_vector is not None and not (
        isinstance(search_vector, str) and is_storable(search_vector) and _SEARCH_VECTOR.fullmatch(search_vector)
    ):
        raise ValueError("search_vector must be the text of a tsvector, as PostgreSQL writes it")
    return ValueRow(
        key,
        data,
        search_vector,
        _parse_time("updated_at", updated_at),
        None if expires_at is None else _parse_time("expires_at", expires_at),
    )


def encode_row(row: Row, payloads: Payloads, session_id: str) -> Row:
    """Return a row as it is stored, with documents that the payload codec has encoded.

    Raises:
        PayloadCodecError: The codec failed.
    """
    if not payloads.has_codec:
        return row

    def encode_as(kind: PayloadKind, name: str, agent_id: str, index: int | str | None = None) -> dict[str, Any]:
        text, exact = getattr(row, name), getattr(row, f"{name}_exact")
        if text is None:
            return {}
        text, exact = payloads.encode_columns((text, exact), session_id, agent_id, kind, index)
        return {name: text, f"{name}_exact": exact}

    match row:
        case SessionRow():
            return row if row.title is None else row._replace(title=payloads.encode_title(row.title, session_id))
        case AgentRow():
            state = decode(row.conversation_manager_state, row.conversation_manager_state_exact)
            window = row.memory_window or dumps_window(None, plain_start(state), payloads)
            return row._replace(
                **encode_as("state", "state", row.agent_id),
                **encode_as("conversation_manager_state", "conversation_manager_state", row.agent_id),
                **encode_as("internal_state", "internal_state", row.agent_id),
                memory_window=window,
            )
        case MessageRow():
            return row._replace(
                **encode_as("message", "message", row.agent_id, row.message_id),
                **encode_as("redaction", "redact_message", row.agent_id, row.message_id),
            )
        case VariantRow():
            return row._replace(**encode_as("variant", "message", row.agent_id, row.variant_id))
        case CheckpointRow():
            return row._replace(**encode_as("checkpoint", "data", row.agent_id, row.snapshot_id))
        case MultiAgentRow():
            return row._replace(**encode_as("multi_agent", "state", row.multi_agent_id))
        case ValueRow():
            data = payloads.encode_bytes(row.data, session_id, row.key)
            # The words of a value that is encrypted must not be stored beside it.
            return row._replace(data=data, search_vector=row.search_vector if data == row.data else None)


def parse_window(document: Any) -> Window:
    """Read a window from JSON.

    Raises:
        ValueError: It is not a window.
    """
    if not isinstance(document, dict):
        raise ValueError(f"memory_window must be a JSON object, not {type(document).__name__}")
    items, following = document["items"], document["next"]
    if not isinstance(items, list):
        raise ValueError(f"items of memory_window must be a list, not {type(items).__name__}")
    return Window(
        tuple(_parse_range(item) if isinstance(item, list) else _check_variant_id(item) for item in items),
        None if following is None else check_index("next of memory_window", following),
    )


def _parse_range(item: list[Any]) -> tuple[int, int]:
    if len(item) == 2:
        first, stop = (check_index("a range of memory_window", index) for index in item)
        if first < stop:
            return first, stop
    raise ValueError("a range of memory_window must be [first, stop] with first < stop")


def _check_variant_id(value: Any) -> int:
    variant_id = check_index("variant_id", value)
    # A place of 0 is the first message of the log.
    if variant_id == 0:
        raise ValueError("variant_id must be 1 or more, not 0")
    return variant_id


def _check_snapshot_id(value: Any) -> str:
    try:
        return str(parse_snapshot_id(value))
    except ValueError:
        raise ValueError("snapshot_id must be a UUID of version 7") from None


def _encode(field: str, document: Any, *, raw: bool) -> tuple[str, str | None]:
    if not raw and not isinstance(document, dict):
        raise ValueError(f"{field} must be a JSON object, not {type(document).__name__}")
    return encode(document)


def _times(record: Session | SessionAgent | SessionMessage) -> tuple[datetime, datetime]:
    return _parse_time("created_at", record.created_at), _parse_time("updated_at", record.updated_at)


def _parse_time(field: str, value: object) -> datetime:
    """Parse a time as Strands writes it; one without an offset is UTC."""
    if not isinstance(value, str):
        raise ValueError(f"{field} must be a time in ISO 8601, not {type(value).__name__}")
    try:
        # Python parses the Z that other programs write only since 3.11.
        time = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
        return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise ValueError(f"{field} is not a time in ISO 8601") from None
