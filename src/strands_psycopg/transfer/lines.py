"""Single lines of JSON lines: each is one row.

``kind`` is the first key of every line. A line is ASCII and JSON that any program can read. Documents keep the order of
their keys. If a document contains values that programs read differently (NaN, lone surrogates, -0.0, large floats,
...), a key ``<name>_exact`` beside it contains its exact text, which an import reads instead; see ``codec``. A value of
a storage is Base64, beside the words by which a search finds it, as PostgreSQL writes a ``tsvector``; they are null if
there are none, or a payload codec has decoded the value.
"""

import json
import re
from base64 import b64decode, b64encode
from typing import Any

from strands.types.session import SessionAgent, SessionMessage

from strands_psycopg.codec import decode
from strands_psycopg.transfer.rows import (
    AgentRow,
    CheckpointRow,
    MessageRow,
    MultiAgentRow,
    PartRow,
    Row,
    SessionRow,
    ValueRow,
    VariantRow,
    agent_row,
    checkpoint_row,
    message_row,
    multi_agent_row,
    parse_window,
    value_row,
    variant_row,
)

KINDS: dict[type[Row], str] = {
    SessionRow: "session",
    AgentRow: "agent",
    MessageRow: "message",
    VariantRow: "message_variant",
    CheckpointRow: "checkpoint",
    MultiAgentRow: "multi_agent",
    ValueRow: "value",
}

# For each kind, the plain fields and the documents of its lines. The times follow.
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "session": (("session_id", "session_type", "owner", "title"), ("metadata",)),
    "agent": (("agent_id",), ("state", "conversation_manager_state", "_internal_state", "memory_window")),
    "message": (("agent_id", "message_id"), ("message", "redact_message")),
    "message_variant": (("agent_id", "variant_id", "message_id"), ("message",)),
    "checkpoint": (("agent_id", "snapshot_id", "message_count"), ("memory_window", "data")),
    "multi_agent": (("multi_agent_id",), ("state",)),
    "value": (("key", "search_vector"), ()),
}

_TIMES = ("created_at", "updated_at", "expires_at")

_KIND = re.compile(r'\s*\{\s*"kind"\s*:\s*"(\w+)"')


def format_line(row: Row, *more: str) -> str:
    """Return the line of a row, with its line end; ``more`` are keys and values for it."""
    kind = KINDS[type(row)]
    plain, documents = _FIELDS[kind]
    parts = [f'"kind": "{kind}"', *more, *(f'"{name}": {json.dumps(getattr(row, name))}' for name in plain)]
    for name in documents:
        column = name.lstrip("_")
        text, exact = getattr(row, column), getattr(row, f"{column}_exact", None)
        parts.append(f'"{name}": {"null" if text is None else text}')
        # The JSON text above already has the order of keys.
        if exact is not None and not exact.startswith("order "):
            parts.append(f'"{name}_exact": {json.dumps(exact)}')
    if isinstance(row, ValueRow):
        parts.append(f'"data": "{b64encode(row.data).decode()}"')
    times = (name for name in _TIMES if getattr(row, name, None) is not None)
    parts += [f'"{name}": "{getattr(row, name).isoformat(timespec="microseconds")}"' for name in times]
    return "{" + ", ".join(parts) + "}\n"


def kind_of(line: str) -> str | None:
    """Return the kind of a line; None if it has none."""
    match = _KIND.match(line)
    return match and match[1]


def parse_metadata(record: dict[str, Any]) -> Any:
    """Read the metadata of a session's line; None if it has none.

    Raises:
        ValueError: Its exact text is not a string.
    """
    return None if record.get("metadata") is None else _decode_document(record, "metadata")


def parse_row(record: dict[str, Any], *, raw: bool) -> AgentRow | PartRow | MultiAgentRow | ValueRow:
    """Read the row of a line that belongs to a session.

    Args:
        record: The line.
        raw: Whether its documents may be any JSON, and are stored as they are.

    Raises:
        KeyError: A field is missing.
        ValueError: The kind is unknown, or a value cannot be stored.
    """
    kind = record["kind"]
    if kind not in _FIELDS or kind == "session":
        raise ValueError("its kind is unknown")
    if kind == "value":
        data = b64decode(record["data"], validate=True)
        return value_row(record["key"], data, record["search_vector"], record["updated_at"], record.get("expires_at"))
    documents = {name: _decode_document(record, name) for name in _FIELDS[kind][1]}
    created_at = record["created_at"]
    match kind:
        case "message_variant":
            message = documents["message"]
            return variant_row(
                record["agent_id"], record["variant_id"], record["message_id"], message, created_at, raw=raw
            )
        case "checkpoint":
            window, data = parse_window(documents["memory_window"]), documents["data"]
            return checkpoint_row(
                record["agent_id"], record["snapshot_id"], record["message_count"], window, data, created_at, raw=raw
            )
    times = created_at, record["updated_at"]
    match kind:
        case "agent":
            state, manager_state, internal_state, window = documents.values()
            agent = SessionAgent(record["agent_id"], state, manager_state, internal_state, *times)
            return agent_row(agent, None if window is None else parse_window(window), raw=raw)
        case "message":
            message = SessionMessage(documents["message"], record["message_id"], documents["redact_message"], *times)
            return message_row(record["agent_id"], message, raw=raw)
        case _:
            return multi_agent_row(record["multi_agent_id"], documents["state"], *times, raw=raw)


def _decode_document(record: dict[str, Any], name: str) -> Any:
    exact = record.get(f"{name}_exact")
    if exact is not None and not isinstance(exact, str):
        raise ValueError(f"{name}_exact must be a string")
    if exact is not None:
        return decode("null", exact)
    # Only the codec decodes bytes.
    return decode(json.dumps(record[name]), None)
