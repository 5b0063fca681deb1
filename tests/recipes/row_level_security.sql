-- Each tenant reads and writes only its own sessions and values, whatever SQL its connections run. This uses
-- PostgreSQL's row-level security, on tables in the schema strands (see roles.sql).
--
-- A tenant is a role with LOGIN. A session id or key belongs to the tenant whose name and a slash it begins with:
--
--     repository = PostgresSessionRepository("postgresql://acme@localhost/agents", schema="strands", min_size=0)
--     agent = Agent(session_manager=PostgresSessionManager("acme/user-42", repository))
--     storage = PostgresStorage(repository, prefix="acme")
--     memories = PostgresMemoryStore("notes", repository, owner="acme/user-42")
--
-- Run this as a superuser, or as the owner of the tables with CREATEROLE, after each migration: a new table has no
-- policies and no grants yet. Then create a role for each tenant, with a name that contains no slash:
--
--     CREATE ROLE acme LOGIN IN ROLE strands_tenants;
--
-- Since the tenant is in every key, the policies need no joins, one tenant cannot take an id that another one wants,
-- and the rows of a tenant are a range of each index. The library sends no SET, so this works behind a pooler that logs
-- in as the role of each client, as PgBouncer does.
--
-- Limits:
--   * Each tenant needs a repository, and so a pool, of its own: use min_size=0, a small max_size, and max_idle for
--     tenants that are rarely active.
--   * The owner of the tables, superusers and roles with BYPASSRLS see all rows. Use one of them to migrate, purge,
--     dump, report, and import: COPY FROM is not possible where policies apply.
--   * No view is granted here. On PostgreSQL 14, views show the rows that their owner sees. Views created on 15 or
--     newer show the rows that the querying role sees, and may be granted.
--   * Policies do not apply to the checks of foreign keys and unique indexes. Keys reveal nothing, since the policies
--     refuse another tenant's keys before. But a tenant that runs its own SQL can find out whether another tenant
--     stores a chunk of data that it has too.
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
CREATE OR REPLACE FUNCTION strands.tenant() RETURNS text STABLE LANGUAGE sql AS $$ SELECT current_user::text $$;

-- A range, so that indexes can be used: in the order of bytes, 0 follows the slash.
CREATE OR REPLACE FUNCTION strands.is_tenants(key text) RETURNS boolean STABLE LANGUAGE sql
AS $$ SELECT key >= strands.tenant() || '/' AND key < strands.tenant() || '0' $$;

-- Ids of chunks are hashes, which name no tenant. Chunks that exist already become the tables' owner's.
ALTER TABLE strands.strands_chunks ADD COLUMN IF NOT EXISTS tenant text NOT NULL DEFAULT strands.tenant();

ALTER TABLE strands.strands_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_agents ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_message_variants ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_checkpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_multi_agents ENABLE ROW LEVEL SECURITY;
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
DROP POLICY IF EXISTS of_tenant ON strands.strands_leases;
DROP POLICY IF EXISTS of_tenant ON strands.strands_storage;
DROP POLICY IF EXISTS of_tenant ON strands.strands_chunks;
DROP POLICY IF EXISTS of_tenant ON strands.strands_memories;

CREATE POLICY of_tenant ON strands.strands_sessions USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_agents USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_messages USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_message_variants USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_checkpoints USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_multi_agents USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_leases USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_storage USING (strands.is_tenants(key));
CREATE POLICY of_tenant ON strands.strands_chunks USING (tenant = strands.tenant());
CREATE POLICY of_tenant ON strands.strands_memories USING (owner = strands.tenant() OR strands.is_tenants(owner));

-- Only there if a memory store has asked for vectors.
DO $$ BEGIN
    IF to_regclass('strands.strands_memory_vectors') IS NOT NULL THEN
        ALTER TABLE strands.strands_memory_vectors ENABLE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS of_tenant ON strands.strands_memory_vectors;
        CREATE POLICY of_tenant ON strands.strands_memory_vectors
            USING (owner = strands.tenant() OR strands.is_tenants(owner));
        GRANT SELECT, INSERT, UPDATE, DELETE ON strands.strands_memory_vectors TO strands_tenants;
    END IF;
END $$;

GRANT USAGE ON SCHEMA strands TO strands_tenants;
GRANT SELECT ON strands.strands_migrations TO strands_tenants;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    strands.strands_sessions, strands.strands_agents, strands.strands_messages, strands.strands_message_variants,
    strands.strands_checkpoints, strands.strands_multi_agents, strands.strands_leases, strands.strands_storage,
    strands.strands_chunks, strands.strands_memories
TO strands_tenants;
