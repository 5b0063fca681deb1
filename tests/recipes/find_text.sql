-- Where a text is stored, whatever holds it: for what a redaction or an erasure must not leave behind.
--
--     psql -d agents --set=text='4111 1111 1111 1111' -f find_text.sql
--
-- It reads every document and value, so run it where that does no harm. What JSON writes in another way (quotes, line
-- ends, some letters; bytes, as base64) has to be given in that way.

SELECT 'message' AS kind, session_id AS key, agent_id || ' ' || message_id AS place FROM strands_messages
WHERE strpos(concat_ws(E'\n', message, message_exact, redact_message, redact_message_exact), :'text') > 0
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
SELECT 'value', key, '' FROM strands_storage AS s
WHERE position(convert_to(:'text', 'UTF8') IN coalesce(data, (
    SELECT string_agg(p.data, ''::bytea ORDER BY part.number)
    FROM unnest(s.chunks) WITH ORDINALITY AS part (chunk_id, number) JOIN strands_chunks AS p USING (chunk_id)
))) > 0
UNION ALL
-- Left behind by a process that was killed; it goes with the next change of a large value.
SELECT 'chunk', chunk_id::text, '' FROM strands_chunks AS p
WHERE position(convert_to(:'text', 'UTF8') IN data) > 0
    AND NOT EXISTS (SELECT FROM strands_storage AS s WHERE s.chunks @> ARRAY[p.chunk_id])
ORDER BY 1, 2, 3;
