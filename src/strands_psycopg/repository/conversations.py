"""Agents with the messages that their conversation managers have left in memory, for a restore in one round trip."""

from operator import itemgetter
from typing import NamedTuple

from strands.types.session import SessionMessage

from strands_psycopg.database import Database
from strands_psycopg.repository.agents import StoredAgent, stored_agent
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.identifiers import check_id
from strands_psycopg.repository.messages import gc_paused, stored_message

# Strands begins a restore at the index that the conversation manager's count of removed messages is. A count that is no
# plain number is nothing that Strands has written.
_READ = """
    SELECT NULL::bigint, {stored_agent}
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
    """An agent and its messages, as of one moment.

    Attributes:
        stored: The agent.
        messages: Those that its conversation manager has not removed, in order.
    """

    stored: StoredAgent
    messages: list[SessionMessage]

    @property
    def begin(self) -> int | None:
        """From which index on these are; None if the conversation manager's count is none."""
        count = self.stored.agent.conversation_manager_state.get("removed_message_count", 0)
        return count if isinstance(count, int) and count >= 0 else None


class Conversations:
    """The conversations of one database, schema and prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = compose(database, _READ)

    def read(self, session_id: str, agent_id: str) -> Conversation | None:
        """Give an agent with its messages, or None."""
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
