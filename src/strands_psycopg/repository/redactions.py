"""Redactions: what replaces a message, in every form in which a session holds it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8
from strands.types.content import Message

from strands_psycopg.arguments import check_id
from strands_psycopg.database import Database, Result
from strands_psycopg.payload import Columns, PayloadKind, Payloads
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.refusals import check_lease, retry_if_suppressed

_REDACTED = """
    SELECT {allowed_at}, t.agent_id, t.message_id, {times_of_t}, EXISTS (SELECT true FROM v),
        t.message_id IS NULL AND fence.holds AND EXISTS (
            SELECT true FROM {messages}
            WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
                AND message_id = ANY(%(message_ids)s::bigint[])
        ) AS suppressed
    FROM fence LEFT JOIN t ON true
"""  # a row for each message; one whose index is NULL: no message

# Also the same message where other agents of the session hold it, or where a retried turn has stored it again.
_REDACT = """
    WITH {fence}, {touch_session}, t AS (
        UPDATE {messages} SET
            message = %(message)s, message_exact = %(message_exact)s, redact_message = %(message)s,
            redact_message_exact = %(message_exact)s, write_id = %(write_id)s, updated_at = pg_catalog.now()
        WHERE session_id = %(session_id)s AND {fence_holds} AND (
            agent_id = %(agent_id)s AND message_id = ANY(%(message_ids)s::bigint[])
            OR message->>'tracking_id'::text = %(tracking_id)s
        )
        RETURNING agent_id, message_id, created_at, updated_at
    ), v AS (
        UPDATE {message_variants} SET message = %(message)s, message_exact = %(message_exact)s
        WHERE session_id = %(session_id)s AND {fence_holds} AND (
            agent_id = %(agent_id)s
            AND (message_id = ANY(%(message_ids)s::bigint[]) OR variant_id = ANY(%(variant_ids)s::bigint[]))
            OR message->>'tracking_id'::text = %(tracking_id)s
        )
        RETURNING variant_id
    )
    {redacted}
""".replace("{redacted}", _REDACTED)

# With a payload codec, tracking ids are compared here, and each row gets a document of its own.
_MESSAGES = """
    SELECT agent_id, message_id, {created_at_text}, message::text, message_exact, message_id
    FROM {messages} WHERE session_id = %(session_id)s AND (agent_id, message_id) > (%(after_agent)s, %(after)s) AND (
        %(tracking_id)s::text IS NOT NULL OR agent_id = %(agent_id)s AND message_id = ANY(%(message_ids)s::bigint[])
    )
    ORDER BY agent_id, message_id LIMIT %(limit)s
"""

_VARIANTS = """
    SELECT agent_id, variant_id, {created_at_text}, message::text, message_exact, message_id
    FROM {message_variants} WHERE session_id = %(session_id)s AND (agent_id, variant_id) > (%(after_agent)s, %(after)s)
        AND (
            %(tracking_id)s::text IS NOT NULL OR agent_id = %(agent_id)s
            AND (message_id = ANY(%(message_ids)s::bigint[]) OR variant_id = ANY(%(variant_ids)s::bigint[]))
        )
    ORDER BY agent_id, variant_id LIMIT %(limit)s
"""

# By its time of creation, a row differs from one that has taken its place since it was read.
_REDACT_EACH = """
    WITH {fence}, {touch_session}, t AS (
        UPDATE {messages} AS m SET
            message = r.message::jsonb, message_exact = r.message_exact, redact_message = r.redaction::jsonb,
            redact_message_exact = r.redaction_exact, write_id = %(write_id)s, updated_at = pg_catalog.now()
        FROM unnest(
            %(agent_ids)s::text[], %(indexes)s::bigint[], %(times)s::timestamptz[], %(messages)s::text[],
            %(messages_exact)s::text[], %(redactions)s::text[], %(redactions_exact)s::text[]
        ) AS r (agent_id, message_id, created_at, message, message_exact, redaction, redaction_exact)
        WHERE m.session_id = %(session_id)s AND m.agent_id = r.agent_id AND m.message_id = r.message_id
            AND m.created_at = r.created_at AND {fence_holds}
        RETURNING m.agent_id, m.message_id, m.created_at, m.updated_at
    ), v AS (
        UPDATE {message_variants} AS m SET message = r.message::jsonb, message_exact = r.message_exact
        FROM unnest(
            %(variant_agent_ids)s::text[], %(variant_numbers)s::bigint[], %(variant_times)s::timestamptz[],
            %(variants)s::text[], %(variants_exact)s::text[]
        ) AS r (agent_id, variant_id, created_at, message, message_exact)
        WHERE m.session_id = %(session_id)s AND m.agent_id = r.agent_id AND m.variant_id = r.variant_id
            AND m.created_at = r.created_at AND {fence_holds}
        RETURNING m.variant_id
    )
    {redacted}
""".replace("{redacted}", _REDACTED)  # also suppressed if other rows have taken the place of all that were read

_PAGE_SIZE = 100


class _Found(NamedTuple):
    """A message or variant to redact.

    Attributes:
        agent_id: Its agent.
        number: Its index or id.
        created_at: When it was stored.
    """

    agent_id: str
    number: int
    created_at: str


class Redactions:
    """Redacts messages in one database, schema and prefix."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._redact = compose(database, _REDACT)
        self._redact_each = compose(database, _REDACT_EACH)
        self._messages = compose(database, _MESSAGES)
        self._variants = compose(database, _VARIANTS)

    def store(
        self,
        operation: str,
        session_id: str,
        agent_id: str,
        message: Message,
        message_ids: Sequence[int],
        variant_ids: Sequence[int],
        *,
        write_id: UUID,
        term: UUID | None,
    ) -> tuple[Sequence[TupleRow], bool]:
        """Redact messages; return agent, index and times of each, and whether variants were redacted.

        With a payload codec, a message with a tracking id is searched for in all messages of the session, which are
        decoded for that.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
        """
        tracking_id = message.get("tracking_id")
        key: dict[str, object] = {
            "session_id": check_id("session_id", session_id),
            "agent_id": check_id("agent_id", agent_id),
            "message_ids": list(message_ids),
            "variant_ids": list(variant_ids),
            "tracking_id": tracking_id if isinstance(tracking_id, str) else None,
            "write_id": write_id,
            "term": term,
        }

        def redact() -> Result:
            if self._payloads.has_codec:
                return self._database.write(operation, self._redact_each, self._rows(operation, key, message))
            content, content_exact = self._payloads.encode(message, session_id, agent_id, "message")
            document = {"message": content, "message_exact": content_exact}
            return self._database.write(operation, self._redact, {**key, **document})

        rows = retry_if_suppressed(operation, redact).rows
        check_lease(rows[0][0], operation, session_id, self._database)
        return [row[1:5] for row in rows if row[2] is not None], rows[0][5]

    def _rows(self, operation: str, key: dict[str, Any], message: Message) -> dict[str, object]:
        """Return the parameters that redact each message and variant by a document of its own."""
        session_id = key["session_id"]
        messages, variants = list(self._find_messages(operation, key)), list(self._find_variants(operation, key))

        def encode(kind: PayloadKind, found: Sequence[_Found]) -> list[Columns]:
            return [self._payloads.encode(message, session_id, each.agent_id, kind, each.number) for each in found]

        contents, redactions = encode("message", messages), encode("redaction", messages)
        forms = encode("variant", variants)
        return {
            **key,
            "agent_ids": [each.agent_id for each in messages],
            "indexes": [each.number for each in messages],
            "times": [each.created_at for each in messages],
            "messages": [text for text, _ in contents],
            "messages_exact": [exact for _, exact in contents],
            "redactions": [text for text, _ in redactions],
            "redactions_exact": [exact for _, exact in redactions],
            "variant_agent_ids": [each.agent_id for each in variants],
            "variant_numbers": [each.number for each in variants],
            "variant_times": [each.created_at for each in variants],
            "variants": [text for text, _ in forms],
            "variants_exact": [exact for _, exact in forms],
        }

    def _find_messages(self, operation: str, key: dict[str, Any]) -> Iterator[_Found]:
        for agent_id, index, created_at, text, exact, _ in self._pages(operation, self._messages, key):
            is_named = agent_id == key["agent_id"] and index in key["message_ids"]
            if is_named or self._is_same(key, text, exact, agent_id, "message", index):
                yield _Found(agent_id, index, created_at)

    def _find_variants(self, operation: str, key: dict[str, Any]) -> Iterator[_Found]:
        for agent_id, variant_id, created_at, text, exact, original in self._pages(operation, self._variants, key):
            is_known = original in key["message_ids"] or variant_id in key["variant_ids"]
            is_named = agent_id == key["agent_id"] and is_known
            if is_named or self._is_same(key, text, exact, agent_id, "variant", variant_id):
                yield _Found(agent_id, variant_id, created_at)

    def _is_same(
        self, key: dict[str, Any], text: str, exact: str | None, agent_id: str, kind: PayloadKind, number: int
    ) -> bool:
        """Return whether a stored message has the tracking id."""
        stored = self._payloads.decode(text, exact, key["session_id"], agent_id, kind, number)
        return bool(stored.get("tracking_id") == key["tracking_id"])

    def _pages(self, operation: str, statement: bytes, key: dict[str, Any]) -> Iterator[TupleRow]:
        after: tuple[str, int] = ("", -1)
        while True:
            page = {**key, "after_agent": after[0], "after": Int8(after[1]), "limit": Int8(_PAGE_SIZE)}
            rows = self._database.fetch(operation, statement, page).rows
            yield from rows
            if len(rows) < _PAGE_SIZE:
                return
            after = rows[-1][0], rows[-1][1]
