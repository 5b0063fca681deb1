"""Storing one agent: carries out the writes that the comparison of the agent with its record returns."""

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from strands.types.content import Message
from strands.types.session import SessionMessage

from strands_psycopg.agent_sync.comparison import (
    InMemoryAgent,
    PendingMessage,
    Write,
    compare,
    is_stored,
    log_write,
    removed_messages,
)
from strands_psycopg.agent_sync.documents import snapshot_data
from strands_psycopg.agent_sync.event_scope import EventScope
from strands_psycopg.agent_sync.record import AgentRecord, tracking_id
from strands_psycopg.agent_sync.redaction import Redaction, find_known, find_replaced, redacted_record
from strands_psycopg.agent_sync.restore import check_loadable, load_checkpoint, restore, with_redactions
from strands_psycopg.agent_sync.turn_end import agent_after_turn
from strands_psycopg.agent_sync.write_guard import WriteGuard
from strands_psycopg.errors import SessionNotFoundError
from strands_psycopg.repository.agents import AgentChange
from strands_psycopg.repository.tables import SessionTables
from strands_psycopg.repository.window import Window
from strands_psycopg.uuids import uuid7

if TYPE_CHECKING:
    from strands.types.agent import LocalAgent


class AgentWriter(EventScope):
    """Stores one agent as it is in memory.

    Args:
        tables: Where it is stored.
        session_id: Its session.
        agent: The agent.
        record: What is stored of it.
        guard: The guard of its manager's writes.
        keep_snapshots: How many checkpoints are kept; None keeps all.
    """

    def __init__(
        self,
        tables: SessionTables,
        session_id: str,
        agent: "LocalAgent",
        record: AgentRecord,
        guard: WriteGuard,
        *,
        keep_snapshots: int | None,
    ) -> None:
        super().__init__()
        self._tables = tables
        self._workers = tables.database.workers
        self._session_id = session_id
        self._agent = agent
        self._record = record
        self._guard = guard
        self._keep_snapshots = keep_snapshots
        self._pending: list[PendingMessage] = []
        self._is_sync_due = False
        self._is_checkpoint_due = False
        # Held during a write, so that writes keep their order.
        self._lock = threading.Lock()

    def append(self, message: Message) -> None:
        """Store a message in the log; together with the event's other writes, if this is an event."""
        self._pending.append(PendingMessage(message))
        self._write_unless_in_event()

    def replace(self, message: Message) -> None:
        """Replace the message of the log that has the same tracking id; together with the event's other writes.

        Raises:
            SessionNotFoundError: The agent has no message with this tracking id.
        """
        key = tracking_id(message)
        stored = (each.message for each in self._record.held if each.original is not None)
        pending = (each.message for each in self._pending)
        if key is None or key not in map(tracking_id, (*stored, *pending)):
            raise SessionNotFoundError(
                f"replacing message {key!r} of agent {self._agent.agent_id!r} in session {self._session_id!r}: no "
                "stored message has this tracking id"
            )
        self._pending.append(PendingMessage(message, replaces=True))
        self._write_unless_in_event()

    def sync(self) -> None:
        """Store the agent as it is; together with the event's other writes, if this is an event."""
        self._is_sync_due = True
        self._write_unless_in_event()

    def redact(self, message: Message) -> None:
        """Redact the stored forms of a redacted message, wherever they are, before returning.

        These are the messages with its tracking id, even those that memory no longer holds. If there are none, it is
        the message in memory that it is or has replaced; otherwise the last one of its role.

        Raises:
            SessionException: The agent has no message to redact.
        """
        self._workers.run(partial(self._write_and_redact, message))

    def _write_and_redact(self, message: Message) -> None:
        with self._lock:
            self._write_due()
            if self._redact(message, find_known(message, self._record.held)):
                return
            self._redact(message, find_replaced(message, list(self._agent.messages), self._record.held))

    def redact_if_held(self, message: Message) -> None:
        """Redact the message of another agent if this one holds it, too."""
        self._workers.run(partial(self._redact_if_held, message))

    def _redact_if_held(self, message: Message) -> None:
        with self._lock:
            redaction = find_known(message, self._record.held)
            if redaction.held:
                self._redact(message, redaction)

    def _redact(self, message: Message, redaction: Redaction) -> bool:
        """Redact messages; return whether any were redacted."""
        if not redaction.held and tracking_id(message) is None:
            return False
        with self._guard.writing(self._agent.agent_id):
            stored = self._tables.messages.redact(
                self._session_id,
                self._agent.agent_id,
                message,
                message_ids=redaction.message_ids,
                variant_ids=redaction.variant_ids,
                write_id=uuid4(),
                term=self._guard.term,
            )
            self._record = redacted_record(self._record, message, redaction.held, stored or ())
            self._execute(compare(InMemoryAgent.of(self._agent), (), self._record))
        return stored is not None

    def request_checkpoint(self) -> None:
        """Save a checkpoint; together with the event's writes, if this is an event."""
        self._is_checkpoint_due = True
        self._write_unless_in_event()

    def save_checkpoint(self) -> UUID:
        """Store the agent as it is, and a checkpoint of it; return the checkpoint's id.

        Raises:
            SessionConflictError: Another writer was first.
            StrandsPsycopgError: The write failed, or an earlier one of the manager has failed.
        """
        with self._lock:
            self._is_sync_due = True
            self._write_due()
            return self._save_checkpoint()

    def load_checkpoint(self, snapshot_id: UUID) -> bool:
        """Set the agent to a checkpoint, with its system prompt; return whether the checkpoint exists.

        The stored agent changes only with the next write.

        Raises:
            RuntimeError: A bidirectional agent is running, or background tasks are.
        """
        with self._lock:
            checkpoint = self._tables.checkpoints.read(self._session_id, self._agent.agent_id, snapshot_id)
            if checkpoint is None:
                return False
            held = load_checkpoint(self._agent, checkpoint)
            record = self._record._replace(held=held, removed=removed_messages(self._record, held))
            self._record = with_redactions(record, checkpoint.messages)
            return True

    def reload(self) -> bool:
        """Restore the agent from what is stored of it; return whether it is stored.

        Raises:
            RuntimeError: A bidirectional agent is running, or background tasks are.
        """
        with self._lock:
            check_loadable(self._agent)
            conversation = self._tables.conversations.read(
                self._session_id, self._agent.agent_id, owner=self._guard.owner
            )
            if conversation is None:
                return False
            self._record = restore(self._agent, conversation)
            return True

    def is_write_due(self) -> bool:
        """Return whether something that was asked for must be written; it does not wait for the database."""
        # During a write the record is not what will be stored.
        is_plain_sync = self._is_sync_due and not self._pending and not self._lock.locked()
        if is_plain_sync and is_stored(InMemoryAgent.of(self._agent), self._record):
            self._is_sync_due = False
        return bool(self._pending) or self._is_sync_due or self._is_checkpoint_due

    def write(self) -> None:
        """Write what was asked for.

        Raises:
            SessionConflictError: Another writer was first.
            StrandsPsycopgError: The write failed, or an earlier one of the manager has failed.
        """
        with self._lock:
            self._write_due()
            if self._is_checkpoint_due:
                self._is_checkpoint_due = False
                self._save_checkpoint()

    def _save_checkpoint(self) -> UUID:
        record = self._record
        snapshot_id, data = uuid7(), snapshot_data(self._agent)
        with self._guard.writing(self._agent.agent_id):
            self._tables.checkpoints.save(
                self._session_id,
                self._agent.agent_id,
                snapshot_id,
                data,
                Window.of([each.place for each in record.held]),
                message_count=record.next_message_id,
                keep=self._keep_snapshots,
                window_variant_ids=record.window.variant_ids if record.window else [],
                expected=record.write_id,
                term=self._guard.term,
            )
        return snapshot_id

    def _write_unless_in_event(self) -> None:
        if not self.is_handling_event:
            self._workers.run(self.write)

    def _write_due(self) -> None:
        pending = list(self._pending)
        is_sync_due, self._is_sync_due = self._is_sync_due, False
        with self._guard.writing(self._agent.agent_id):
            if is_sync_due:
                memory = (agent_after_turn(self._agent) if pending else None) or InMemoryAgent.of(self._agent)
                self._execute(compare(memory, pending, self._record))
            else:
                self._execute(log_write(pending, list(self._agent.messages), self._record))
        # Only now, so that an interrupted write loses none. Others may have been added meanwhile.
        del self._pending[: len(pending)]

    def _execute(self, write: Write) -> None:
        first = self._record.next_message_id
        messages = [SessionMessage.from_message(each, first + n) for n, each in enumerate(write.appended)]
        last = messages.pop() if messages and write.stores_agent else None
        for message in messages:
            self._write_message(self._tables.messages.append, message, expected=self._record.write_id)
        if write.stores_agent:
            self._record = write.after._replace(write_id=self._store_agent(write, last))
        else:
            for index, content in write.replaced.items():
                self._write_message(self._tables.messages.replace, SessionMessage.from_message(content, index))
            self._record = write.after

    def _write_message(self, method: Callable[..., None], message: SessionMessage, **options: UUID) -> None:
        method(self._session_id, self._agent.agent_id, message, write_id=uuid4(), term=self._guard.term, **options)

    def _store_agent(self, write: Write, message: SessionMessage | None) -> UUID:
        record = self._record
        stored = record.window.variant_ids if record.window else []
        remaining = write.window.variant_ids if write.window else []
        held = write.after.held
        change = AgentChange(
            self._agent.agent_id,
            write.documents,
            write.window,
            write.replaced,
            write.variants,
            drops_variants=not set(stored) <= set(remaining),
            start=held[0].place if held else write.after.next_message_id,
        )
        write_id = uuid4()
        self._tables.agents.store(
            self._session_id, change, message, write_id=write_id, expected=record.write_id, term=self._guard.term
        )
        return write_id
