"""Agents with the messages that are restored with them, read in one round trip."""

from operator import itemgetter
from typing import NamedTuple

from strands.types.session import SessionMessage

from strands_psycopg.database import Database
from strands_psycopg.repository.agents import StoredAgent, stored_agent
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.identifiers import check_id
from strands_psycopg.repository.messages import gc_paused, stored_message

# Strands restores the messages starting at the index that equals the conversation manager's count of removed messages.
# If that count is not a plain number, which Strands never writes, all messages are read.
_READ = """
    SELECT NULL::bigint, {agent_columns}
    FROM {agents} AS t WHERE t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s
    UNION ALL
    SELECT t.message_id, t.message::text, t.message_exact, t.redact_message::text, t.redact_message_exact,
        NULL, NULL, NULL, NULL, {times_of_t}
    FROM {agents} AS a JOIN {messages} AS t ON t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s
        AND t.message_id >= CASE
            WHEN a.conversation_manager_state->>'removed_message_count' ~ '^[0-9]{{1,18}}$'
            THEN (a.conversation_manager_state->>'removed_message_count')::bigint ELSE 0
        END
    WHERE a.session_id = %(session_id)s AND a.agent_id = %(agent_id)s
"""


class Conversation(NamedTuple):
    """An agent and its messages, read in one snapshot.

    Attributes:
        stored: The agent.
        messages: The messages that its conversation manager has not removed, oldest first.
    """

    stored: StoredAgent
    messages: list[SessionMessage]

    @property
    def offset(self) -> int | None:
        """The index of the first message; None if the count of removed messages is not a plain number."""
        count = self.stored.agent.conversation_manager_state.get("removed_message_count", 0)
        return count if isinstance(count, int) and count >= 0 else None


class Conversations:
    """Reads conversations in one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = compose(database, _READ)

    def read(self, session_id: str, agent_id: str) -> Conversation | None:
        """Return an agent with its messages, or None if it does not exist."""
        key = {"session_id": check_id("session_id", session_id), "agent_id": check_id("agent_id", agent_id)}
        operation = f"restoring agent {agent_id!r} of session {session_id!r}"
        rows = self._database.fetch(operation, self._read, key).rows
        agents = [row for row in rows if row[0] is None]
        if not agents:
            return None
        messages = sorted((row for row in rows if row[0] is not None), key=itemgetter(0))
        with gc_paused():
            return Conversation(
                stored_agent(agent_id, agents[0][1:]),
                [stored_message(*row[:5], *row[9:]) for row in messages],
            )
