-- Sessions with their agents, messages and multi-agents (graphs and swarms): one row each.
--
-- Documents are JSONB, so they can be read and queried. Beside each is a column <name>_exact. It is NULL if the JSONB
-- converts back to exactly the same document; otherwise it holds what JSONB cannot: the order of keys, NUL, NaN, ...
--
-- write_id is drawn by the writer for each call. A call that is retried because its acknowledgement was lost finds its
-- own write_id. In agents and multi-agents it is also the version that an update expects.
--
-- Every key starts with session_id, and nothing refers to another session, so that the tables can be distributed by it.
-- Ids are COLLATE "C", so that their order and their indexes do not depend on the locales of the operating system.
--
-- For operators:
-- - If you edit a document with SQL, set its _exact column to NULL; otherwise the old document is restored.
-- - Deleting a row of strands_sessions deletes everything in the session except its lease.
-- - owner is for row-level security too: a policy can compare it with a setting of the application's transaction.
-- - created_at and updated_at are the server's times; imported rows keep those of their source.

CREATE TABLE strands_sessions (
    session_id     text COLLATE "C" PRIMARY KEY,
    session_type   text NOT NULL,                -- Strands' SessionType; so far always AGENT
    owner          text COLLATE "C",             -- whose session it is, as the application names its users
    title          text,
    metadata       jsonb,                        -- what the application looks its sessions up by
    metadata_exact text,
    write_id       uuid NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL          -- last activity of anything in the session, accurate to a minute
);

-- For listing the most recently active sessions and for finding idle ones. Since updated_at changes at most once a
-- minute, the index costs writers next to nothing.
CREATE INDEX strands_sessions_updated_at ON strands_sessions (updated_at, session_id);

-- The same for the sessions of one owner.
CREATE INDEX strands_sessions_owner ON strands_sessions (owner, updated_at, session_id) WHERE owner IS NOT NULL;

CREATE TABLE strands_agents (
    session_id                       text COLLATE "C" NOT NULL REFERENCES strands_sessions ON DELETE CASCADE,
    agent_id                         text COLLATE "C" NOT NULL,
    state                            jsonb NOT NULL,
    state_exact                      text,
    conversation_manager_state       jsonb NOT NULL,
    conversation_manager_state_exact text,
    _internal_state                  jsonb NOT NULL,   -- interrupts, model state
    _internal_state_exact            text,
    memory_window                    jsonb,            -- which messages it holds in memory; NULL: the end of its log
    write_id                         uuid NOT NULL,    -- the version that an update expects
    created_at                       timestamptz NOT NULL,
    updated_at                       timestamptz NOT NULL,
    PRIMARY KEY (session_id, agent_id)
);

CREATE TABLE strands_messages (
    session_id           text COLLATE "C" NOT NULL,
    agent_id             text COLLATE "C" NOT NULL,
    message_id           bigint NOT NULL,        -- the index: from 0 up without gaps
    message              jsonb NOT NULL,
    message_exact        text,
    redact_message       jsonb,                  -- what a guardrail replaced the message with
    redact_message_exact text,
    write_id             uuid NOT NULL,
    created_at           timestamptz NOT NULL,
    updated_at           timestamptz NOT NULL,
    PRIMARY KEY (session_id, agent_id, message_id),
    FOREIGN KEY (session_id, agent_id) REFERENCES strands_agents ON DELETE CASCADE
);

-- Messages in a form that the log does not have: summaries, truncated or offloaded tool results, edited messages. One is
-- stored as long as an agent's window or a checkpoint refers to it.
CREATE TABLE strands_message_variants (
    session_id    text COLLATE "C" NOT NULL,
    agent_id      text COLLATE "C" NOT NULL,
    variant_id    bigint NOT NULL,               -- from 1 up
    message_id    bigint,                        -- the message of the log that it is a form of, if there is one
    message       jsonb NOT NULL,
    message_exact text,
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (session_id, agent_id, variant_id),
    FOREIGN KEY (session_id, agent_id) REFERENCES strands_agents ON DELETE CASCADE
);

-- An agent at an earlier time: what it held in memory, by reference, and its documents as they were.
CREATE TABLE strands_checkpoints (
    session_id    text COLLATE "C" NOT NULL,
    agent_id      text COLLATE "C" NOT NULL,
    snapshot_id   uuid NOT NULL,                 -- of version 7: in the order of time
    message_count bigint NOT NULL,               -- how many messages the log had then
    memory_window jsonb NOT NULL,
    variant_ids   bigint[] NOT NULL,             -- those to which the window refers
    data          jsonb NOT NULL,                -- of Strands' Snapshot, without messages
    data_exact    text,
    write_id      uuid NOT NULL,
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (session_id, agent_id, snapshot_id),
    FOREIGN KEY (session_id, agent_id) REFERENCES strands_agents ON DELETE CASCADE
);

CREATE TABLE strands_multi_agents (
    session_id     text COLLATE "C" NOT NULL REFERENCES strands_sessions ON DELETE CASCADE,
    multi_agent_id text COLLATE "C" NOT NULL,
    state          jsonb NOT NULL,
    state_exact    text,
    write_id       uuid NOT NULL,                -- the version that an update expects
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    PRIMARY KEY (session_id, multi_agent_id)
);
