-- Figures about sessions, for people and for the commands stats and report. All are views: nothing is computed or kept
-- until somebody asks.
--
-- A redacted message counts with what it is redacted to; only the numbers of its metadata are still those of the model's
-- call. Messages are of any shape, so nothing here relies on one: what is missing or malformed is NULL, or not counted.
-- Times are those at which the server stored a message, days are UTC's.
--
-- For operators:
-- - They read with the rights of whoever asks, so row-level security holds in them, and who may not read messages may
--   not read these. PostgreSQL 14 cannot do that: there a view reads with its owner's rights, so grant these there only
--   to roles that may see every session.
-- - Ask for one session, or few: WHERE session_id = ... finds its messages by their key. Everything else reads all
--   messages.
-- - Columns that a view reads can neither be dropped nor change their type. A migration that does so drops the views
--   first and creates them again.

CREATE VIEW strands_message_figures AS
SELECT
    session_id,
    agent_id,
    message_id,
    coalesce(redact_message, message) ->> 'role' AS role,
    redact_message IS NOT NULL AS redacted,
    -- A turn begins with a message of the user's that brings no result of a tool.
    coalesce(
        coalesce(redact_message, message) ->> 'role' = 'user'
        AND jsonb_path_exists(
            coalesce(redact_message, message), 'strict $.content[*] ? (exists (@.toolResult))', '{}', true
        ) IS NOT TRUE,
        false
    ) AS begins_turn,
    jsonb_array_length(
        jsonb_path_query_array(
            coalesce(redact_message, message), 'strict $.content[*] ? (exists (@.toolUse)).type()', '{}', true
        )
    ) AS tool_calls,                             -- that the model asks for in this message
    jsonb_array_length(
        jsonb_path_query_array(
            coalesce(redact_message, message), 'strict $.content[*] ? (@.toolResult.status == "error").type()', '{}', true
        )
    ) AS tool_failures,                          -- that this message brings the results of
    -- As the provider counts: whether what came from a cache is among the input is up to it. What is no number from 0 to
    -- 10^12 is NULL.
    jsonb_path_query_first(
        message, 'strict $.metadata.usage.inputTokens ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS input_tokens,
    jsonb_path_query_first(
        message, 'strict $.metadata.usage.outputTokens ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS output_tokens,
    jsonb_path_query_first(
        message, 'strict $.metadata.usage.cacheReadInputTokens ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS cache_read_tokens,
    jsonb_path_query_first(
        message, 'strict $.metadata.usage.cacheWriteInputTokens ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS cache_write_tokens,
    jsonb_path_query_first(
        message, 'strict $.metadata.metrics.latencyMs ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS latency_ms,                     -- of the model's call
    jsonb_path_query_first(
        message, 'strict $.metadata.metrics.timeToFirstByteMs ? (@ >= 0 && @ <= 1000000000000)', '{}', true
    )::bigint AS first_byte_ms,
    created_at
FROM strands_messages;

COMMENT ON VIEW strands_message_figures IS 'a row per message: its role, tokens, latency and counts of tool calls';

CREATE VIEW strands_content_blocks AS
SELECT
    m.session_id,
    m.agent_id,
    m.message_id,
    (b.number - 1)::integer AS block_index,      -- from 0 up
    coalesce(m.redact_message, m.message) ->> 'role' AS role,
    -- The block's key as Strands names it: text, toolUse, toolResult, reasoningContent, image, document, ... A bare
    -- string is a text.
    CASE jsonb_typeof(b.block)
        WHEN 'string' THEN 'text'
        WHEN 'object' THEN
            CASE
                WHEN b.block ? 'toolUse' THEN 'toolUse'
                WHEN b.block ? 'toolResult' THEN 'toolResult'
                WHEN b.block ? 'text' THEN 'text'
                ELSE coalesce(jsonb_path_query_first(b.block, '$.keyvalue().key') #>> '{}', 'other')
            END
        ELSE 'other'
    END AS kind,
    CASE jsonb_typeof(b.block)
        WHEN 'string' THEN b.block #>> '{}'
        ELSE
            coalesce(
                b.block ->> 'text',
                b.block #>> '{reasoningContent,reasoningText,text}',
                b.block #>> '{guardContent,text,text}',
                jsonb_path_query_first(b.block, 'lax $.citationsContent.content[*].text', '{}', true) #>> '{}',
                jsonb_path_query_first(b.block, 'lax $.toolResult.content[*].text', '{}', true) #>> '{}'
            )
    END AS text,                                 -- of citations and results the first one
    b.block #>> '{toolUse,name}' AS tool_name,
    coalesce(b.block #>> '{toolUse,toolUseId}', b.block #>> '{toolResult,toolUseId}') COLLATE "C" AS tool_use_id,
    b.block #>> '{toolResult,status}' AS tool_status,
    b.block,
    m.redact_message IS NOT NULL AS redacted,
    m.created_at
FROM strands_messages AS m
CROSS JOIN LATERAL jsonb_array_elements(
    CASE jsonb_typeof(coalesce(m.redact_message, m.message) -> 'content')
        WHEN 'array' THEN coalesce(m.redact_message, m.message) -> 'content'
        WHEN 'string' THEN jsonb_build_array(coalesce(m.redact_message, m.message) -> 'content')
        ELSE '[]'
    END
) WITH ORDINALITY AS b (block, number);

COMMENT ON VIEW strands_content_blocks IS 'a row per content block: its kind, text, and tool';

-- Ids of calls come from models, and some models use one again in a later turn. So a call's result is what follows it
-- under its id in the agent's conversation, unless that is a call again.
CREATE VIEW strands_tool_calls AS
SELECT
    session_id,
    agent_id,
    message_id,
    block_index,
    tool_use_id,
    tool_name,
    block #> '{toolUse,input}' AS input,
    CASE WHEN has_result THEN next_block #>> '{toolResult,status}' END AS status,  -- success or error
    CASE WHEN has_result THEN next_block #> '{toolResult,content}' END AS result,
    CASE WHEN has_result THEN next_message_id END AS result_message_id,  -- NULL: no result
    created_at AS called_at,
    CASE WHEN has_result THEN next_created_at END AS result_at,
    -- Until its result was stored. The calls of one message are answered together, so this is the slowest one's; time in
    -- which a human was asked counts too.
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
        tool_use_id IS NOT NULL AND lead(kind) OVER by_id = 'toolResult' AS has_result,
        lead(message_id) OVER by_id AS next_message_id,
        lead(block) OVER by_id AS next_block,
        lead(created_at) OVER by_id AS next_created_at
    FROM strands_content_blocks
    WHERE kind IN ('toolUse', 'toolResult')
    WINDOW by_id AS (PARTITION BY session_id, agent_id, tool_use_id ORDER BY message_id, block_index)
) AS b
WHERE kind = 'toolUse';

COMMENT ON VIEW strands_tool_calls IS 'a row per tool call: its input, status, result and the seconds until that';

CREATE VIEW strands_session_figures AS
SELECT
    s.session_id,
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
        count(*) AS messages,
        count(*) FILTER (WHERE begins_turn) AS turns,
        sum(tool_calls) AS tool_calls,
        sum(tool_failures) AS tool_failures,
        sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens,
        sum(cache_read_tokens) AS cache_read_tokens,
        sum(cache_write_tokens) AS cache_write_tokens,
        min(created_at) AS first_at,
        max(created_at) AS last_at
    FROM strands_message_figures
    GROUP BY session_id
) AS f ON f.session_id = s.session_id;

COMMENT ON VIEW strands_session_figures IS 'a row per session: its turns, messages, tool calls, tokens and times';

CREATE VIEW strands_daily_figures AS
SELECT
    day,                                         -- in UTC; one without a message has no row
    count(*) AS sessions,                        -- with a message on that day
    sum(turns) AS turns,
    sum(messages) AS messages,
    sum(tool_calls) AS tool_calls,
    sum(tool_failures) AS tool_failures,
    coalesce(sum(input_tokens), 0) AS input_tokens,
    coalesce(sum(output_tokens), 0) AS output_tokens,
    coalesce(sum(cache_read_tokens), 0) AS cache_read_tokens,
    coalesce(sum(cache_write_tokens), 0) AS cache_write_tokens
FROM (
    SELECT
        session_id,
        (created_at AT TIME ZONE 'UTC')::date AS day,
        count(*) FILTER (WHERE begins_turn) AS turns,
        count(*) AS messages,
        sum(tool_calls) AS tool_calls,
        sum(tool_failures) AS tool_failures,
        sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens,
        sum(cache_read_tokens) AS cache_read_tokens,
        sum(cache_write_tokens) AS cache_write_tokens
    FROM strands_message_figures
    GROUP BY session_id, day
) AS f
GROUP BY day;

COMMENT ON VIEW strands_daily_figures IS 'a row per day in UTC: its sessions, turns, messages, tool calls and tokens';

-- Before PostgreSQL 15 there is no such option, and the statement would fail.
DO '
DECLARE name text;
BEGIN
    IF current_setting(''server_version_num'')::integer >= 150000 THEN
        FOREACH name IN ARRAY ARRAY[
            ''strands_message_figures'', ''strands_content_blocks'', ''strands_tool_calls'', ''strands_session_figures'',
            ''strands_daily_figures''
        ] LOOP
            EXECUTE format(''ALTER VIEW %I SET (security_invoker = true)'', name);
        END LOOP;
    END IF;
END';
