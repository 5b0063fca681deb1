-- Memories: short texts that agents remember across sessions, for Strands' MemoryStore protocol.
--
-- Each belongs to an owner and to one of the owner's stores. Every key starts with the owner, so that the table can be
-- distributed by it. The embeddings are in strands_memory_vectors, which exists only if a store has asked for it (see
-- optional/1001_memory_vectors.sql).
--
-- If you edit content or metadata with SQL, set its _exact column to NULL.

CREATE TABLE strands_memories (
    owner          text COLLATE "C" NOT NULL,  -- '' if the store has no owner
    store          text COLLATE "C" NOT NULL,
    memory_id      uuid NOT NULL,              -- of version 7, so that newer memories have larger ids
    content        text NOT NULL,
    content_exact  text,                       -- the content as JSON, if it has a NUL or lone surrogate
    content_hash   uuid NOT NULL,              -- 128 bits of BLAKE2b; for an intended duplicate, its memory_id
    metadata       jsonb,
    metadata_exact text,
    search_vector  tsvector NOT NULL,
    write_id       uuid NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,       -- when its text was last stored or edited
    PRIMARY KEY (owner, store, memory_id),
    CONSTRAINT strands_memories_content UNIQUE (owner, store, content_hash)
);

-- Every search of a GIN index reads its pending list in full, so the list is kept short. With owner and store in the
-- index, a search for a word that the memories of many owners have reads only its own.
CREATE INDEX strands_memories_search_vector ON strands_memories
USING gin ((ARRAY[owner || '//' || store]), search_vector) WITH (gin_pending_list_limit = 512);
