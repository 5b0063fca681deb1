-- By when sessions were last active: to list the newest first, and to find those that have been idle for long.
--
-- A session's updated_at changes once a minute at most, so that the index costs an agent next to nothing. It is filled
-- while the table is locked against writers: a second or two for a million sessions.

CREATE INDEX strands_sessions_activity ON strands_sessions (updated_at, session_id);
