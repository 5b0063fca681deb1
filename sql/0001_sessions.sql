-- Sessions with their agents, messages and multi-agents (graphs, swarms): one row each.
--
-- Documents are JSONB, readable and queryable. Beside each stands <column>_exact: NULL if JSONB gives the very
-- document back, otherwise what JSONB cannot hold (key order, NUL, NaN, ...). Who changes a document with SQL sets
-- its _exact to NULL, or the old document is restored.
--
-- write_id is drawn by the writer for each call: a call that is repeated because its answer was lost finds its own.
--
-- Every key begins with session_id and nothing spans sessions, so that the tables can be distributed by it. Ids are
-- COLLATE "C": their order, and so their indexes, do not depend on the operating system's locales.

CREATE TABLE strands_sessions (
    session_id   text COLLATE "C" PRIMARY KEY,
    session_type text NOT NULL,                  -- Strands' SessionType, "AGENT" so far
    write_id     uuid NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL            -- last activity of anything in the session, to the minute
);

CREATE TABLE strands_agents (
    session_id                       text COLLATE "C" NOT NULL REFERENCES strands_sessions ON DELETE CASCADE,
    agent_id                         text COLLATE "C" NOT NULL,
    state                            jsonb NOT NULL,
    state_exact                      text,
    conversation_manager_state       jsonb NOT NULL,
    conversation_manager_state_exact text,
    _internal_state                  jsonb NOT NULL,   -- interrupts, model state
    _internal_state_exact            text,
    write_id                         uuid NOT NULL,    -- also: the version that a writer must have seen
    created_at                       timestamptz NOT NULL,
    updated_at                       timestamptz NOT NULL,
    PRIMARY KEY (session_id, agent_id)
);

CREATE TABLE strands_messages (
    session_id           text COLLATE "C" NOT NULL,
    agent_id             text COLLATE "C" NOT NULL,
    message_id           bigint NOT NULL,        -- from 0 up without a gap, so it is the position too
    message              jsonb NOT NULL,
    message_exact        text,
    redact_message       jsonb,                  -- what a guardrail put in the message's place
    redact_message_exact text,
    write_id             uuid NOT NULL,
    created_at           timestamptz NOT NULL,
    updated_at           timestamptz NOT NULL,
    PRIMARY KEY (session_id, agent_id, message_id),
    FOREIGN KEY (session_id, agent_id) REFERENCES strands_agents ON DELETE CASCADE
);

CREATE TABLE strands_multi_agents (
    session_id     text COLLATE "C" NOT NULL REFERENCES strands_sessions ON DELETE CASCADE,
    multi_agent_id text COLLATE "C" NOT NULL,
    state          jsonb NOT NULL,
    state_exact    text,
    write_id       uuid NOT NULL,                -- also: the version that a writer must have seen
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    PRIMARY KEY (session_id, multi_agent_id)
);
