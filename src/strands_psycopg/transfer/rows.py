"""Rows for export and import: Strands' objects encoded for the columns, with the times of their source."""

from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeAlias

from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg.codec import encode
from strands_psycopg.repository.identifiers import check_id, check_index


class SessionRow(NamedTuple):
    """A session. Field names are column names, as in the other rows."""

    session_id: str
    session_type: str
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


class MultiAgentRow(NamedTuple):
    """A multi-agent."""

    multi_agent_id: str
    state: str
    state_exact: str | None
    created_at: datetime
    updated_at: datetime


Row: TypeAlias = SessionRow | AgentRow | MessageRow | MultiAgentRow


def session_row(session: Session) -> SessionRow:
    """Encode a session.

    Raises:
        ValueError: A value cannot be stored. The other functions raise it too.
    """
    return SessionRow(
        check_id("session_id", session.session_id), SessionType(session.session_type).value, *_times(session)
    )


def agent_row(agent: SessionAgent) -> AgentRow:
    """Encode an agent."""
    return AgentRow(
        check_id("agent_id", agent.agent_id),
        *_encode_object("state", agent.state),
        *_encode_object("conversation_manager_state", agent.conversation_manager_state),
        *_encode_object("_internal_state", agent._internal_state),
        *_times(agent),
    )


def message_row(agent_id: str, message: SessionMessage) -> MessageRow:
    """Encode a message of an agent."""
    redaction: tuple[str | None, str | None] = (None, None)
    if message.redact_message is not None:
        redaction = _encode_object("redact_message", message.redact_message)
    return MessageRow(
        check_id("agent_id", agent_id),
        check_index("message_id", message.message_id),
        *_encode_object("message", message.message),
        *redaction,
        *_times(message),
    )


def multi_agent_row(multi_agent_id: str, state: Any, created_at: str, updated_at: str) -> MultiAgentRow:
    """Encode a multi-agent's state."""
    return MultiAgentRow(
        check_id("multi_agent_id", multi_agent_id),
        *_encode_object("state", state),
        _parse_time("created_at", created_at),
        _parse_time("updated_at", updated_at),
    )


def _encode_object(field: str, document: Any) -> tuple[str, str | None]:
    if not isinstance(document, dict):
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
