"""SQL fragments that several statements share; a statement refers to them as ``{name}``."""

from functools import lru_cache

from strands_psycopg.database import Database, iso_time

_TIMES = iso_time("{row}.created_at") + ", " + iso_time("NULLIF({row}.updated_at, {row}.created_at)")

_ANNOTATIONS = "{row}.owner, {row}.title, {row}.metadata::text, {row}.metadata_exact"

_TOUCH_SESSION = """
    touched_session AS (
        UPDATE {sessions} SET updated_at = pg_catalog.now()
        WHERE session_id = %(session_id)s AND updated_at < pg_catalog.now() - interval '1 minute' AND {condition}
    )
"""

# Indexes of messages have no gaps, so the number of an agent's messages follows from the last index.
_MESSAGES_OF_A = """
    (
        SELECT pg_catalog.max(m.message_id) + 1 FROM {messages} AS m
        WHERE m.session_id = {session_id} AND m.agent_id = a.agent_id
    )
"""
_MESSAGES_OF_SESSION = """
    (
        SELECT coalesce(pg_catalog.sum({messages_of_a}), 0)::bigint FROM {agents} AS a
        WHERE a.session_id = {session_id}
    )
""".replace("{messages_of_a}", _MESSAGES_OF_A)

# The numbers of agents, messages and multi-agents.
_COUNTS = f"""
    (SELECT pg_catalog.count(*) FROM {{agents}} AS a WHERE a.session_id = {{session_id}}), {_MESSAGES_OF_SESSION},
    (SELECT pg_catalog.count(*) FROM {{multi_agents}} AS a WHERE a.session_id = {{session_id}})
"""

# A fragment may refer to those after it.
_FRAGMENTS = {
    "agent_columns": """
        t.state::text, t.state_exact, t.conversation_manager_state::text, t.conversation_manager_state_exact,
        t._internal_state::text, t._internal_state_exact, t.write_id::text, coalesce({next_message_id}, 0),
        t.memory_window::text, {times_of_t}
    """,
    # The server's time if the statement may write, otherwise NULL (see Database.write).
    "allowed_at": "CASE WHEN fence.holds THEN {server_time} END",
    # Whether the statement may write, for one that updates or deletes: it begins with this. Where the tables are
    # distributed, this has the time of the node that runs it, and an UPDATE itself would have that of the node that
    # plans it, so that it could overwrite what is newer.
    "fence": "fence AS (SELECT {may_write} AS holds)",
    "fence_holds": "(SELECT holds FROM fence)",
    # The same, for one that inserts; if it is late, its write id identifies it. Where the tables are distributed, a CTE
    # that selects would make it a write of all nodes. So this is what the statement selects from at the end.
    "fence_of_insert": "(SELECT {may_write} AS holds OFFSET 0) AS fence",
    # The statement has not arrived late, and the writer's lease, if it has one, is still held. The term is a fencing
    # token: a writer that was suspended while another holder took over writes nothing. Locking the row until the
    # statement commits prevents a takeover between this check and the write; without the lock one could commit in
    # between.
    "may_write": """
        ({in_time} AND (%(term)s::uuid IS NULL OR EXISTS (
            SELECT true FROM {leases} WHERE session_id = %(session_id)s AND term = %(term)s::uuid FOR SHARE
        )))
    """,
    # The time of the last activity is accurate to a minute, so most writes do not update the session's row.
    "touch_session": _TOUCH_SESSION.replace("{condition}", "(SELECT holds FROM fence)"),
    "touch_session_of_t": _TOUCH_SESSION.replace("{condition}", "EXISTS (SELECT true FROM t)"),
    "touch_session_of_u": _TOUCH_SESSION.replace("{condition}", "EXISTS (SELECT true FROM u)"),
    "created_at_text": iso_time("created_at"),
    "updated_at_text": iso_time("updated_at"),
    "expires_at_text": iso_time("expires_at"),
    # created_at and updated_at of a row in Strands' format; the latter is NULL if both are equal.
    "times_of_s": _TIMES.replace("{row}", "s"),
    "times_of_t": _TIMES.replace("{row}", "t"),
    "times_of_u": _TIMES.replace("{row}", "u"),
    # The annotations of the session s or t.
    "annotations_of_s": _ANNOTATIONS.replace("{row}", "s"),
    "annotations_of_t": _ANNOTATIONS.replace("{row}", "t"),
    # Whether the session belongs to the owner that the caller has passed, if any; and whether it does not.
    "owned": """
        (%(owner)s::text IS NULL OR EXISTS (
            SELECT true FROM {sessions} WHERE session_id = %(session_id)s AND owner = %(owner)s::text
        ))
    """,
    "of_another_owner": """
        (%(owner)s::text IS NOT NULL AND EXISTS (
            SELECT true FROM {sessions} WHERE session_id = %(session_id)s AND owner IS DISTINCT FROM %(owner)s::text
        ))
    """,
    # The counts of one session, which is a parameter, and of each session s of a list.
    "counts": _COUNTS.replace("{session_id}", "%(session_id)s"),
    "counts_of_s": _COUNTS.replace("{session_id}", "s.session_id"),
    "messages_of_a": _MESSAGES_OF_A.replace("{session_id}", "%(session_id)s"),
    # Whether the row still has the write id that the writer expects, or already this write's own if it is a retry.
    "unchanged": "(%(expected)s::uuid IS NULL OR write_id IN (%(expected)s, %(write_id)s))",
    # The same, for a statement that does not lock the row: a concurrent update is found by the writer's next one.
    "agent_unchanged": """
        (%(expected)s::uuid IS NULL OR EXISTS (
            SELECT true FROM {agents}
            WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND write_id = %(expected)s
        ))
    """,
    # Deletes the variants that neither the agent's window nor a checkpoint refers to.
    "delete_unused_variants": """
        DELETE FROM {message_variants} AS v
        WHERE v.session_id = %(session_id)s AND v.agent_id = %(agent_id)s
            AND v.variant_id <> ALL(%(window_variant_ids)s::bigint[])
            AND NOT EXISTS (
                SELECT true FROM {checkpoints} AS c
                WHERE c.session_id = %(session_id)s AND c.agent_id = %(agent_id)s AND v.variant_id = ANY(c.variant_ids)
            )
    """,
    "insert_message": """
        INSERT INTO {messages} AS m (
            session_id, agent_id, message_id, message, message_exact, redact_message, redact_message_exact, write_id,
            created_at, updated_at
        )
        SELECT seen.session_id, seen.agent_id, %(message_id)s::bigint, %(message)s::jsonb, %(message_exact)s::text,
            %(redact_message)s::jsonb, %(redact_message_exact)s::text, %(write_id)s::uuid, pg_catalog.now(),
            pg_catalog.now()
    """,
    # The agent. Statements that update it or depend on its variants lock it with FOR NO KEY UPDATE OF seen.
    "seen": "{agents} AS seen WHERE seen.session_id = %(session_id)s AND seen.agent_id = %(agent_id)s",
    "is_next": """
        (%(message_id)s::bigint = 0 OR EXISTS (
            SELECT true FROM {messages}
            WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND message_id = %(message_id)s::bigint - 1
        ))
    """,
    "on_message_conflict": """
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
            memory_window = %(memory_window)s, write_id = %(write_id)s, updated_at = pg_catalog.now()
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
    """,
    # The same, but documents that are NULL stay as they are.
    "update_agent_in_part": """
        UPDATE {agents} SET
            state = coalesce(%(state)s::jsonb, state),
            state_exact = CASE WHEN %(state)s::jsonb IS NULL THEN state_exact ELSE %(state_exact)s END,
            conversation_manager_state = coalesce(%(conversation_manager_state)s::jsonb, conversation_manager_state),
            conversation_manager_state_exact = CASE
                WHEN %(conversation_manager_state)s::jsonb IS NULL THEN conversation_manager_state_exact
                ELSE %(conversation_manager_state_exact)s
            END,
            _internal_state = coalesce(%(_internal_state)s::jsonb, _internal_state),
            _internal_state_exact = CASE
                WHEN %(_internal_state)s::jsonb IS NULL THEN _internal_state_exact ELSE %(_internal_state_exact)s
            END,
            memory_window = %(memory_window)s, write_id = %(write_id)s, updated_at = pg_catalog.now()
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
    """,
}


def compose(database: Database, template: str) -> bytes:
    """Compose a statement from a template that refers to fragments and tables."""
    return database.statement(_with_fragments(template))


@lru_cache(maxsize=1024)
def _with_fragments(template: str) -> str:
    for name, text in _FRAGMENTS.items():
        template = template.replace("{" + name + "}", text)
    return template
