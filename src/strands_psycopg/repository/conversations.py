"""Agents and checkpoints with the messages that are restored with them, read in one round trip."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg.rows import TupleRow
from strands.types.content import Message

from strands_psycopg.arguments import check_id
from strands_psycopg.database import Database
from strands_psycopg.errors import owner_error
from strands_psycopg.payload import Payloads
from strands_psycopg.repository.agents import StoredAgent, decode_stored_agent
from strands_psycopg.repository.annotations import check_owner
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.messages import gc_paused
from strands_psycopg.repository.window import stored_places

# The messages of the log, and the variants, to which the window of the row w refers: ranges and what follows the last
# item, and single variants.
MESSAGES_OF_WINDOW = """
    SELECT t.message_id, t.message::text, t.message_exact, t.redact_message::text, t.redact_message_exact,
        NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
    FROM {source} AS w CROSS JOIN LATERAL (
        SELECT (item->>0)::bigint AS first, (item->>1)::bigint AS stop
        FROM pg_catalog.jsonb_array_elements(w.memory_window->'items'::text) AS item
        WHERE pg_catalog.jsonb_typeof(item) = 'array'
        UNION ALL
        SELECT {next}, 9223372036854775807
    ) AS r
    JOIN {messages} AS t ON t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s
        AND t.message_id >= r.first AND t.message_id < r.stop
    WHERE w.session_id = %(session_id)s AND w.agent_id = %(agent_id)s
    UNION ALL
    SELECT -t.variant_id, t.message::text, t.message_exact, NULL, NULL, t.message_id::text, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL
    FROM {source} AS w
    CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(w.memory_window->'items'::text) AS item
    JOIN {message_variants} AS t ON t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s
        AND t.variant_id = CASE WHEN pg_catalog.jsonb_typeof(item) = 'number' THEN (item #>> '{{}}'::text[])::bigint END
    WHERE w.session_id = %(session_id)s AND w.agent_id = %(agent_id)s
"""

# Without a window, Strands restores the messages starting at the index that equals the conversation manager's count of
# removed messages. If that count is not a plain number, which Strands never writes, all messages are read.
_NEXT = """
    CASE
        WHEN w.memory_window IS NOT NULL THEN (w.memory_window->>'next'::text)::bigint
        WHEN w.conversation_manager_state->>'removed_message_count'::text ~ '^[0-9]{{1,18}}$'
        THEN (w.conversation_manager_state->>'removed_message_count'::text)::bigint
        ELSE 0
    END
"""

_READ = """
    SELECT NULL::bigint, {agent_columns}, CASE WHEN {owned} THEN coalesce((
        SELECT v.variant_id + 1 FROM {message_variants} AS v
        WHERE v.session_id = %(session_id)s AND v.agent_id = %(agent_id)s ORDER BY v.variant_id DESC LIMIT 1
    ), 1) END
    FROM {agents} AS t WHERE t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s
    UNION ALL
    """ + MESSAGES_OF_WINDOW.replace("{source}", "{agents}").replace("{next}", _NEXT)
# The last column of the first row is NULL: the session belongs to another owner.


class StoredMessage(NamedTuple):
    """A message to be restored.

    Attributes:
        place: Where it is stored (see ``Window``).
        original: The index in the log of the message that it is, or that it is a variant of; None if there is none.
        message: The message, as redacted.
        is_redacted: Whether it is.
    """

    place: int
    original: int | None
    message: Message
    is_redacted: bool = False


class Conversation(NamedTuple):
    """An agent and the messages that it held in memory, read in one snapshot.

    Attributes:
        stored: The agent.
        messages: The messages, in order.
        next_variant_id: The id of its next variant.
    """

    stored: StoredAgent
    messages: list[StoredMessage]
    next_variant_id: int

    @property
    def summary(self) -> Message | None:
        """The summary that the conversation manager puts before the messages; None if a window has all of them."""
        state = self.stored.agent.conversation_manager_state
        return state.get("summary_message") if self.stored.window is None else None


class Conversations:
    """Reads conversations in one database, schema and prefix."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._read = compose(database, _READ)

    def read(self, session_id: str, agent_id: str, *, owner: str | None = None) -> Conversation | None:
        """Return an agent with its messages, or None if it does not exist.

        Raises:
            SessionOwnerError: The session does not belong to ``owner``, and that is not None.
        """
        key = {"session_id": check_id("session_id", session_id), "agent_id": check_id("agent_id", agent_id)}
        operation = f"restoring agent {agent_id!r} of session {session_id!r}"
        rows = self._database.fetch(operation, self._read, {**key, "owner": check_owner(owner)}).rows
        agents = [row for row in rows if row[0] is None]
        if not agents:
            return None
        *columns, next_variant_id = agents[0][1:]
        if next_variant_id is None:
            raise owner_error(operation, session_id)
        stored = decode_stored_agent(self._payloads, session_id, agent_id, columns)
        places = stored_places(stored.window, stored.agent.conversation_manager_state, stored.next_message_id)
        messages = decode_messages(self._payloads, session_id, agent_id, places, rows)
        return Conversation(stored, messages, next_variant_id)


def decode_messages(
    payloads: Payloads, session_id: str, agent_id: str, places: Sequence[int], rows: Sequence[TupleRow]
) -> list[StoredMessage]:
    """Decode the rows of messages and variants and put them in order; a place without a row is left out."""
    by_place: dict[int, TupleRow] = {row[0]: row for row in rows if row[0] is not None}
    decoded: dict[int, StoredMessage] = {}
    messages = []
    with gc_paused(payloads):
        for place in places:
            if place in decoded:
                messages.append(copy.deepcopy(decoded[place]))
            elif place in by_place:
                decoded[place] = decode_stored_message(payloads, session_id, agent_id, by_place[place])
                messages.append(decoded[place])
    return messages


def decode_stored_message(payloads: Payloads, session_id: str, agent_id: str, row: Sequence[Any]) -> StoredMessage:
    """Decode a row of a message or variant: its place, and the columns of the message and of its redaction.

    The row of a variant also has the index of the message that it is a form of.
    """
    place, content, content_exact, redaction, redaction_exact = row[:5]
    if place < 0:
        original = None if row[5] is None else int(row[5])
        variant = payloads.decode(content, content_exact, session_id, agent_id, "variant", -place)
        return StoredMessage(place, original, variant)
    if redaction is None:
        message = payloads.decode(content, content_exact, session_id, agent_id, "message", place)
        return StoredMessage(place, place, message)
    redacted = payloads.decode(redaction, redaction_exact, session_id, agent_id, "redaction", place)
    return StoredMessage(place, place, redacted, is_redacted=True)
