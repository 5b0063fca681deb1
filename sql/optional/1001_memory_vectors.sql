-- Embeddings of memories, for stores that search by meaning. Applied only if a store asks for it, since it needs the
-- extension pgvector, which not every server has and not every role may create.
--
-- Where the extension exists, it is used from the schema that it is in. The number of dimensions becomes that of the
-- store; all stores of one schema and table prefix share it. To change it, drop this table, delete its row from
-- strands_migrations, and store the embeddings anew.
--
-- The numbers have half precision, which takes half the memory and changes similarities by less than 0.001. Before
-- pgvector 0.7 there is no such type, and they are vectors in single precision.

CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;

CREATE TABLE strands_memory_vectors (
    owner     text COLLATE "C" NOT NULL,
    store     text COLLATE "C" NOT NULL,
    memory_id uuid NOT NULL,
    embedding public.halfvec(1536) NOT NULL,
    PRIMARY KEY (owner, store, memory_id),
    FOREIGN KEY (owner, store, memory_id) REFERENCES strands_memories ON DELETE CASCADE
);

-- Compared one by one, they need not be fetched from a TOAST table. The longest take half a page.
ALTER TABLE strands_memory_vectors ALTER COLUMN embedding SET STORAGE PLAIN;

-- A better graph than with the default of 64: a search needs fewer candidates for the same recall.
CREATE INDEX strands_memory_vectors_embedding ON strands_memory_vectors
USING hnsw (embedding public.halfvec_cosine_ops) WITH (ef_construction = 100);
