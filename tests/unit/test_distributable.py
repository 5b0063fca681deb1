"""The rules by which statements are distributable (see ``support.distributable``): each is broken once here."""

import pytest

pytest.importorskip("pglast", reason="PostgreSQL's parser has no wheel here")

from support.distributable import distribution_columns, violations

# Statements that broke on Citus or did something else there, some of them once the package's own.
BROKEN = {
    "an empty select list": (
        "SELECT FROM public.strands_leases WHERE session_id = %(session_id)s AND term = %(term)s FOR SHARE"
    ),
    "lease selects in a CTE beside INSERT ... SELECT": """
        WITH lease AS (
            SELECT true FROM public.strands_leases WHERE session_id = %(session_id)s AND term = %(term)s FOR SHARE
        ), t AS (
            INSERT INTO public.strands_sessions (session_id, session_type)
            SELECT %(session_id)s::text, %(session_type)s::text WHERE EXISTS (SELECT true FROM lease)
        )
        SELECT true
    """,
    "memory_vectors by INSERT ... SELECT of what a CTE has written": """
        WITH added AS (
            INSERT INTO public.strands_memories (owner, memory_id) VALUES (%(owner)s, %(memory_id)s)
            RETURNING memory_id
        ), vector AS (
            INSERT INTO public.strands_memory_vectors (owner, memory_id) SELECT %(owner)s, added.memory_id FROM added
        )
        SELECT memory_id FROM added
    """,
    "message_variants by INSERT ... SELECT of what a CTE has written": """
        WITH u AS (
            UPDATE public.strands_agents SET state = %(state)s WHERE session_id = %(session_id)s RETURNING agent_id
        ), added AS (
            INSERT INTO public.strands_message_variants (session_id, variant_id)
            SELECT %(session_id)s::text, r.variant_id FROM unnest(%(variant_ids)s::bigint[]) AS r (variant_id)
            WHERE EXISTS (SELECT true FROM u)
        )
        SELECT agent_id FROM u
    """,
    "the row count of INSERT ... SELECT ... ON CONFLICT is that of selected rows": """
        INSERT INTO public.strands_leases AS l (session_id, term) SELECT %(session_id)s, %(term)s
        ON CONFLICT (session_id) DO UPDATE SET term = EXCLUDED.term WHERE EXCLUDED.acquired_at > l.expires_at
    """,
    "UPDATE or DELETE compares the deadline with the coordinator's time": """
        UPDATE public.strands_agents SET state = %(state)s
        WHERE session_id = %(session_id)s AND (now() <= to_timestamp(%(deadline)s))
    """,
    "messages by no parameter for session_id": """
        SELECT a.agent_id, (
            SELECT max(m.message_id) FROM public.strands_messages AS m
            WHERE m.session_id = a.session_id AND m.agent_id = a.agent_id
        )
        FROM public.strands_agents AS a WHERE a.session_id = %(session_id)s
    """,
    "agents by no parameter for session_id": (
        "UPDATE public.strands_agents SET updated_at = now() WHERE session_id = ANY(%(session_ids)s)"
    ),
    "sessions by no parameter for session_id": (
        "DELETE FROM public.strands_sessions WHERE session_id = %(session_id)s OR updated_at < %(time)s"
    ),
    "storage by no parameter for scope": "SELECT data FROM public.strands_storage WHERE key = %(key)s",
    "multi_agents by no parameter for session_id": """
        INSERT INTO public.strands_multi_agents (session_id, multi_agent_id)
        SELECT a.agent_id, %(multi_agent_id)s FROM public.strands_agents AS a WHERE a.session_id = %(session_id)s
    """,
    "scope of chunks is not inserted": "INSERT INTO public.strands_chunks (chunk_id) VALUES (%(chunk_id)s)",
    "now() in ON CONFLICT": """
        INSERT INTO public.strands_leases (session_id, term) VALUES (%(session_id)s, %(term)s)
        ON CONFLICT (session_id) DO UPDATE SET acquired_at = now()
    """,
    "clock_timestamp() in ON CONFLICT": """
        INSERT INTO public.strands_storage AS s (scope, key) VALUES (%(scope)s, %(key)s)
        ON CONFLICT (scope, key) DO UPDATE SET key = EXCLUDED.key WHERE clock_timestamp() <= to_timestamp(%(time)s)
    """,
    "a time and an interval in ON CONFLICT": """
        INSERT INTO public.strands_leases AS l (session_id, term) VALUES (%(session_id)s, %(term)s)
        ON CONFLICT (session_id) DO UPDATE SET term = EXCLUDED.term
        WHERE l.expires_at < EXCLUDED.expires_at - make_interval(secs => %(ttl)s)
    """,
    "to_jsonb() in RETURNING": """
        UPDATE public.strands_agents SET state = %(state)s WHERE session_id = %(session_id)s RETURNING to_jsonb(state)
    """,
    "a cast of a time in RETURNING": (
        "DELETE FROM public.strands_agents WHERE session_id = %(session_id)s RETURNING created_at::text"
    ),
    "a subquery in VALUES": (
        "INSERT INTO public.strands_leases (session_id, term) VALUES (%(session_id)s, (SELECT %(term)s::uuid))"
    ),
    "UPDATE or DELETE computes with times of a column": """
        UPDATE public.strands_leases SET expires_at = expires_at + interval '1 minute'
        WHERE session_id = %(session_id)s
    """,
    "UPDATE or DELETE calls a stable function of a column": """
        DELETE FROM public.strands_messages WHERE session_id = %(session_id)s AND to_char(created_at, 'YYYY') = '2020'
    """,
    "ctid": """
        DELETE FROM public.strands_chunks WHERE scope = %(scope)s AND ctid = ANY(%(rows)s)
    """,
    "DELETE of rows that a subquery finds with SKIP LOCKED": """
        DELETE FROM public.strands_chunks WHERE scope = %(scope)s AND chunk_id IN (
            SELECT chunk_id FROM public.strands_chunks
            WHERE scope = %(scope)s AND reference_count = 0 FOR UPDATE SKIP LOCKED
        )
    """,
    "a SELECT locks rows by a time that may be another node's": """
        SELECT true FROM public.strands_leases WHERE session_id = %(session_id)s AND expires_at > now() FOR SHARE
    """,
}

# The same as they should be.
KEPT_BY_INSERT = """
    WITH t AS (
        INSERT INTO public.strands_messages AS m (session_id, agent_id, message_id, created_at)
        SELECT seen.session_id, seen.agent_id, %(message_id)s::bigint, now()
        FROM public.strands_agents AS seen
        WHERE seen.session_id = %(session_id)s AND seen.agent_id = %(agent_id)s
            AND now() <= to_timestamp(%(deadline)s) AND EXISTS (
                SELECT true FROM public.strands_leases
                WHERE session_id = %(session_id)s AND term = %(term)s::uuid FOR SHARE
            )
        FOR NO KEY UPDATE OF seen
        ON CONFLICT (session_id, agent_id, message_id) DO UPDATE SET write_id = EXCLUDED.write_id
        WHERE m.write_id = EXCLUDED.write_id AND EXCLUDED.created_at - m.created_at > make_interval(secs => %(ttl)s)
        RETURNING m.created_at, m.updated_at AT TIME ZONE 'UTC'
    ), u AS (
        UPDATE public.strands_agents SET updated_at = now()
        WHERE session_id = %(session_id)s AND updated_at < now() - interval '1 minute' AND EXISTS (SELECT true FROM t)
        RETURNING agent_id
    ), added AS (
        INSERT INTO public.strands_message_variants (session_id, agent_id, variant_id)
        SELECT seen.session_id, seen.agent_id, r.variant_id
        FROM unnest(%(variant_ids)s::bigint[]) AS r (variant_id), public.strands_agents AS seen
        WHERE seen.session_id = %(session_id)s AND seen.agent_id = %(agent_id)s AND EXISTS (SELECT true FROM u)
    )
    SELECT to_char(a.created_at, 'YYYY'), t.created_at
    FROM (SELECT 1) AS one LEFT JOIN t ON true
    LEFT JOIN public.strands_agents AS a ON a.session_id = %(session_id)s AND a.agent_id = %(agent_id)s
"""

KEPT_BY_UPDATE = """
    WITH clock AS (SELECT now() <= to_timestamp(%(deadline)s) AS in_time), t AS (
        UPDATE public.strands_agents SET state = %(state)s
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND (SELECT in_time FROM clock)
        RETURNING created_at
    )
    SELECT t.created_at FROM clock LEFT JOIN t ON true
"""


@pytest.mark.parametrize("rule", BROKEN)
def test_statement_that_breaks_a_rule_is_found(rule: str) -> None:
    assert set(violations(BROKEN[rule])) == {rule}


@pytest.mark.parametrize("statement", [KEPT_BY_INSERT, KEPT_BY_UPDATE], ids=["INSERT", "UPDATE"])
def test_statement_that_keeps_the_rules_is_not(statement: str) -> None:
    assert violations(statement) == []


def test_tables_are_distributed_by_their_first_column() -> None:
    columns = distribution_columns()
    assert columns["sessions"] == columns["session_chunks"] == "session_id"
    assert columns["storage"] == columns["chunks"] == "scope"
    assert set(columns.values()) <= {"session_id", "scope", "owner"}
    assert "migrations" not in columns
