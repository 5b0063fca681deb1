-- Values under keys, for Strands' Storage protocol: snapshots, offloaded tool results, memories.
--
-- A small value is a row with data. A large one is a row with the ids of its chunks, in order; each chunk is stored once
-- for all values of a storage, so that the next version of a long conversation adds only what is new.
--
-- A chunk is written before a value that uses it and removed after the last one. Who saves or deletes a value marks the
-- chunks that it no longer uses as released; a later transaction removes those that no other value uses either. So a
-- process that is killed in between leaves only marks, which the next one to change a large value works off.
--
-- Keys are COLLATE "C": bytewise, which is the order of Python's strings, and makes a prefix a range.

CREATE TABLE strands_storage (
    key        text COLLATE "C" PRIMARY KEY,
    data       bytea,                        -- the value, or
    chunks     uuid[],                       -- what it is made of
    size       bigint NOT NULL,              -- in bytes
    words      tsvector,                     -- for the search; NULL if the value is no text, or a long one
    updated_at timestamptz NOT NULL,
    CONSTRAINT strands_storage_data_or_chunks CHECK (num_nulls(data, chunks) = 1)
);

-- Ids are hashes: there is nothing to compress.
ALTER TABLE strands_storage ALTER COLUMN chunks SET STORAGE EXTERNAL;

-- What is not yet sorted into an index is read whole by each look into it, so it is kept short; without it each write
-- would cost ten times the WAL.
CREATE INDEX strands_storage_chunks_used ON strands_storage USING gin (chunks) WITH (gin_pending_list_limit = 512);

CREATE INDEX strands_storage_words ON strands_storage USING gin (words) WITH (gin_pending_list_limit = 512);

CREATE TABLE strands_chunks (
    chunk_id uuid PRIMARY KEY,               -- 128 bits of BLAKE2b of the data, keyed by the storage's prefix
    data     bytea NOT NULL,
    released boolean NOT NULL DEFAULT false  -- a value has ceased to use it; perhaps no other does
);

CREATE INDEX strands_chunks_released ON strands_chunks (chunk_id) WHERE released;
