-- Values stored under keys, for Strands' Storage protocol: snapshots, offloaded tool results, memories. Those of a session
-- are in strands_session_storage and are deleted with the session; all others are in strands_storage.
--
-- A small value is stored in its row. A large one is split into chunks, and its row holds the ids of the chunks in
-- order. Each chunk is stored once for all values of a scope, or of a session, so that the next version of a long
-- conversation adds only what is new.
--
-- A chunk counts the values that use it. The transaction that stores, replaces or deletes a value also changes the counts
-- of its chunks, and deletes those that no value uses any longer.
--
-- A scope is the prefix of a storage; if the storage has an owner, it is the owner, // and the prefix. A prefix contains
-- no //, so every scope belongs to one owner or to none. Every key starts with the scope or the session, so that the
-- tables can be distributed by it.
--
-- write_id is drawn by the writer for each write. A storage that guards against overwriting expects the one that it saw,
-- and a write that is retried because its acknowledgement was lost finds its own.
--
-- Keys are COLLATE "C": compared by bytes, which is the order of Python's strings and makes a prefix a range.

CREATE TABLE strands_storage (
    scope         text COLLATE "C" NOT NULL,
    key           text COLLATE "C" NOT NULL,
    owner         text COLLATE "C",          -- whose value it is
    data          bytea,                     -- the value, if it is small
    chunk_ids     uuid[],                    -- its chunks in order, if it is large
    size          bigint NOT NULL,           -- of the value, in bytes
    search_vector tsvector,                  -- NULL, so that a search does not find it, if it is not text or too long
    write_id      uuid NOT NULL,
    updated_at    timestamptz NOT NULL,
    expires_at    timestamptz,               -- from then on the value is not found; NULL: never
    PRIMARY KEY (scope, key),
    CONSTRAINT strands_storage_value CHECK (pg_catalog.num_nulls(data, chunk_ids) = 1)
);

-- Ids are hashes and cannot be compressed.
ALTER TABLE strands_storage ALTER COLUMN chunk_ids SET STORAGE EXTERNAL;

-- Every search of a GIN index reads its pending list in full, so the list is kept short; without one, each write would
-- cost ten times the WAL.
CREATE INDEX strands_storage_search_vector ON strands_storage
USING gin (search_vector) WITH (gin_pending_list_limit = 512);

-- Counting must not copy the data, so it is stored out of line, and there is room for the new version of a row.
CREATE TABLE strands_chunks (
    scope           text COLLATE "C" NOT NULL,
    chunk_id        uuid NOT NULL,               -- 128 bits of BLAKE2b of the data, keyed by the scope
    data            bytea NOT NULL,
    reference_count integer NOT NULL DEFAULT 1,  -- how many values use it
    PRIMARY KEY (scope, chunk_id)
) WITH (toast_tuple_target = 512, fillfactor = 70);

CREATE TABLE strands_session_storage (
    session_id    text COLLATE "C" NOT NULL REFERENCES strands_sessions ON DELETE CASCADE,
    key           text COLLATE "C" NOT NULL,
    data          bytea,
    chunk_ids     uuid[],
    size          bigint NOT NULL,
    search_vector tsvector,
    write_id      uuid NOT NULL,
    updated_at    timestamptz NOT NULL,
    expires_at    timestamptz,
    PRIMARY KEY (session_id, key),
    CONSTRAINT strands_session_storage_value CHECK (pg_catalog.num_nulls(data, chunk_ids) = 1)
);

ALTER TABLE strands_session_storage ALTER COLUMN chunk_ids SET STORAGE EXTERNAL;

CREATE TABLE strands_session_chunks (
    session_id      text COLLATE "C" NOT NULL REFERENCES strands_sessions ON DELETE CASCADE,
    chunk_id        uuid NOT NULL,
    data            bytea NOT NULL,
    reference_count integer NOT NULL DEFAULT 1,
    PRIMARY KEY (session_id, chunk_id)
) WITH (toast_tuple_target = 512, fillfactor = 70);
