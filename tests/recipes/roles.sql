-- A role that migrates and a role that runs agents. The second reads and writes rows of the tables and can do nothing
-- else in the database: no DDL, no TRUNCATE, no temporary tables, nothing outside the schema.
--
-- Once, in the agents' own database, as a superuser or as its owner with CREATEROLE:
--
--     psql -d agents -f roles.sql
--
-- Give both a password with psql's \password. At each deploy, first as strands_migrator:
--
--     strands-psycopg migrate --dsn postgresql://strands_migrator@localhost/agents --schema strands
--     psql -d agents -U strands_migrator -f grants.sql
--
-- then start what runs as strands_runtime:
--
--     PostgresSessionRepository("postgresql://strands_runtime@localhost/agents", schema="strands")

CREATE ROLE strands_migrator LOGIN;
CREATE ROLE strands_runtime LOGIN;

-- Whatever PUBLIC may do, each of them may. This takes from every other role the right to connect, too, unless it is
-- granted to it.
DO $$ BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO strands_migrator, strands_runtime', current_database());
END $$;
REVOKE ALL ON SCHEMA public FROM PUBLIC;

-- Where the schema is there already, migrating needs no right on the database.
CREATE SCHEMA strands;
GRANT USAGE, CREATE ON SCHEMA strands TO strands_migrator;
GRANT USAGE ON SCHEMA strands TO strands_runtime;
