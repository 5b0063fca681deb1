"""The table of agents."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from strands.types.content import Message
from strands.types.session import SessionAgent, SessionMessage

from strands_psycopg.arguments import check_id
from strands_psycopg.codec import encode
from strands_psycopg.database import NO_DEADLINE, Database, Result
from strands_psycopg.errors import SessionExistsError, SessionNotFoundError, owner_error, suppressed_error
from strands_psycopg.payload import Columns, PayloadKind, Payloads
from strands_psycopg.repository.annotations import check_owner
from strands_psycopg.repository.fragments import compose
from strands_psycopg.repository.messages import Messages, message_parameters
from strands_psycopg.repository.refusals import AgentWrites, check_lease, retry_if_suppressed
from strands_psycopg.repository.window import Variant, Window, dumps_window, plain_start
from strands_psycopg.storage.session_values import keys_of_agent

_CREATE = """
    WITH t AS (
        INSERT INTO {agents} AS a (
            session_id, agent_id, state, state_exact, conversation_manager_state, conversation_manager_state_exact,
            _internal_state, _internal_state_exact, memory_window, write_id, created_at, updated_at
        )
        SELECT %(session_id)s::text, %(agent_id)s::text, %(state)s::jsonb, %(state_exact)s::text,
            %(conversation_manager_state)s::jsonb, %(conversation_manager_state_exact)s::text,
            %(_internal_state)s::jsonb, %(_internal_state_exact)s::text, %(memory_window)s::jsonb, %(write_id)s::uuid,
            pg_catalog.now(), pg_catalog.now()
        WHERE {may_write} AND NOT {of_another_owner}
        ON CONFLICT (session_id, agent_id) DO UPDATE SET write_id = EXCLUDED.write_id
        WHERE a.write_id = EXCLUDED.write_id
        RETURNING a.created_at, a.updated_at
    ), {touch_session_of_t}
    SELECT {allowed_at}, {times_of_t}, {of_another_owner},
        t.created_at IS NULL AND fence.holds AND NOT {of_another_owner} AND NOT EXISTS (
            SELECT true FROM {agents} WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
        ) AS suppressed
    FROM {fence_of_insert} LEFT JOIN t ON true
"""  # times are NULL: another call created it first

_READ = """
    SELECT {agent_columns}
    FROM {agents} AS t WHERE t.session_id = %(session_id)s AND t.agent_id = %(agent_id)s
"""

_UPDATE_AND_APPEND = """
    WITH t AS (
        {insert_message} FROM {seen} AND {may_write} AND {unchanged} AND {is_next}
        FOR NO KEY UPDATE OF seen {on_message_conflict}
    ), u AS (
        {update_agent} AND EXISTS (SELECT true FROM t) RETURNING created_at, updated_at
    ), {touch_session_of_u}
    SELECT {server_time}, {times_of_t}, {times_of_u} FROM (SELECT true) AS one LEFT JOIN t ON true LEFT JOIN u ON true
    WHERE t.created_at IS NOT NULL OR u.created_at IS NOT NULL
"""  # no row: nothing was stored (see AgentWrites)

# The update of an agent without a message and without new variants.
_UPDATE = """
    WITH {fence}, {touch_session}, u AS (
        {update_agent_in_part} AND {unchanged} AND {fence_holds} RETURNING created_at, updated_at
    ), {replace_messages},
    unused AS (
        {delete_unused_variants} AND EXISTS (SELECT true FROM u)
    )
    SELECT {server_time}, NULL, NULL, {times_of_u} FROM u
"""  # as _UPDATE_AND_APPEND

# The message is optional. Everything else depends on the update of the agent, which depends on the message.
_STORE = """
    WITH t AS (
        {insert_message} FROM {seen} AND %(message_id)s::bigint IS NOT NULL AND {may_write} AND {unchanged}
            AND {is_next}
        FOR NO KEY UPDATE OF seen {on_message_conflict}
    ), u AS (
        {update_agent_in_part} AND {unchanged} AND {may_write}
            AND (%(message_id)s::bigint IS NULL OR EXISTS (SELECT true FROM t))
        RETURNING created_at, updated_at
    ), {replace_messages},
    added AS (
        INSERT INTO {message_variants} (
            session_id, agent_id, variant_id, message_id, message, message_exact, created_at
        )
        SELECT seen.session_id, seen.agent_id, r.variant_id, r.message_id, r.message::jsonb, r.message_exact,
            pg_catalog.now()
        FROM unnest(
            %(variant_ids)s::bigint[], %(originals)s::bigint[], %(variants)s::text[], %(variants_exact)s::text[]
        ) AS r (variant_id, message_id, message, message_exact), {seen} AND EXISTS (SELECT true FROM u)
        ON CONFLICT DO NOTHING
    ), unused AS (
        {delete_unused_variants} AND EXISTS (SELECT true FROM u)
    ), {touch_session_of_u}
    SELECT {server_time}, {times_of_t}, {times_of_u} FROM (SELECT true) AS one LEFT JOIN t ON true LEFT JOIN u ON true
    WHERE t.created_at IS NOT NULL OR u.created_at IS NOT NULL
"""  # as _UPDATE_AND_APPEND

_REPLACE_MESSAGES = """
    replaced AS (
        UPDATE {messages} AS m SET
            message = r.message::jsonb, message_exact = r.message_exact,
            redact_message = CASE WHEN m.redact_message IS NOT NULL THEN {redaction}::jsonb END,
            redact_message_exact = CASE WHEN m.redact_message IS NOT NULL THEN {redaction}_exact END,
            write_id = %(write_id)s, updated_at = pg_catalog.now()
        FROM {replaced_rows}
        WHERE m.session_id = %(session_id)s AND m.agent_id = %(agent_id)s AND m.message_id = r.message_id
            AND EXISTS (SELECT true FROM u)
    )
"""

# A message that is replaced and redacted has the same document in both columns.
_SAME_REDACTION = {
    "{redaction}": "r.message",
    "{replaced_rows}": """unnest(%(replaced_ids)s::bigint[], %(replaced)s::text[], %(replaced_exact)s::text[])
            AS r (message_id, message, message_exact)""",
}

# With a payload codec, each column has a document of its own.
_OWN_REDACTION = {
    "{redaction}": "r.redaction",
    "{replaced_rows}": """unnest(
            %(replaced_ids)s::bigint[], %(replaced)s::text[], %(replaced_exact)s::text[], %(redactions)s::text[],
            %(redactions_exact)s::text[]
        ) AS r (message_id, message, message_exact, redaction, redaction_exact)""",
}

# Foreign keys cascade, but not with session_replication_role = replica.
_DELETE = """
    WITH {fence}, {touch_session}, t AS (
        DELETE FROM {agents} WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND {fence_holds} AND {owned}
        RETURNING agent_id
    ), m AS (
        DELETE FROM {messages}
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND EXISTS (SELECT true FROM t)
    ), v AS (
        DELETE FROM {message_variants}
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND EXISTS (SELECT true FROM t)
    ), c AS (
        DELETE FROM {checkpoints}
        WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s AND EXISTS (SELECT true FROM t)
    ), s AS (
        DELETE FROM {session_storage}
        WHERE session_id = %(session_id)s AND EXISTS (SELECT true FROM t) AND (
            key >= %(stash)s::text AND key < %(stash_end)s::text
            OR key >= %(snapshots)s::text AND key < %(snapshots_end)s::text
        )
        RETURNING key, chunk_ids
    ), freed AS (
        SELECT used.chunk_id, pg_catalog.count(*) AS number
        FROM (
            SELECT DISTINCT s.key, item AS chunk_id FROM s CROSS JOIN LATERAL pg_catalog.unnest(s.chunk_ids) AS item
        ) AS used
        GROUP BY used.chunk_id
    ), locked AS (
        SELECT c.chunk_id, c.reference_count - freed.number::integer AS remaining
        FROM {session_chunks} AS c JOIN freed USING (chunk_id) WHERE c.session_id = %(session_id)s
        ORDER BY c.chunk_id FOR UPDATE OF c
    ), k AS (
        DELETE FROM {session_chunks} AS c USING locked
        WHERE c.session_id = %(session_id)s AND c.chunk_id = locked.chunk_id AND locked.remaining <= 0
    ), r AS (
        UPDATE {session_chunks} AS c SET reference_count = locked.remaining FROM locked
        WHERE c.session_id = %(session_id)s AND c.chunk_id = locked.chunk_id AND locked.remaining > 0
    )
    SELECT {allowed_at}, t.agent_id IS NOT NULL, {of_another_owner},
        t.agent_id IS NULL AND fence.holds AND {owned} AND EXISTS (
            SELECT true FROM {agents} WHERE session_id = %(session_id)s AND agent_id = %(agent_id)s
        ) AS suppressed
    FROM fence LEFT JOIN t ON true
"""


# The kinds of an agent's documents, in the order of the table's columns.
_KINDS: tuple[PayloadKind, ...] = ("state", "conversation_manager_state", "internal_state")


class EncodedAgent(NamedTuple):
    """The documents of an agent, each as its JSONB and exact text (see ``codec.encode``)."""

    state: Columns
    conversation_manager_state: Columns
    internal_state: Columns

    @classmethod
    def of(cls, agent: SessionAgent) -> "EncodedAgent":
        """Encode the documents of an agent, in a form that can be compared for equality."""
        return cls(encode(agent.state), encode(agent.conversation_manager_state), encode(agent._internal_state))

    def with_payloads(self, payloads: Payloads, session_id: str, agent_id: str) -> "EncodedAgent":
        """Return the documents as they are stored.

        Raises:
            PayloadCodecError: The payload codec failed.
        """
        if not payloads.has_codec:
            return self
        documents = zip(self, _KINDS, strict=True)
        return EncodedAgent(*(payloads.encode_columns(each, session_id, agent_id, kind) for each, kind in documents))


class StoredAgent(NamedTuple):
    """An agent with what is needed to write to it without a conflict.

    Attributes:
        agent: The agent.
        write_id: The write id of the last write to its row.
        next_message_id: The index of its next message.
        window: Which messages it holds in memory; None if they are the end of its log (see ``plain_start``).
    """

    agent: SessionAgent
    write_id: UUID
    next_message_id: int
    window: Window | None


class AgentChange(NamedTuple):
    """A change to an agent, made by one statement.

    Attributes:
        agent_id: The agent.
        documents: Its documents; None if they stay as they are.
        window: Which messages it holds in memory from now on; None if they are the end of its log.
        replaced: Messages that take the place of others in its log, by their indexes.
        variants: Messages for its window that are not in its log in this form.
        drops_variants: Whether it may have variants that the window does not refer to.
        start: If ``window`` is None, where that end begins, or earlier.
    """

    agent_id: str
    documents: EncodedAgent | None
    window: Window | None
    replaced: Mapping[int, Message] = MappingProxyType({})
    variants: Sequence[Variant] = ()
    drops_variants: bool = True
    start: int = 0

    @classmethod
    def of(cls, agent: SessionAgent, window: Window | None = None) -> "AgentChange":
        """Return the change to an agent's documents and window."""
        start = plain_start(agent.conversation_manager_state)
        return cls(agent.agent_id, EncodedAgent.of(agent), window, start=start)

    @property
    def is_plain(self) -> bool:
        """Whether only documents and window change."""
        return not (self.replaced or self.variants or self.drops_variants or self.documents is None)


# Parameters for documents that stay as they are, and for no message.
_UNCHANGED: EncodedAgent = EncodedAgent(*[(None, None)] * 3)  # type: ignore[arg-type]
_NO_MESSAGE: dict[str, object] = dict.fromkeys(
    ("message_id", "message", "message_exact", "redact_message", "redact_message_exact")
)


class Agents:
    """Reads and writes agents in one database, schema and prefix."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._messages = Messages(database, payloads)
        self._writes = AgentWrites(database)
        self._create = compose(database, _CREATE)
        self._read = compose(database, _READ)
        self._update_and_append = compose(database, _UPDATE_AND_APPEND)
        replace_messages = _REPLACE_MESSAGES
        for name, text in (_OWN_REDACTION if payloads.has_codec else _SAME_REDACTION).items():
            replace_messages = replace_messages.replace(name, text)
        self._update = compose(database, _UPDATE.replace("{replace_messages}", replace_messages))
        self._store = compose(database, _STORE.replace("{replace_messages}", replace_messages))
        self._delete = compose(database, _DELETE)

    def create(
        self,
        session_id: str,
        agent: SessionAgent,
        messages: Sequence[SessionMessage] = (),
        *,
        window: Window | None = None,
        write_id: UUID,
        owner: str | None = None,
        term: UUID | None = None,
    ) -> None:
        """Store a new agent with its first messages, in one transaction, and set their times.

        Args:
            session_id: The session.
            agent: The agent.
            messages: Its first messages, numbered from 0.
            window: Which of them it holds in memory; None if they are the end of its log.
            write_id: The write id of this call.
            owner: Whose session it must be; None if it may be anyone's.
            term: The term of the lease on the session, if this process holds one.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionOwnerError: The session does not belong to ``owner``.
            SessionExistsError: Another call created the agent.
            SessionNotFoundError: The session does not exist.
        """
        row = agent_parameters(self._payloads, session_id, AgentChange.of(agent, window), write_id, term)
        row["owner"] = check_owner(owner)
        operation = f"creating agent {agent.agent_id!r} in session {session_id!r}"
        if messages:
            message_rows = [
                message_parameters(self._payloads, session_id, agent.agent_id, message, write_id, term)
                for message in messages
            ]

            def store(cursor: Cursor[TupleRow]) -> Result:
                created = Result(cursor.execute(self._create, {**row, **NO_DEADLINE}).fetchall(), False)
                if created.rows[0][1] is not None:
                    self._messages.append_many(cursor, message_rows, operation)
                return created

            result = retry_if_suppressed(operation, lambda: self._database.transact(operation, store))
        else:
            result = retry_if_suppressed(operation, lambda: self._database.write(operation, self._create, row))
        allowed_at, created_at, _, of_another_owner, _ = result.rows[0]
        if created_at is None and of_another_owner:
            raise owner_error(operation, session_id)
        check_lease(allowed_at, operation, session_id, self._database)
        if created_at is None:
            raise SessionExistsError(f"{operation}: the agent already exists; read it instead")
        agent.created_at = agent.updated_at = created_at
        for message in messages:
            message.created_at = message.updated_at = created_at

    def read(self, session_id: str, agent_id: str) -> StoredAgent | None:
        """Return an agent, or None if it does not exist."""
        key = {"session_id": check_id("session_id", session_id), "agent_id": check_id("agent_id", agent_id)}
        rows = self._database.fetch(f"reading agent {agent_id!r} of session {session_id!r}", self._read, key).rows
        return decode_stored_agent(self._payloads, session_id, agent_id, rows[0]) if rows else None

    def update(self, session_id: str, agent: SessionAgent, *, write_id: UUID, term: UUID | None = None) -> None:
        """Replace the stored state of an agent, whatever it was, and set its times.

        The agent is then restored from the end of its log, as Strands does it. Arguments are as for ``create``.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionNotFoundError: The agent does not exist.
        """
        change = AgentChange.of(agent)
        agent.created_at, agent.updated_at = self.store(session_id, change, write_id=write_id, term=term)

    def store(
        self,
        session_id: str,
        change: AgentChange,
        message: SessionMessage | None = None,
        *,
        write_id: UUID,
        expected: UUID | None = None,
        term: UUID | None = None,
    ) -> tuple[str, str]:
        """Change an agent and append a message, if there is one, both or neither; set the message's times.

        Args:
            session_id: The session.
            change: What changes.
            message: The agent's next message.
            write_id: The write id of this call.
            expected: The write id that the agent's row must have; None if it may have any.
            term: The term of the lease on the session, if this process holds one.

        Returns:
            When the agent was created and updated.

        Raises:
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionConflictError: The agent's row has another write id than the expected one, or a message with this
                index already exists, or the index is not the next one.
            SessionNotFoundError: The agent does not exist.
            DatabaseError: A trigger or rule has suppressed the update of the agent.
        """
        agent_id = change.agent_id
        row = agent_parameters(self._payloads, session_id, change, write_id, term) | {"expected": expected}
        if message is None:
            operation = f"updating agent {agent_id!r} of session {session_id!r}"
            row |= _NO_MESSAGE
        else:
            operation = (
                f"storing message {message.message_id} and state of agent {agent_id!r} in session {session_id!r}"
            )
            row |= message_parameters(self._payloads, session_id, agent_id, message, write_id, term)
        statement = self._update_and_append
        if not change.is_plain or message is None:
            statement = self._update if message is None and not change.variants else self._store
            row |= self._variant_parameters(session_id, change)
        message_id = None if message is None else message.message_id
        stored = self._writes.run(operation, statement, row, message_id)
        _, created_at, updated_at, agent_created_at, agent_updated_at = stored
        if agent_created_at is None:
            raise suppressed_error(operation)
        if message is not None:
            message.created_at, message.updated_at = created_at, updated_at or created_at
        return agent_created_at, agent_updated_at or agent_created_at

    def delete(self, session_id: str, agent_id: str, *, owner: str | None = None, term: UUID | None = None) -> None:
        """Delete an agent with everything in the session that names it.

        Raises:
            SessionOwnerError: The session does not belong to ``owner``, and that is not None.
            LeaseLostError: The lease of ``term`` is no longer held.
            SessionNotFoundError: The agent does not exist, and no earlier attempt of this call can have deleted it.
        """
        key = {"session_id": check_id("session_id", session_id), "agent_id": check_id("agent_id", agent_id)}
        operation = f"deleting agent {agent_id!r} of session {session_id!r}"
        row = {**key, **keys_of_agent(session_id, agent_id), "owner": check_owner(owner), "term": term}
        result = retry_if_suppressed(operation, lambda: self._database.write(operation, self._delete, row))
        allowed_at, deleted, of_another_owner, _ = result.rows[0]
        if not deleted and of_another_owner:
            raise owner_error(operation, session_id)
        check_lease(allowed_at, operation, session_id, self._database)
        if not deleted and not result.repeated:
            raise SessionNotFoundError(f"{operation}: the agent does not exist")

    def _variant_parameters(self, session_id: str, change: AgentChange) -> dict[str, object]:
        """Return the parameters with which a statement replaces messages and stores variants."""

        def encode_all(kind: PayloadKind, messages: Iterable[tuple[int, Message]]) -> list[Columns]:
            return [
                self._payloads.encode(message, session_id, change.agent_id, kind, index) for index, message in messages
            ]

        replaced = encode_all("message", change.replaced.items())
        # In case they are redacted.
        redactions = encode_all("redaction", change.replaced.items()) if self._payloads.has_codec else []
        variants = encode_all("variant", ((each.variant_id, each.message) for each in change.variants))
        return {
            "replaced_ids": list(change.replaced),
            "replaced": [content for content, _ in replaced],
            "replaced_exact": [exact for _, exact in replaced],
            "redactions": [content for content, _ in redactions],
            "redactions_exact": [exact for _, exact in redactions],
            "variant_ids": [each.variant_id for each in change.variants],
            "originals": [each.original for each in change.variants],
            "variants": [content for content, _ in variants],
            "variants_exact": [exact for _, exact in variants],
            "window_variant_ids": [] if change.window is None else change.window.variant_ids,
        }


def decode_stored_agent(payloads: Payloads, session_id: str, agent_id: str, row: Sequence[Any]) -> StoredAgent:
    """Decode the columns that ``{agent_columns}`` selects."""
    *documents, write_id, index, window, created_at, updated_at = row
    agent = decode_agent(payloads, session_id, agent_id, documents, created_at, updated_at)
    return StoredAgent(agent, UUID(write_id), index, Window.loads(window))


def decode_agent(
    payloads: Payloads,
    session_id: str,
    agent_id: str,
    documents: Sequence[Any],
    created_at: str,
    updated_at: str | None,
) -> SessionAgent:
    """Decode an agent; ``documents`` are the columns of its three documents, in the order of the table."""
    columns = zip(documents[::2], documents[1::2], _KINDS, strict=True)
    state, manager_state, internal_state = (
        payloads.decode(text, exact, session_id, agent_id, kind) for text, exact, kind in columns
    )
    return SessionAgent(agent_id, state, manager_state, internal_state, created_at, updated_at or created_at)


def agent_parameters(
    payloads: Payloads, session_id: str, change: AgentChange, write_id: UUID, term: UUID | None
) -> dict[str, object]:
    """Return the parameters with which a statement stores an agent's documents and window."""
    key = check_id("session_id", session_id), check_id("agent_id", change.agent_id)
    documents = _UNCHANGED if change.documents is None else change.documents.with_payloads(payloads, *key)
    (state, state_exact), (manager, manager_exact), (internal, internal_exact) = documents
    return {
        "session_id": session_id,
        "agent_id": change.agent_id,
        "state": state,
        "state_exact": state_exact,
        "conversation_manager_state": manager,
        "conversation_manager_state_exact": manager_exact,
        "_internal_state": internal,
        "_internal_state_exact": internal_exact,
        "memory_window": dumps_window(change.window, change.start, payloads),
        "write_id": write_id,
        "term": term,
    }
