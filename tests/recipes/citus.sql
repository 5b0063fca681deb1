-- Distributes the tables over the nodes of a Citus cluster. Run it on the coordinator, once, with the role that migrated
-- the tables, in one transaction:
--
--     strands-psycopg migrate
--     psql --single-transaction --set ON_ERROR_STOP=1 --file citus.sql
--
-- Tables to which others refer come first. All rows of a session are on one node then, and so are all values and chunks
-- of a storage's scope.
--
-- Tables that have rows can be distributed too; writers wait meanwhile. The rows are copied, and what they leave on the
-- coordinator is deleted with
--
--     SELECT truncate_local_data_after_distributing_table('strands_sessions');  -- with all that belongs to sessions
--
-- and the same for strands_leases, strands_storage, strands_chunks and strands_memories.

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
SELECT create_distributed_table('strands_memories', 'owner', colocate_with => 'none');
-- The table of vectors, if memory stores have any. If it is created later, run this statement alone then.
SELECT create_distributed_table(vectors, 'owner', colocate_with => 'strands_memories')
FROM to_regclass('strands_memory_vectors') AS vectors WHERE vectors IS NOT NULL;
SELECT create_reference_table('strands_migrations');

-- A purge limits with SET LOCAL for how long it waits for locks. That must reach the nodes.
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET citus.propagate_set_commands = ''local''', current_database());
END
$$;
