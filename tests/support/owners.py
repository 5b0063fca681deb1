"""Texts of an owner in every place where text can be, and whether any is left."""

import json
from typing import Any

from psycopg import sql

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository
from support import agents
from support.agents import GuardedModel, build
from support.multi_agents import Team
from support.tables import Connection, store_scoped_values, store_values


def leave(repository: PostgresSessionRepository, connection: Connection, owner: str, text: str) -> None:
    """Store a text of an owner in every place where text can be."""
    session_id, agent_id = f"session {text}", f"agent {text}"
    annotations: dict[str, Any] = {"owner": owner, "title": f"title {text}", "metadata": {"note": f"{text}\0"}}
    PostgresSessionManager(session_id, repository, **annotations)
    agent = build(repository, session_id, [[f"reply {text}"]], agent_id=agent_id, state={"note": f"\0{text}"})
    agent(f"prompt {text} \0")
    agent.model = GuardedModel([["no"]], f"redacted {text} \0")
    agent(f"prompt {text}")
    agent.messages[0]["content"] = [{"text": f"edited {text} \0"}]
    agents.save_checkpoint(agent)
    repository.create_multi_agent(session_id, Team(f"team {text}", {"task": f"{text} \0"}))
    repository.lease(session_id, ttl=3600).__enter__()
    store_values(connection, session_id, text)
    store_scoped_values(connection, f"{owner}//{text}", owner, text)
    connection.execute(
        "INSERT INTO strands_memories (owner, store, memory_id, content, content_exact, content_hash, metadata, "
        "metadata_exact, search_vector, write_id, created_at, updated_at) VALUES (%(owner)s, %(text)s, "
        "gen_random_uuid(), %(text)s, %(text)s, gen_random_uuid(), %(metadata)s, %(text)s, to_tsvector('simple', "
        "%(text)s), gen_random_uuid(), now(), now())",
        {"owner": owner, "text": text, "metadata": json.dumps({"text": text})},
    )


def find(connection: Connection, text: str) -> set[str]:
    """Return every column of every table in which a text is, whatever the type."""
    columns = connection.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "JOIN information_schema.tables USING (table_schema, table_name) "
        "WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
    ).fetchall()
    assert len(columns) > 80
    found = set()
    for table, column, kind in columns:
        is_found = "position(%s::bytea IN {}) > 0" if kind == "bytea" else "position(%s IN {}::text) > 0"
        query = sql.SQL("SELECT count(*) FROM {} WHERE " + is_found).format(
            sql.Identifier(table), sql.Identifier(column)
        )
        (number,) = connection.execute(query, [text.encode() if kind == "bytea" else text]).fetchall()[0]
        if number:
            found.add(f"{table.removeprefix('strands_')}.{column}")
    return found
