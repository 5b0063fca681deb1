-- Each tenant reads and writes only its own sessions and values, whatever SQL its connections run. This uses
-- PostgreSQL's row-level security, on tables in the schema strands (see roles.sql).
--
-- A tenant is a role with LOGIN, whose name contains no slash. What belongs to it has its name as owner, so it must be
-- passed to managers and storages:
--
--     repository = PostgresSessionRepository("postgresql://acme@localhost/agents", schema="strands", min_size=0)
--     agent = Agent(session_manager=PostgresSessionManager("user-42", repository, owner="acme"))
--     storage = PostgresStorage(repository, owner="acme")
--     memories = PostgresMemoryStore("notes", repository, owner="acme")
--
-- Run this as a superuser, or as the owner of the tables with CREATEROLE, after each migration: a new table has no
-- policies and no grants yet. Then create a role for each tenant:
--
--     CREATE ROLE acme LOGIN IN ROLE strands_tenants;
--
-- What is in a session is open to whoever may read the session itself. The library sends no SET, so this works behind a
-- pooler that logs in as the role of each client, as PgBouncer does.
--
-- Limits:
--   * Each tenant needs a repository, and so a pool, of its own: use min_size=0, a small max_size, and max_idle for
--     tenants that are rarely active.
--   * The owner of the tables, superusers and roles with BYPASSRLS see all rows. Use one of them to migrate, purge,
--     dump, report, and import: COPY FROM is not possible where policies apply.
--   * No view is granted here. On PostgreSQL 14, views show the rows that their owner sees. Views created on 15 or
--     newer show the rows that the querying role sees, and may be granted.
--   * All tenants share the ids of sessions, since policies do not apply to the checks of unique indexes. A tenant that
--     tries an id is refused if it is another's, and so finds out that the session exists. Use ids that cannot be
--     guessed. Storages reveal nothing: their keys begin with the owner, and policies refuse another's before.
--   * Error messages of the server name tables, never another tenant's rows.

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'strands_tenants') THEN
        CREATE ROLE strands_tenants NOLOGIN;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO strands_tenants', current_database());
END $$;

-- If a role for each tenant is too many, all tenants can share one. Then return current_setting('app.tenant') here and
-- connect with PostgresSessionRepository(..., kwargs={"options": "-c app.tenant=acme"}). Poolers do not pass that on,
-- and any SQL on the connection can SET another tenant: this protects against mistakes of the application, not against
-- attackers.
CREATE OR REPLACE FUNCTION strands.tenant() RETURNS text STABLE LANGUAGE sql AS $$ SELECT session_user::text $$;

-- A session may be leased before it exists, so a lease has no owner. This looks at the sessions of all tenants.
CREATE OR REPLACE FUNCTION strands.is_leasable(id text) RETURNS boolean STABLE SECURITY DEFINER
SET search_path = pg_catalog LANGUAGE sql AS $$
    SELECT NOT EXISTS (
        SELECT FROM strands.strands_sessions WHERE session_id = id AND owner IS DISTINCT FROM strands.tenant()
    )
$$;

-- A range, so that indexes can be used: in the order of bytes, 0 follows the slash.
CREATE OR REPLACE FUNCTION strands.is_scope_of_tenant(scope text) RETURNS boolean STABLE LANGUAGE sql
AS $$ SELECT scope >= strands.tenant() || '//' AND scope < strands.tenant() || '/0' $$;

ALTER TABLE strands.strands_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_agents ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_message_variants ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_checkpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_multi_agents ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_session_storage ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_session_chunks ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_leases ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_storage ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_chunks ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_memories ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS of_tenant ON strands.strands_sessions;
DROP POLICY IF EXISTS of_tenant ON strands.strands_agents;
DROP POLICY IF EXISTS of_tenant ON strands.strands_messages;
DROP POLICY IF EXISTS of_tenant ON strands.strands_message_variants;
DROP POLICY IF EXISTS of_tenant ON strands.strands_checkpoints;
DROP POLICY IF EXISTS of_tenant ON strands.strands_multi_agents;
DROP POLICY IF EXISTS of_tenant ON strands.strands_session_storage;
DROP POLICY IF EXISTS of_tenant ON strands.strands_session_chunks;
DROP POLICY IF EXISTS of_tenant ON strands.strands_leases;
DROP POLICY IF EXISTS of_tenant ON strands.strands_storage;
DROP POLICY IF EXISTS of_tenant ON strands.strands_chunks;
DROP POLICY IF EXISTS of_tenant ON strands.strands_memories;

CREATE POLICY of_tenant ON strands.strands_sessions USING (owner = strands.tenant());
CREATE POLICY of_tenant ON strands.strands_agents
USING (EXISTS (SELECT FROM strands.strands_sessions AS s WHERE s.session_id = strands_agents.session_id));
CREATE POLICY of_tenant ON strands.strands_messages
USING (EXISTS (SELECT FROM strands.strands_sessions AS s WHERE s.session_id = strands_messages.session_id));
CREATE POLICY of_tenant ON strands.strands_message_variants
USING (EXISTS (SELECT FROM strands.strands_sessions AS s WHERE s.session_id = strands_message_variants.session_id));
CREATE POLICY of_tenant ON strands.strands_checkpoints
USING (EXISTS (SELECT FROM strands.strands_sessions AS s WHERE s.session_id = strands_checkpoints.session_id));
CREATE POLICY of_tenant ON strands.strands_multi_agents
USING (EXISTS (SELECT FROM strands.strands_sessions AS s WHERE s.session_id = strands_multi_agents.session_id));
CREATE POLICY of_tenant ON strands.strands_session_storage
USING (EXISTS (SELECT FROM strands.strands_sessions AS s WHERE s.session_id = strands_session_storage.session_id));
CREATE POLICY of_tenant ON strands.strands_session_chunks
USING (EXISTS (SELECT FROM strands.strands_sessions AS s WHERE s.session_id = strands_session_chunks.session_id));
CREATE POLICY of_tenant ON strands.strands_leases USING (strands.is_leasable(session_id));
CREATE POLICY of_tenant ON strands.strands_storage
USING (owner = strands.tenant() AND strands.is_scope_of_tenant(scope));
CREATE POLICY of_tenant ON strands.strands_chunks USING (strands.is_scope_of_tenant(scope));
CREATE POLICY of_tenant ON strands.strands_memories USING (owner = strands.tenant());

-- Only there if a memory store has asked for vectors.
DO $$ BEGIN
    IF to_regclass('strands.strands_memory_vectors') IS NOT NULL THEN
        ALTER TABLE strands.strands_memory_vectors ENABLE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS of_tenant ON strands.strands_memory_vectors;
        CREATE POLICY of_tenant ON strands.strands_memory_vectors USING (owner = strands.tenant());
        GRANT SELECT, INSERT, UPDATE, DELETE ON strands.strands_memory_vectors TO strands_tenants;
    END IF;
END $$;

GRANT USAGE ON SCHEMA strands TO strands_tenants;
GRANT SELECT ON strands.strands_migrations TO strands_tenants;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    strands.strands_sessions, strands.strands_agents, strands.strands_messages, strands.strands_message_variants,
    strands.strands_checkpoints, strands.strands_multi_agents, strands.strands_session_storage,
    strands.strands_session_chunks, strands.strands_leases, strands.strands_storage, strands.strands_chunks,
    strands.strands_memories
TO strands_tenants;
