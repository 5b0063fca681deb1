-- Find every row that contains a text: to check that a redaction or an erasure has left nothing behind.
--
--     psql -d agents --set=text='4111 1111 1111 1111' -f find_text.sql
--
-- It reads every document and value, so run it where that load is acceptable. Write what JSON escapes (quotes, line
-- ends, some letters) as JSON does, and bytes as base64.

SELECT 'message' AS kind, session_id AS key, agent_id || ' ' || message_id AS place FROM strands_messages
WHERE strpos(concat_ws(E'\n', message, message_exact, redact_message, redact_message_exact), :'text') > 0
UNION ALL
SELECT 'variant', session_id, agent_id || ' ' || variant_id FROM strands_message_variants
WHERE strpos(concat_ws(E'\n', message, message_exact), :'text') > 0
UNION ALL
SELECT 'checkpoint', session_id, agent_id || ' ' || snapshot_id FROM strands_checkpoints
WHERE strpos(concat_ws(E'\n', data, data_exact), :'text') > 0
UNION ALL
SELECT 'agent', session_id, agent_id FROM strands_agents
WHERE strpos(
    concat_ws(
        E'\n', state, state_exact, conversation_manager_state, conversation_manager_state_exact, _internal_state,
        _internal_state_exact
    ), :'text'
) > 0
UNION ALL
SELECT 'multi-agent', session_id, multi_agent_id FROM strands_multi_agents
WHERE strpos(concat_ws(E'\n', state, state_exact), :'text') > 0
UNION ALL
SELECT 'value', scope, key FROM strands_storage AS s
WHERE position(convert_to(:'text', 'UTF8') IN coalesce(data, (
    SELECT string_agg(c.data, ''::bytea ORDER BY item.ordinal)
    FROM unnest(s.chunk_ids) WITH ORDINALITY AS item (chunk_id, ordinal)
    JOIN strands_chunks AS c ON c.scope = s.scope AND c.chunk_id = item.chunk_id
))) > 0
UNION ALL
SELECT 'session value', session_id, key FROM strands_session_storage AS s
WHERE position(convert_to(:'text', 'UTF8') IN coalesce(data, (
    SELECT string_agg(c.data, ''::bytea ORDER BY item.ordinal)
    FROM unnest(s.chunk_ids) WITH ORDINALITY AS item (chunk_id, ordinal)
    JOIN strands_session_chunks AS c ON c.session_id = s.session_id AND c.chunk_id = item.chunk_id
))) > 0
ORDER BY 1, 2, 3;
