-- Each tenant reads and writes its own sessions and values only, whatever SQL its connections run: by PostgreSQL's
-- row-level security, on tables in the schema strands (see roles.sql).
--
-- A tenant is a role that logs in, and a key belongs to the tenant whose name it begins with, before a slash:
--
--     repository = PostgresSessionRepository("postgresql://acme@localhost/agents", schema="strands", min_size=0)
--     agent = Agent(session_manager=PostgresSessionManager("acme/user-42", repository))
--     storage = PostgresStorage(repository, prefix="acme")
--
-- Run this as a superuser or as the tables' owner with CREATEROLE, after the first migration and again after each
-- further one, since a new table has no policy and no grant yet. Then, for each tenant, whose name has no slash:
--
--     CREATE ROLE acme LOGIN IN ROLE strands_tenants;
--
-- The tenant is in every key, so nothing is joined, one tenant cannot take an id that another one wants, and what a
-- tenant has is a range of each index. The library sends no SET, so this works behind a pooler that keeps the logins
-- of its clients apart, as PgBouncer does.
--
-- Limits:
--   * A repository, and so a pool, per tenant: min_size=0, a small max_size, and max_idle for those that come rarely.
--   * The tables' owner, superusers and roles with BYPASSRLS see everything: those migrate, purge, dump, report, and
--     import, since COPY refuses to write where policies are in force.
--   * No view is granted here. On PostgreSQL 14 views show what their owner sees; those that were made on 15 or newer
--     show what the one who asks sees, and may be granted.
--   * Foreign keys and unique indexes are checked past the policies. Keys tell nothing, as they are refused before;
--     but a tenant that writes SQL of its own can find out whether a chunk of data that it has is stored by another.
--   * Error messages of the server name tables, never another tenant's rows.

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'strands_tenants') THEN
        CREATE ROLE strands_tenants NOLOGIN;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO strands_tenants', current_database());
END $$;

-- Where a login for each tenant is too many, all tenants can share one, and this be current_setting('app.tenant'),
-- with PostgresSessionRepository(..., kwargs={"options": "-c app.tenant=acme"}). Poolers do not pass that on, and any
-- SQL on the connection can SET another tenant: it guards against slips of the application, not against its intruders.
CREATE OR REPLACE FUNCTION strands.tenant() RETURNS text STABLE LANGUAGE sql AS $$ SELECT current_user::text $$;

-- As a range, for the index; in the order of bytes 0 is what follows the slash.
CREATE OR REPLACE FUNCTION strands.is_tenants(key text) RETURNS boolean STABLE LANGUAGE sql
AS $$ SELECT key >= strands.tenant() || '/' AND key < strands.tenant() || '0' $$;

-- Chunks of large values are found by hashes, which name no tenant. Those that are there already become their owner's.
ALTER TABLE strands.strands_chunks ADD COLUMN IF NOT EXISTS tenant text NOT NULL DEFAULT strands.tenant();

ALTER TABLE strands.strands_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_agents ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_multi_agents ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_leases ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_storage ENABLE ROW LEVEL SECURITY;
ALTER TABLE strands.strands_chunks ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS of_tenant ON strands.strands_sessions;
DROP POLICY IF EXISTS of_tenant ON strands.strands_agents;
DROP POLICY IF EXISTS of_tenant ON strands.strands_messages;
DROP POLICY IF EXISTS of_tenant ON strands.strands_multi_agents;
DROP POLICY IF EXISTS of_tenant ON strands.strands_leases;
DROP POLICY IF EXISTS of_tenant ON strands.strands_storage;
DROP POLICY IF EXISTS of_tenant ON strands.strands_chunks;

CREATE POLICY of_tenant ON strands.strands_sessions USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_agents USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_messages USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_multi_agents USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_leases USING (strands.is_tenants(session_id));
CREATE POLICY of_tenant ON strands.strands_storage USING (strands.is_tenants(key));
CREATE POLICY of_tenant ON strands.strands_chunks USING (tenant = strands.tenant());

GRANT USAGE ON SCHEMA strands TO strands_tenants;
GRANT SELECT ON strands.strands_migrations TO strands_tenants;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    strands.strands_sessions, strands.strands_agents, strands.strands_messages, strands.strands_multi_agents,
    strands.strands_leases, strands.strands_storage, strands.strands_chunks
TO strands_tenants;
