"""What the tables hold, read with plain SQL."""

from typing import Any

import psycopg
from psycopg import sql

Connection = psycopg.Connection[Any]

TABLES = (
    *("strands_sessions", "strands_agents", "strands_messages", "strands_message_variants", "strands_checkpoints"),
    *("strands_multi_agents", "strands_leases", "strands_session_storage", "strands_session_chunks"),
)

_TEXTS = """
    SELECT message_id, coalesce(message['content'][0]->>'text', message['content'][0]::text) FROM strands_messages
    WHERE session_id = %s AND agent_id = %s ORDER BY message_id
"""


_STORE_VALUES = """
    WITH c AS (
        INSERT INTO strands_session_chunks (session_id, chunk_id, data)
        VALUES (%(session_id)s, md5(%(text)s)::uuid, convert_to(%(text)s, 'UTF8'))
    )
    INSERT INTO strands_session_storage (session_id, key, data, chunk_ids, size, search_vector, write_id, updated_at)
    VALUES
        (%(session_id)s, 'small/' || %(text)s, convert_to(%(text)s, 'UTF8'), NULL, 1, to_tsvector('simple', %(text)s),
            gen_random_uuid(), now()),
        (%(session_id)s, 'large/' || %(text)s, NULL, ARRAY[md5(%(text)s)::uuid], 1, NULL, gen_random_uuid(), now())
"""


_STORE_SCOPED_VALUES = """
    WITH c AS (
        INSERT INTO strands_chunks (scope, chunk_id, data)
        VALUES (%(scope)s, md5(%(text)s)::uuid, convert_to(%(text)s, 'UTF8'))
    )
    INSERT INTO strands_storage (scope, key, owner, data, chunk_ids, size, search_vector, write_id, updated_at)
    VALUES
        (%(scope)s, 'small/' || %(text)s, %(owner)s, convert_to(%(text)s, 'UTF8'), NULL, 1,
            to_tsvector('simple', %(text)s), gen_random_uuid(), now()),
        (%(scope)s, 'large/' || %(text)s, %(owner)s, NULL, ARRAY[md5(%(text)s)::uuid], 1, NULL, gen_random_uuid(),
            now())
"""


def store_values(connection: Connection, session_id: str, text: str) -> None:
    """Store a small and a large value of a session."""
    connection.execute(_STORE_VALUES, {"session_id": session_id, "text": text})


def store_scoped_values(connection: Connection, scope: str, owner: str | None, text: str) -> None:
    """Store a small and a large value of a storage that belongs to no session."""
    connection.execute(_STORE_SCOPED_VALUES, {"scope": scope, "owner": owner, "text": text})


def contents(connection: Connection) -> dict[str, list[str]]:
    """Return every row of every table as text."""
    query = sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1")
    return {table: [row[0] for row in connection.execute(query.format(sql.Identifier(table)))] for table in TABLES}


def texts(connection: Connection, session_id: str = "s", agent_id: str = "default") -> list[str]:
    """Return the first text of each message of an agent, in order; their indexes must have no gap."""
    rows = connection.execute(_TEXTS, [session_id, agent_id]).fetchall()
    assert [index for index, _ in rows] == list(range(len(rows)))
    return [text for _, text in rows]


def one(connection: Connection, query: str, *parameters: object) -> Any:
    """Return the value of a query that has one."""
    row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


def blocked(connection: Connection) -> int:
    """Return how many statements in this database wait for a lock."""
    found: int = one(
        connection,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    return found
