-- One row per session that is being held for writing. A term is a random UUID: a late release from an old term must
-- not free the new one, and a write that carries an old term must find nothing.
--
-- A session may be held before it is stored, so nothing refers to strands_sessions. A row whose holder died stays,
-- expired, until the session is held again.

CREATE TABLE strands_leases (
    session_id  text COLLATE "C" PRIMARY KEY,
    term        uuid NOT NULL,            -- replaced at every takeover
    acquired_at timestamptz NOT NULL,     -- for the error that tells since when the session is held
    expires_at  timestamptz NOT NULL      -- by the server's clock
);
