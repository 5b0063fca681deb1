"""The variants, checkpoints and values of a session, kept from the moment when it was read.

Unlike messages of the log, they may be deleted by the agent's next turn.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple, cast
from weakref import finalize

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import Database, iso_time
from strands_psycopg.payload import Payloads
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.window import Window
from strands_psycopg.storage.session_values import SessionValues
from strands_psycopg.transfer.rows import CheckpointRow, ValueRow, VariantRow, checkpoint_row, value_row, variant_row
from strands_psycopg.transfer.temporary_lines import TemporaryLines
from strands_psycopg.watchdog import watchdog

_CREATED_AT = iso_time("t.created_at")

# The write id is that of the message of the log, which changes when the message is redacted; NULL if it has been.
_VARIANTS = """
    SELECT t.agent_id, t.variant_id, t.message_id, t.message::text, t.message_exact, {created_at},
        CASE WHEN m.redact_message IS NULL THEN m.write_id::text END
    FROM {message_variants} AS t LEFT JOIN {messages} AS m
        ON m.session_id = %(session_id)s AND m.agent_id = t.agent_id AND m.message_id = t.message_id
    WHERE t.session_id = %(session_id)s ORDER BY t.agent_id, t.variant_id
""".replace("{created_at}", _CREATED_AT)

_CHECKPOINTS = """
    SELECT t.agent_id, t.snapshot_id::text, t.message_count, t.memory_window::text, t.data::text, t.data_exact,
        {created_at}
    FROM {checkpoints} AS t WHERE t.session_id = %(session_id)s ORDER BY t.agent_id, t.snapshot_id
""".replace("{created_at}", _CREATED_AT)

# Variants as they are now; where one is no longer stored, what its message has been redacted to since.
_CURRENT_VARIANTS = """
    SELECT r.variant_id, coalesce(t.message, m.redact_message)::text,
        CASE WHEN t.variant_id IS NULL THEN m.redact_message_exact ELSE t.message_exact END, t.variant_id IS NULL
    FROM unnest(
        %(variant_ids)s::bigint[], %(message_ids)s::bigint[], %(times)s::timestamptz[], %(write_ids)s::uuid[]
    ) AS r (variant_id, message_id, created_at, write_id)
    LEFT JOIN {message_variants} AS t ON t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s
        AND t.variant_id = r.variant_id AND t.created_at = r.created_at
    LEFT JOIN {messages} AS m ON m.session_id = %(session_id)s AND m.agent_id = %(agent_id)s
        AND m.message_id = r.message_id AND m.write_id <> r.write_id AND m.redact_message IS NOT NULL
"""

# Variants are compared with what is stored now in pages of about this many characters of JSON.
_PAGE_CHARACTERS = 2**20
_MAX_PAGE_VARIANTS = 1_000


class _Variant(NamedTuple):
    """A message in a form that the log does not have, as the snapshot has it.

    Attributes:
        variant_id: Its id.
        message_id: The message of the log that it is a form of, if there is one.
        message: The text of its column.
        message_exact: The text of its exact column.
        created_at: When it was stored.
        write_id: The write id of the message of the log; None if there is none, or it has been redacted.
        redacts: The index of the message of the log whose redaction ``message`` is; None if it is the variant itself.
    """

    variant_id: int
    message_id: int | None
    message: str
    message_exact: str | None
    created_at: str
    write_id: str | None
    redacts: int | None = None


class _Spool:
    """Rows of JSON values, each under a name; in a temporary file if they are many."""

    def __init__(self) -> None:
        self._lines = TemporaryLines()
        self._places: dict[str, tuple[int, int]] = {}
        finalize(self, self._lines.close)

    def add(self, name: str, row: Sequence[Any]) -> None:
        """Add a row. The rows of one name must follow each other, and all rows be added before any is read."""
        start, count = self._places.get(name, (self._lines.size, 0))
        self._lines.write(json.dumps(row).encode() + b"\n")
        self._places[name] = start, count + 1

    @property
    def names(self) -> Collection[str]:
        """The names, in the order in which they were added."""
        return self._places.keys()

    def count(self, name: str) -> int:
        """Return the number of rows under a name."""
        return self._places.get(name, (0, 0))[1]

    def rows(self, name: str) -> Iterator[list[Any]]:
        """Yield the rows under a name, in the order in which they were added."""
        position, count = self._places.get(name, (0, 0))
        for line in islice(self._lines.lines(position), count):
            yield json.loads(line)


class SpooledParts:
    """The variants, checkpoints and values of a session as of one snapshot, even if they are deleted later.

    Variants that are redacted later are redacted here too. One that is deleted as well is redacted only if it is a form
    of a message of the log.
    """

    def __init__(
        self, reader: "PartsReader", session_id: str, variants: _Spool, checkpoints: _Spool, values: _Spool
    ) -> None:
        self._reader = reader
        self._session_id = session_id
        self._variants = variants
        self._checkpoints = checkpoints
        self._values = values

    def variants(self, agent_id: str) -> Iterator[VariantRow]:
        """Yield an agent's variants in the order of their ids."""
        for page in self._pages(agent_id):
            current = self._reader.current_variants(self._session_id, agent_id, page)
            for each in page:
                message = self._reader.decode(self._session_id, agent_id, current.get(each.variant_id, each))
                yield variant_row(
                    agent_id, each.variant_id, each.message_id, message, each.created_at, raw=self._reader.raw
                )

    def _pages(self, agent_id: str) -> Iterator[list[_Variant]]:
        page: list[_Variant] = []
        characters = 0
        for values in self._variants.rows(agent_id):
            page.append(_Variant(*values))
            characters += len(page[-1].message)
            if len(page) == _MAX_PAGE_VARIANTS or characters > _PAGE_CHARACTERS:
                yield page
                page, characters = [], 0
        if page:
            yield page

    def checkpoints(self, agent_id: str) -> Iterator[CheckpointRow]:
        """Yield an agent's checkpoints, oldest first."""
        for snapshot_id, message_count, window, data, data_exact, created_at in self._checkpoints.rows(agent_id):
            stored = Window.loads(window) or Window((), None)
            document = self._reader.payloads.decode(
                data, data_exact, self._session_id, agent_id, "checkpoint", snapshot_id
            )
            yield checkpoint_row(
                agent_id, snapshot_id, message_count, stored, document, created_at, raw=self._reader.raw
            )

    def checkpoint_count(self, agent_id: str) -> int:
        """Return the number of an agent's checkpoints."""
        return self._checkpoints.count(agent_id)

    @property
    def value_keys(self) -> Collection[str]:
        """The keys of the values of the session's storage, in order."""
        return self._values.names

    def value(self, key: str) -> ValueRow:
        """Return a value of the session's storage."""
        encoded, search_vector, updated_at, expires_at = next(self._values.rows(key))
        stored = b64decode(encoded)
        data = self._reader.payloads.decode_bytes(stored, self._session_id, key)
        # The words are those of what is stored.
        return value_row(key, data, search_vector if data == stored else None, updated_at, expires_at)


class PartsReader:
    """Reads variants, checkpoints and values.

    Attributes:
        payloads: What decodes them.
        raw: Whether they may be any JSON.
    """

    def __init__(self, database: Database, payloads: Payloads, *, raw: bool) -> None:
        self.payloads = payloads
        self.raw = raw
        self._database = database
        self._variants = compose(database, _VARIANTS)
        self._checkpoints = compose(database, _CHECKPOINTS)
        self._current_variants = compose(database, _CURRENT_VARIANTS)
        self._values = SessionValues(database)

    def read(self, cursor: Cursor[TupleRow], session_id: str) -> SpooledParts:
        """Read the parts of a session, in a transaction."""
        variants = self._spool(cursor, self._variants, session_id)
        checkpoints = self._spool(cursor, self._checkpoints, session_id)
        return SpooledParts(self, session_id, variants, checkpoints, self._spool_values(cursor, session_id))

    def _spool_values(self, cursor: Cursor[TupleRow], session_id: str) -> _Spool:
        spool = _Spool()
        with closing(self._values.read(cursor, session_id)) as values:
            for value in values:
                data = b64encode(value.data).decode()
                spool.add(value.key, (data, value.search_vector, value.updated_at, value.expires_at))
        return spool

    def _spool(self, cursor: Cursor[TupleRow], statement: bytes, session_id: str) -> _Spool:
        spool = _Spool()
        stream = cast("Generator[TupleRow, None, None]", cursor.stream(statement, {"session_id": session_id}))
        # Otherwise the connection could not be used, not even to roll back, if a row cannot be added.
        with closing(stream) as rows:
            while True:
                with watchdog.watch(cursor.connection, self._database.response_timeout):
                    row = next(rows, None)
                if row is None:
                    return spool
                spool.add(row[0], row[1:])

    def decode(self, session_id: str, agent_id: str, variant: _Variant) -> Any:
        """Return the message of a variant."""
        text, exact = variant.message, variant.message_exact
        if variant.redacts is not None:
            return self.payloads.decode(text, exact, session_id, agent_id, "redaction", variant.redacts)
        return self.payloads.decode(text, exact, session_id, agent_id, "variant", variant.variant_id)

    def current_variants(self, session_id: str, agent_id: str, variants: Sequence[_Variant]) -> dict[int, _Variant]:
        """Return the variants that are still stored, or whose message has been redacted since, by id."""
        parameters = {
            "session_id": session_id,
            "agent_id": agent_id,
            "variant_ids": [each.variant_id for each in variants],
            "message_ids": [each.message_id for each in variants],
            "times": [each.created_at for each in variants],
            "write_ids": [each.write_id for each in variants],
        }
        rows = self._database.fetch(f"reading session {session_id!r}", self._current_variants, parameters).rows
        by_id = {each.variant_id: each for each in variants}
        current = {}
        for variant_id, message, exact, is_gone in rows:
            if message is not None:
                known = by_id[variant_id]
                redacts = known.message_id if is_gone else None
                current[variant_id] = known._replace(message=message, message_exact=exact, redacts=redacts)
        return current
