"""Parts of statements that several statements share, by the names that stand for them in braces."""

from decimal import Decimal

from strands_psycopg.database import Database
from strands_psycopg.errors import LeaseLostError

_TIMES = """
    to_char({row}.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
    to_char(NULLIF({row}.updated_at, {row}.created_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
"""

# Each may use those after it.
_FRAGMENTS = {
    "stored_agent": """
        t.state::text, t.state_exact, t.conversation_manager_state::text, t.conversation_manager_state_exact,
        t._internal_state::text, t._internal_state_exact, t.write_id::text, coalesce({next_message_id}, 0), {times_of_t}
    """,
    # Locked until the statement commits, so that nobody can take the session over between this check and the write: a
    # bare EXISTS would be no fence. Without a term nothing is looked up.
    "lease": """
        lease AS (
            SELECT FROM {leases} WHERE session_id = %(session_id)s AND term = %(term)s::uuid FOR SHARE
        )
    """,
    # A session's updated_at is kept to the minute, so that most writes leave its row alone.
    "active": """
        active AS (
            UPDATE {sessions} SET updated_at = now()
            WHERE session_id = %(session_id)s AND updated_at < now() - interval '1 minute' AND {fenced}
        )
    """,
    # The server's time, if a write may take place.
    "allowed_at": "CASE WHEN {fenced} THEN {server_time} END",
    "fenced": "({in_time} AND (%(term)s::uuid IS NULL OR EXISTS (SELECT FROM lease)))",
    # The times of a row as Strands writes them, the second NULL if it equals the first.
    "times_of_s": _TIMES.replace("{row}", "s"),
    "times_of_t": _TIMES.replace("{row}", "t"),
    "times_of_u": _TIMES.replace("{row}", "u"),
    # How much is in the session s. Messages are numbered without a gap, so the index of the last one tells.
    "contents_of_s": """
        (SELECT count(*) FROM {agents} AS a WHERE a.session_id = s.session_id),
        (SELECT coalesce(sum({messages_of_a}), 0)::bigint FROM {agents} AS a WHERE a.session_id = s.session_id),
        (SELECT count(*) FROM {multi_agents} AS a WHERE a.session_id = s.session_id)
    """,
    "messages_of_a": """
        (
            SELECT max(m.message_id) + 1 FROM {messages} AS m
            WHERE m.session_id = a.session_id AND m.agent_id = a.agent_id
        )
    """,
    "expected": "(%(expected)s::uuid IS NULL OR write_id IN (%(expected)s, %(write_id)s))",
    "insert_message": """
        INSERT INTO {messages} AS m (
            session_id, agent_id, message_id, message, message_exact, redact_message, redact_message_exact, write_id,
            created_at, updated_at
        )
        SELECT %(session_id)s::text, %(agent_id)s::text, %(message_id)s, %(message)s::jsonb, %(message_exact)s::text,
            %(redact_message)s::jsonb, %(redact_message_exact)s::text, %(write_id)s::uuid, now(), now()
    """,
    "is_next": """
        (%(message_id)s = 0 OR EXISTS (
            SELECT FROM {messages}
            WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND message_id = %(message_id)s - 1
        ))
    """,
    "unless_taken": """
        ON CONFLICT (session_id, agent_id, message_id) DO UPDATE SET write_id = EXCLUDED.write_id
        WHERE m.write_id = EXCLUDED.write_id
        RETURNING m.created_at, m.updated_at
    """,
    "next_message_id": """
        (
            SELECT m.message_id + 1 FROM {messages} AS m
            WHERE m.session_id = %(session_id)s AND m.agent_id = %(agent_id)s
            ORDER BY m.message_id DESC LIMIT 1
        )
    """,
    "update_agent": """
        UPDATE {agents} SET
            state = %(state)s, state_exact = %(state_exact)s,
            conversation_manager_state = %(conversation_manager_state)s,
            conversation_manager_state_exact = %(conversation_manager_state_exact)s,
            _internal_state = %(_internal_state)s, _internal_state_exact = %(_internal_state_exact)s,
            write_id = %(write_id)s, updated_at = now()
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
    """,
}


def compose(database: Database, template: str) -> bytes:
    """Compose a statement of fragments and tables."""
    for name, text in _FRAGMENTS.items():
        template = template.replace("{" + name + "}", text)
    return database.statement(template)


def check_lease(allowed_at: Decimal | None, operation: str, session_id: str) -> None:
    """Go on only if the statement found its term in force, or needed none.

    Raises:
        LeaseLostError: It did not.
    """
    if allowed_at is None:
        raise LeaseLostError(
            f"{operation}: another holder has taken session {session_id!r} over, or its lease was removed; nothing was "
            "stored. Stop, and take a new lease to go on from what is stored",
            session_id=session_id,
        )
