"""Sessions whose messages, and the times of these, are given."""

from collections.abc import Sequence
from typing import Any

import psycopg
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import PostgresSessionRepository

Connection = psycopg.Connection[Any]


def user(*blocks: Any) -> dict[str, Any]:
    """Build a message of the user's; a string is a text."""
    return {"role": "user", "content": [{"text": block} if isinstance(block, str) else block for block in blocks]}


def assistant(*blocks: Any, usage: dict[str, Any] | None = None, metrics: dict[str, Any] | None = None) -> Any:
    """Build a message of a model's; a string is a text."""
    message = {**user(*blocks), "role": "assistant"}
    if usage or metrics:
        message["metadata"] = {"usage": usage or {}, "metrics": metrics or {}}
    return message


def call(tool_use_id: str, name: str = "add", arguments: Any = None) -> dict[str, Any]:
    """Build a tool call."""
    return {"toolUse": {"toolUseId": tool_use_id, "name": name, "input": {} if arguments is None else arguments}}


def result(tool_use_id: str, *content: Any, status: str = "success") -> dict[str, Any]:
    """Build a tool's result."""
    return {"toolResult": {"toolUseId": tool_use_id, "status": status, "content": list(content)}}


def usage(tokens_in: int, tokens_out: int, **cache: int) -> dict[str, int]:
    """Build the tokens of a model's call."""
    return {"inputTokens": tokens_in, "outputTokens": tokens_out, "totalTokens": tokens_in + tokens_out, **cache}


def store(
    repository: PostgresSessionRepository,
    connection: Connection,
    session_id: str,
    messages: Sequence[tuple[str, Any]],
    *,
    agent_id: str = "a",
) -> None:
    """Store a session of one agent, with the time of each message as ``2025-11-03 10:00``, in UTC."""
    repository.create_session(Session(session_id, SessionType.AGENT))
    repository.create_agent(session_id, SessionAgent(agent_id, {}, {}))
    times = [f"{time}Z" for time, _ in messages]
    for index, (_, message) in enumerate(messages):
        repository.create_message(session_id, agent_id, SessionMessage(message, index))
        connection.execute(
            "UPDATE strands_messages SET created_at = %s, updated_at = created_at "
            "WHERE session_id = %s AND agent_id = %s AND message_id = %s",
            [times[index], session_id, agent_id, index],
        )
    if times:
        connection.execute(
            "UPDATE strands_sessions SET created_at = %s, updated_at = %s WHERE session_id = %s",
            [times[0], times[-1], session_id],
        )


def store_json(connection: Connection, messages: Sequence[str], redactions: Sequence[str | None] = ()) -> None:
    """Store the session ``odd`` with JSON texts for messages, whatever they are."""
    connection.execute(
        "INSERT INTO strands_sessions (session_id, session_type, write_id, created_at, updated_at) "
        "VALUES ('odd', 'AGENT', gen_random_uuid(), now(), now())"
    )
    connection.execute(
        "INSERT INTO strands_agents (session_id, agent_id, state, conversation_manager_state, _internal_state, "
        "write_id, created_at, updated_at) VALUES ('odd', 'a', '{}', '{}', '{}', gen_random_uuid(), now(), now())"
    )
    redactions = [*redactions, *[None] * (len(messages) - len(redactions))]
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO strands_messages (session_id, agent_id, message_id, message, redact_message, write_id, "
            "created_at, updated_at) VALUES ('odd', 'a', %s, %s::jsonb, %s::jsonb, gen_random_uuid(), now(), now())",
            [(index, message, redactions[index]) for index, message in enumerate(messages)],
        )
