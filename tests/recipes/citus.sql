-- Distributes the tables over the workers of a Citus cluster. Run it on the coordinator, once, in the database and with the
-- role that migrated the tables:
--
--     strands-psycopg migrate && psql --single-transaction --file citus.sql
--
-- Tables that have rows may be distributed, too. Writers wait until it has ended.
--
-- Everything that belongs to a session is in shards of one node, and so is everything that belongs to a storage. Tables
-- to which others refer come first.
SELECT create_distributed_table('strands_sessions', 'session_id', colocate_with => 'none');
SELECT create_distributed_table('strands_agents', 'session_id', colocate_with => 'strands_sessions');
SELECT create_distributed_table('strands_messages', 'session_id', colocate_with => 'strands_sessions');
SELECT create_distributed_table('strands_message_variants', 'session_id', colocate_with => 'strands_sessions');
SELECT create_distributed_table('strands_checkpoints', 'session_id', colocate_with => 'strands_sessions');
SELECT create_distributed_table('strands_multi_agents', 'session_id', colocate_with => 'strands_sessions');
SELECT create_distributed_table('strands_leases', 'session_id', colocate_with => 'strands_sessions');
SELECT create_distributed_table('strands_session_storage', 'session_id', colocate_with => 'strands_sessions');
SELECT create_distributed_table('strands_session_chunks', 'session_id', colocate_with => 'strands_sessions');
SELECT create_distributed_table('strands_storage', 'scope', colocate_with => 'none');
SELECT create_distributed_table('strands_chunks', 'scope', colocate_with => 'strands_storage');
SELECT create_reference_table('strands_migrations');

-- A purge limits how long it waits for a row's lock, with SET LOCAL, which must reach the workers.
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET citus.propagate_set_commands = ''local''', current_database());
END
$$;
