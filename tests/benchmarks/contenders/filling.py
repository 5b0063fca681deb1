"""Long sessions, stored in the tables of this library by SQL at once."""

import psycopg

_FILL = """
    WITH s AS (
        INSERT INTO strands_sessions (session_id, session_type, write_id, created_at, updated_at)
        VALUES (%(id)s, 'AGENT', gen_random_uuid(), now(), now())
    ), a AS (
        INSERT INTO strands_agents (session_id, agent_id, state, conversation_manager_state, _internal_state, write_id,
            created_at, updated_at)
        VALUES (%(id)s, 'default', '{}', jsonb_build_object('__name__', 'SlidingWindowConversationManager',
            'removed_message_count', greatest(%(messages)s - 40, 0), 'model_call_count', 0),
            '{"interrupt_state": {"interrupts": {}, "context": {}, "activated": false}, "model_state": {}}',
            gen_random_uuid(), now(), now())
    )
    INSERT INTO strands_messages (session_id, agent_id, message_id, message, write_id, created_at, updated_at)
    SELECT %(id)s, 'default', n, jsonb_build_object(
            'role', CASE n %% 2 WHEN 0 THEN 'user' ELSE 'assistant' END,
            'content', jsonb_build_array(jsonb_build_object('text', repeat(md5(n::text) || ' ', 12)))
        ), gen_random_uuid(), now(), now()
    FROM generate_series(0, %(messages)s - 1) AS n
"""


def fill(dsn: str, messages: int, use: str) -> str:
    """Store a session with a number of messages for some use, unless it is stored; return its id."""
    session_id = f"{use} of {messages}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        if not connection.execute("SELECT FROM strands_sessions WHERE session_id = %s", [session_id]).fetchall():
            connection.execute(_FILL, {"id": session_id, "messages": messages})
            connection.execute("VACUUM ANALYZE strands_messages")
            connection.execute("CHECKPOINT")
    return session_id
