-- Values stored under keys, for Strands' Storage protocol: snapshots, offloaded tool results, memories.
--
-- A small value is stored in its row. A large one is split into chunks, and its row holds the ids of the chunks in
-- order. Each chunk is stored once for all values of a storage, so that the next version of a long conversation adds
-- only what is new.
--
-- A chunk is inserted before the first value that uses it and deleted after the last one. A transaction that replaces or
-- deletes a value marks the chunks that the value no longer uses as released; a later transaction deletes those that no
-- other value uses either. A process that is killed in between leaves nothing but marks, and the next write or deletion
-- of a large value deletes those chunks.
--
-- write_id is drawn by the writer for each write. A storage that guards against overwriting expects the one that it saw,
-- and a write that is retried because its acknowledgement was lost finds its own.
--
-- Keys are COLLATE "C": compared by bytes, which is the order of Python's strings and makes a prefix a range.

CREATE TABLE strands_storage (
    key           text COLLATE "C" PRIMARY KEY,
    data          bytea,                     -- the value, if it is small
    chunk_ids     uuid[],                    -- its chunks in order, if it is large
    size          bigint NOT NULL,           -- of the value, in bytes
    search_vector tsvector,                  -- NULL, so that a search does not find it, if it is no text or too long
    write_id      uuid NOT NULL,
    updated_at    timestamptz NOT NULL,
    CONSTRAINT strands_storage_data_or_chunk_ids CHECK (pg_catalog.num_nulls(data, chunk_ids) = 1)
);

-- Ids are hashes and cannot be compressed.
ALTER TABLE strands_storage ALTER COLUMN chunk_ids SET STORAGE EXTERNAL;

-- Every search of a GIN index reads its pending list in full, so the list is kept short; without one, each write would
-- cost ten times the WAL.
CREATE INDEX strands_storage_chunk_ids ON strands_storage USING gin (chunk_ids) WITH (gin_pending_list_limit = 512);

CREATE INDEX strands_storage_search_vector ON strands_storage
USING gin (search_vector) WITH (gin_pending_list_limit = 512);

CREATE TABLE strands_chunks (
    chunk_id uuid PRIMARY KEY,               -- 128 bits of BLAKE2b of the data, keyed by the storage's prefix
    data     bytea NOT NULL,
    released boolean NOT NULL DEFAULT false  -- a value no longer uses it; another one may
);

CREATE INDEX strands_chunks_released ON strands_chunks (chunk_id) WHERE released;
