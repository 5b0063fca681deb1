"""The table of checkpoints: agents as they were when ``save_snapshot`` was called."""

from typing import Any, NamedTuple
from uuid import UUID

from psycopg.types.numeric import Int8

from strands_psycopg.arguments import check_id
from strands_psycopg.database import Database
from strands_psycopg.payload import Payloads
from strands_psycopg.repository.conversations import MESSAGES_OF_WINDOW, StoredMessage, decode_messages
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.refusals import check_lease, conflict, retry_if_suppressed
from strands_psycopg.repository.window import Window

# Conversation managers pin the first messages once, at their first reduction, and do not record it in their state. This
# key of a checkpoint's data, and of an agent's internal state, does.
PINNED = "pin_first_applied"

# The agent is locked, so that nobody deletes the variants meanwhile. Only ``keep - 1`` older checkpoints remain.
_SAVE = """
    WITH t AS (
        INSERT INTO {checkpoints} AS c (
            session_id, agent_id, snapshot_id, message_count, memory_window, variant_ids, data, data_exact, write_id,
            created_at
        )
        SELECT seen.session_id, seen.agent_id, %(snapshot_id)s::uuid, %(message_count)s::bigint,
            %(memory_window)s::jsonb, %(variant_ids)s::bigint[], %(data)s::jsonb, %(data_exact)s::text,
            %(snapshot_id)s::uuid, pg_catalog.now()
        FROM {seen} AND {may_write} AND {unchanged}
        FOR NO KEY UPDATE OF seen
        ON CONFLICT (session_id, agent_id, snapshot_id) DO UPDATE SET write_id = EXCLUDED.write_id
        RETURNING c.snapshot_id
    ), surplus AS (
        DELETE FROM {checkpoints} AS c
        WHERE c.session_id = %(session_id)s AND c.agent_id = %(agent_id)s AND EXISTS (SELECT true FROM t)
            AND %(keep)s::bigint IS NOT NULL
            AND c.snapshot_id <= (
                SELECT o.snapshot_id FROM {checkpoints} AS o
                WHERE o.session_id = %(session_id)s AND o.agent_id = %(agent_id)s
                    AND o.snapshot_id <> %(snapshot_id)s
                ORDER BY o.snapshot_id DESC OFFSET %(keep)s::bigint - 1 LIMIT 1
            )
        RETURNING c.snapshot_id
    ), unused AS (
        DELETE FROM {message_variants} AS v
        WHERE v.session_id = %(session_id)s AND v.agent_id = %(agent_id)s AND EXISTS (SELECT true FROM surplus)
            AND v.variant_id <> ALL(%(window_variant_ids)s::bigint[])
            AND v.variant_id <> ALL(%(variant_ids)s::bigint[])
            AND NOT EXISTS (
                SELECT true FROM {checkpoints} AS c
                WHERE c.session_id = %(session_id)s AND c.agent_id = %(agent_id)s AND v.variant_id = ANY(c.variant_ids)
                    AND c.snapshot_id NOT IN (SELECT snapshot_id FROM surplus)
            )
    ), {touch_session_of_t}
    SELECT {allowed_at}, t.snapshot_id IS NOT NULL,
        t.snapshot_id IS NULL AND fence.holds AND {agent_unchanged} AS suppressed
    FROM {fence_of_insert} LEFT JOIN t ON true
"""

_LIST = """
    SELECT snapshot_id::text FROM {checkpoints}
    WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
        AND (%(start_after)s::uuid IS NULL OR snapshot_id > %(start_after)s::uuid)
    ORDER BY snapshot_id LIMIT %(limit)s
"""

_READ = """
    SELECT NULL::bigint, t.data::text, t.data_exact, t.memory_window::text, NULL, NULL, NULL, NULL, NULL::bigint, NULL,
        NULL, NULL, NULL::bigint
    FROM {checkpoints} AS t
    WHERE t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s AND t.snapshot_id = %(snapshot_id)s
    UNION ALL
    """ + MESSAGES_OF_WINDOW.replace(
    "{source}", "(SELECT * FROM {checkpoints} WHERE session_id = %(session_id)s AND snapshot_id = %(snapshot_id)s)"
).replace("{next}", "NULL::bigint")


class Checkpoint(NamedTuple):
    """An agent at an earlier time.

    Attributes:
        data: Its documents, as a Strands ``Snapshot`` has them, without messages.
        messages: The messages that it held in memory, in order.
    """

    data: dict[str, Any]
    messages: list[StoredMessage]


class Checkpoints:
    """Reads and writes checkpoints in one database, schema and prefix."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._save = compose(database, _SAVE)
        self._list = compose(database, _LIST)
        self._read = compose(database, _READ)

    def save(
        self,
        session_id: str,
        agent_id: str,
        snapshot_id: UUID,
        data: dict[str, Any],
        window: Window,
        *,
        message_count: int,
        keep: int | None,
        window_variant_ids: list[int],
        expected: UUID,
        term: UUID | None = None,
    ) -> None:
        """Store a checkpoint of an agent as it is stored now, and delete older ones beyond a number.

        Args:
            session_id: The session.
            agent_id: The agent.
            snapshot_id: The id of the checkpoint, a UUID of version 7.
            data: The agent's documents.
            window: Which messages it holds, without what follows.
            message_count: How many messages the agent's log has.
            keep: How many checkpoints of the agent are kept, this one included; None keeps all.
            window_variant_ids: The variants to which the agent's own window refers.
            expected: The write id that the agent's row must have.
            term: The term of the lease on the session, if this process holds one.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionConflictError: The agent's row has another write id than the expected one.
        """
        operation = f"saving a checkpoint of agent {agent_id!r} in session {session_id!r}"
        key = check_id("session_id", session_id), check_id("agent_id", agent_id)
        content, content_exact = self._payloads.encode(data, *key, "checkpoint", str(snapshot_id))
        row = {
            "session_id": session_id,
            "agent_id": agent_id,
            "snapshot_id": snapshot_id,
            "message_count": Int8(message_count),
            "memory_window": window.dumps(),
            "variant_ids": sorted(set(window.variant_ids)),
            "data": content,
            "data_exact": content_exact,
            "keep": None if keep is None else Int8(keep),
            "window_variant_ids": window_variant_ids,
            "expected": expected,
            "write_id": snapshot_id,
            "term": term,
        }
        result = retry_if_suppressed(operation, lambda: self._database.write(operation, self._save, row))
        allowed_at, saved, _ = result.rows[0]
        check_lease(allowed_at, operation, session_id, self._database)
        if not saved:
            raise conflict(operation, session_id, agent_id)

    def list(self, session_id: str, agent_id: str, *, limit: int | None, start_after: UUID | None) -> list[str]:
        """Return the ids of up to ``limit`` checkpoints of an agent, oldest first, after one of them."""
        parameters = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "limit": None if limit is None else Int8(limit),
            "start_after": start_after,
        }
        operation = f"listing checkpoints of agent {agent_id!r} in session {session_id!r}"
        return [snapshot_id for (snapshot_id,) in self._database.fetch(operation, self._list, parameters).rows]

    def read(self, session_id: str, agent_id: str, snapshot_id: UUID) -> Checkpoint | None:
        """Return a checkpoint, or None if it does not exist."""
        key = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "snapshot_id": snapshot_id,
        }
        operation = f"reading checkpoint {snapshot_id} of agent {agent_id!r} in session {session_id!r}"
        rows = self._database.fetch(operation, self._read, key).rows
        found = [row for row in rows if row[0] is None]
        if not found:
            return None
        data, data_exact, window = found[0][1:4]
        stored = Window.loads(window)
        places = stored.places(0) if stored else []
        return Checkpoint(
            self._payloads.decode(data, data_exact, session_id, agent_id, "checkpoint", str(snapshot_id)),
            decode_messages(self._payloads, session_id, agent_id, places, rows),
        )
