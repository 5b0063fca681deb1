-- Views with figures about sessions, for your own queries and for the commands stats and report. They store nothing and
-- cost nothing until they are queried.
--
-- A redacted message appears with its redaction; only the token counts and durations remain those of the model's call.
-- Messages may have any shape: values that are missing or malformed are NULL or not counted. Times are those at which
-- the server stored a message; days are in UTC.
--
-- Functions are qualified and literals cast, so that no function or operator of another schema matches better.
--
-- For operators:
-- - The views have security_invoker: they read with the privileges of the role that queries them, so row-level security
--   applies. PostgreSQL 14 does not have this option; there a view reads with its owner's privileges, so grant the
--   views only to roles that may read every session.
-- - A query with WHERE session_id = ... finds the messages by their primary key. Any other query reads all messages.
-- - A column that a view reads cannot be dropped, nor can its type be changed. A migration that needs to do so drops
--   the views first and creates them again.

CREATE VIEW strands_message_figures AS
SELECT
    session_id,
    agent_id,
    message_id,
    coalesce(redact_message, message) ->> 'role'::text AS role,
    redact_message IS NOT NULL AS redacted,
    -- A turn begins with a user message without a tool result.
    coalesce(
        coalesce(redact_message, message) ->> 'role'::text = 'user'
        AND pg_catalog.jsonb_path_exists(
            coalesce(redact_message, message), 'strict $.content[*] ? (exists (@.toolResult))', '{}', true
        ) IS NOT TRUE,
        false
    ) AS begins_turn,
    pg_catalog.jsonb_array_length(
        pg_catalog.jsonb_path_query_array(
            coalesce(redact_message, message), 'strict $.content[*] ? (exists (@.toolUse)).type()', '{}', true
        )
    ) AS tool_calls,                             -- calls that the model requests in this message
    pg_catalog.jsonb_array_length(
        pg_catalog.jsonb_path_query_array(
            coalesce(redact_message, message), 'strict $.content[*] ? (@.toolResult.status == "error").type()', '{}', true
        )
    ) AS tool_failures,                          -- failed calls whose results are in this message
    -- As the provider counts them; whether input_tokens includes cached tokens depends on the provider. A value that is
    -- not a number from 0 to 10^12 is NULL.
    pg_catalog.jsonb_path_query_first(
        message, 'strict $.metadata.usage.inputTokens ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS input_tokens,
    pg_catalog.jsonb_path_query_first(
        message, 'strict $.metadata.usage.outputTokens ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS output_tokens,
    pg_catalog.jsonb_path_query_first(
        message, 'strict $.metadata.usage.cacheReadInputTokens ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS cache_read_tokens,
    pg_catalog.jsonb_path_query_first(
        message, 'strict $.metadata.usage.cacheWriteInputTokens ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS cache_write_tokens,
    pg_catalog.jsonb_path_query_first(
        message, 'strict $.metadata.metrics.latencyMs ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS latency_ms,                     -- duration of the model's call
    pg_catalog.jsonb_path_query_first(
        message, 'strict $.metadata.metrics.timeToFirstByteMs ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS first_byte_ms,
    created_at
FROM strands_messages;

COMMENT ON VIEW strands_message_figures IS 'one row per message: role, tokens, latency, numbers of tool calls';

CREATE VIEW strands_content_blocks AS
SELECT
    m.session_id,
    m.agent_id,
    m.message_id,
    (b.number - 1)::integer AS block_index,      -- from 0 up
    coalesce(m.redact_message, m.message) ->> 'role'::text AS role,
    -- The block's key in Strands' format: text, toolUse, toolResult, reasoningContent, image, document, ... A plain
    -- string counts as text.
    CASE pg_catalog.jsonb_typeof(b.block)
        WHEN 'string' THEN 'text'
        WHEN 'object' THEN
            CASE
                WHEN b.block ? 'toolUse'::text THEN 'toolUse'
                WHEN b.block ? 'toolResult'::text THEN 'toolResult'
                WHEN b.block ? 'text'::text THEN 'text'
                ELSE coalesce(pg_catalog.jsonb_path_query_first(b.block, '$.keyvalue().key') #>> '{}'::text[], 'other')
            END
        ELSE 'other'
    END AS kind,
    CASE pg_catalog.jsonb_typeof(b.block)
        WHEN 'string' THEN b.block #>> '{}'::text[]
        ELSE
            coalesce(
                b.block ->> 'text'::text,
                b.block #>> '{reasoningContent,reasoningText,text}'::text[],
                b.block #>> '{guardContent,text,text}'::text[],
                pg_catalog.jsonb_path_query_first(b.block, 'lax $.citationsContent.content[*].text', '{}', true)
                #>> '{}'::text[],
                pg_catalog.jsonb_path_query_first(b.block, 'lax $.toolResult.content[*].text', '{}', true)
                #>> '{}'::text[]
            )
    END AS text,                                 -- of several citations or results, the first one
    b.block #>> '{toolUse,name}'::text[] AS tool_name,
    coalesce(
        b.block #>> '{toolUse,toolUseId}'::text[], b.block #>> '{toolResult,toolUseId}'::text[]
    ) COLLATE "C" AS tool_use_id,
    b.block #>> '{toolResult,status}'::text[] AS tool_status,
    b.block,
    m.redact_message IS NOT NULL AS redacted,
    m.created_at
FROM strands_messages AS m
CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(
    CASE pg_catalog.jsonb_typeof(coalesce(m.redact_message, m.message) -> 'content'::text)
        WHEN 'array' THEN coalesce(m.redact_message, m.message) -> 'content'::text
        WHEN 'string' THEN pg_catalog.jsonb_build_array(coalesce(m.redact_message, m.message) -> 'content'::text)
        ELSE '[]'
    END
) WITH ORDINALITY AS b (block, number);

COMMENT ON VIEW strands_content_blocks IS 'one row per content block: kind, text, tool';

-- The ids of tool calls come from models, and some models reuse an id in a later turn. So the result of a call is the
-- next block with its id in the agent's conversation, unless that block is another call.
CREATE VIEW strands_tool_calls AS
SELECT
    session_id,
    agent_id,
    message_id,
    block_index,
    tool_use_id,
    tool_name,
    block #> '{toolUse,input}'::text[] AS input,
    CASE WHEN has_result THEN next_block #>> '{toolResult,status}'::text[] END AS status,  -- success or error
    CASE WHEN has_result THEN next_block #> '{toolResult,content}'::text[] END AS result,
    CASE WHEN has_result THEN next_message_id END AS result_message_id,  -- NULL if there is no result
    created_at AS called_at,
    CASE WHEN has_result THEN next_created_at END AS result_at,
    -- The time until the result was stored. The results of all calls in a message are stored together, so it is that of
    -- the slowest call. It includes the time of an interrupt that waits for a human.
    CASE WHEN has_result THEN extract(epoch FROM next_created_at - created_at)::double precision END AS seconds
FROM (
    SELECT
        session_id,
        agent_id,
        message_id,
        block_index,
        kind,
        tool_use_id,
        tool_name,
        block,
        created_at,
        tool_use_id IS NOT NULL AND pg_catalog.lead(kind) OVER by_id = 'toolResult' AS has_result,
        pg_catalog.lead(message_id) OVER by_id AS next_message_id,
        pg_catalog.lead(block) OVER by_id AS next_block,
        pg_catalog.lead(created_at) OVER by_id AS next_created_at
    FROM strands_content_blocks
    WHERE kind IN ('toolUse', 'toolResult')
    WINDOW by_id AS (PARTITION BY session_id, agent_id, tool_use_id ORDER BY message_id, block_index)
) AS b
WHERE kind = 'toolUse';

COMMENT ON VIEW strands_tool_calls IS 'one row per tool call: input, status, result, seconds until the result';

CREATE VIEW strands_session_figures AS
SELECT
    s.session_id,
    s.owner,
    s.title,                                     -- as it is stored
    coalesce(f.messages, 0) AS messages,
    coalesce(f.turns, 0) AS turns,
    coalesce(f.tool_calls, 0) AS tool_calls,
    coalesce(f.tool_failures, 0) AS tool_failures,
    coalesce(f.input_tokens, 0) AS input_tokens,
    coalesce(f.output_tokens, 0) AS output_tokens,
    coalesce(f.cache_read_tokens, 0) AS cache_read_tokens,
    coalesce(f.cache_write_tokens, 0) AS cache_write_tokens,
    least(s.created_at, f.first_at) AS first_active_at,
    greatest(s.updated_at, f.last_at) AS last_active_at
FROM strands_sessions AS s
LEFT JOIN (
    SELECT
        session_id,
        pg_catalog.count(*) AS messages,
        pg_catalog.count(*) FILTER (WHERE begins_turn) AS turns,
        pg_catalog.sum(tool_calls) AS tool_calls,
        pg_catalog.sum(tool_failures) AS tool_failures,
        pg_catalog.sum(input_tokens) AS input_tokens,
        pg_catalog.sum(output_tokens) AS output_tokens,
        pg_catalog.sum(cache_read_tokens) AS cache_read_tokens,
        pg_catalog.sum(cache_write_tokens) AS cache_write_tokens,
        pg_catalog.min(created_at) AS first_at,
        pg_catalog.max(created_at) AS last_at
    FROM strands_message_figures
    GROUP BY session_id
) AS f ON f.session_id = s.session_id;

COMMENT ON VIEW strands_session_figures IS 'one row per session: owner, title, turns, messages, tool calls, tokens, times';

CREATE VIEW strands_daily_figures AS
SELECT
    day,                                         -- in UTC; a day without messages has no row
    pg_catalog.count(*) AS sessions,             -- sessions with a message on that day
    pg_catalog.sum(turns) AS turns,
    pg_catalog.sum(messages) AS messages,
    pg_catalog.sum(tool_calls) AS tool_calls,
    pg_catalog.sum(tool_failures) AS tool_failures,
    coalesce(pg_catalog.sum(input_tokens), 0) AS input_tokens,
    coalesce(pg_catalog.sum(output_tokens), 0) AS output_tokens,
    coalesce(pg_catalog.sum(cache_read_tokens), 0) AS cache_read_tokens,
    coalesce(pg_catalog.sum(cache_write_tokens), 0) AS cache_write_tokens
FROM (
    SELECT
        session_id,
        (created_at AT TIME ZONE 'UTC')::date AS day,
        pg_catalog.count(*) FILTER (WHERE begins_turn) AS turns,
        pg_catalog.count(*) AS messages,
        pg_catalog.sum(tool_calls) AS tool_calls,
        pg_catalog.sum(tool_failures) AS tool_failures,
        pg_catalog.sum(input_tokens) AS input_tokens,
        pg_catalog.sum(output_tokens) AS output_tokens,
        pg_catalog.sum(cache_read_tokens) AS cache_read_tokens,
        pg_catalog.sum(cache_write_tokens) AS cache_write_tokens
    FROM strands_message_figures
    GROUP BY session_id, day
) AS f
GROUP BY day;

COMMENT ON VIEW strands_daily_figures IS 'one row per day in UTC: sessions, turns, messages, tool calls, tokens';

-- PostgreSQL 14 does not have the option security_invoker; the statement would fail.
DO '
DECLARE name text;
BEGIN
    IF pg_catalog.current_setting(''server_version_num'')::integer >= 150000 THEN
        FOREACH name IN ARRAY ARRAY[
            ''strands_message_figures'', ''strands_content_blocks'', ''strands_tool_calls'', ''strands_session_figures'',
            ''strands_daily_figures''
        ] LOOP
            EXECUTE pg_catalog.format(''ALTER VIEW %I SET (security_invoker = true)'', name);
        END LOOP;
    END IF;
END';
