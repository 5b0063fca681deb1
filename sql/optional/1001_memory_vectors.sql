-- Embeddings of memories, for stores that search by meaning. Applied only if a store asks for it, since it needs the
-- extension pgvector, which not every server has and not every role may create.
--
-- Where the extension exists, it is used from the schema that it is in. The number of dimensions becomes that of the
-- store; all stores of one schema and table prefix share it. To change it, drop this table, delete its row from
-- strands_migrations, and store the embeddings anew.

CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;

CREATE TABLE strands_memory_vectors (
    owner     text COLLATE "C" NOT NULL,
    store     text COLLATE "C" NOT NULL,
    memory_id uuid NOT NULL,
    embedding public.vector(1536) NOT NULL,
    PRIMARY KEY (owner, store, memory_id),
    FOREIGN KEY (owner, store, memory_id) REFERENCES strands_memories ON DELETE CASCADE
);

CREATE INDEX strands_memory_vectors_embedding ON strands_memory_vectors
USING hnsw (embedding public.vector_cosine_ops);
