-- What the role that runs agents may do with the tables; after each migration, as strands_migrator, who owns them.
-- Repeating it does no harm.

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA strands TO strands_runtime;

-- The ledger of migrations is read at start-up, and written by the one that migrates.
REVOKE INSERT, UPDATE, DELETE ON strands.strands_migrations FROM strands_runtime;
