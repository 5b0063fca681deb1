-- One row per leased session. A term is a random UUID, drawn for each lease: the late release of an old lease must not
-- release the new one, and a write under an old lease must store nothing.
--
-- A session may be leased before it is stored, so there is no foreign key to strands_sessions. If a holder dies, its
-- row remains, expired, until the session is leased again, deleted or purged, or until any purge a day later.

CREATE TABLE strands_leases (
    session_id  text COLLATE "C" PRIMARY KEY,
    term        uuid NOT NULL,            -- replaced at each takeover
    acquired_at timestamptz NOT NULL,     -- shown in the error that says since when the session is leased
    expires_at  timestamptz NOT NULL      -- by the server's clock
);
