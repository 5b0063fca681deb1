"""One manager's view of one session, between Strands' session manager and the repository.

Strands' manager decides what has changed and calls a ``SessionRepository``. The view is that repository, and adds
what only the writer of a session can know: the write ids that this manager last read or wrote, the index of the next
message, the first write that failed, and which writes belong together.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from strands.session.session_repository import SessionRepository
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg.errors import SessionExistsError
from strands_psycopg.repository import PostgresSessionRepository, session_tables
from strands_psycopg.repository.agents import EncodedAgent
from strands_psycopg.view.foresight import after_turn
from strands_psycopg.view.guard import Guard
from strands_psycopg.view.multi_agents import MultiAgents
from strands_psycopg.view.threads import LeaveLoopError, Thread, Waiting
from strands_psycopg.view.transcript import Transcript
from strands_psycopg.view.writers import Writer

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase
    from strands.types.agent import LocalAgent

# In characters of JSON. So much is copied and encoded in some tenths of a millisecond.
_COMPARED_ON_LOOP = 8192


class SessionView(SessionRepository):
    """The repository of one session for one manager.

    Args:
        session_id: The session.
        repository: Where it is stored.
    """

    def __init__(self, session_id: str, repository: PostgresSessionRepository) -> None:
        self._session_id = session_id
        self._repository = repository
        self._tables = session_tables(repository)
        self._agents: dict[str, Writer] = {}
        self._thread = Thread()
        self._guard = Guard(session_id, self._tables.leases)
        self._multi_agents = MultiAgents(session_id, self._tables.multi_agents, self._thread, self._guard)

    @contextmanager
    def initializing_agent(self, agent: "LocalAgent") -> Iterator[None]:
        """While in this block, ``read_agent`` stores the agent, with its messages, if it is not stored yet.

        So the loser of a race between two processes finds what the winner stored, as if it had come later.
        """
        self._thread.new_agents[agent.agent_id] = agent
        try:
            yield
            restored = self._thread.restored
            if restored is not None and restored.messages:
                self._agents[agent.agent_id].transcript.restore(agent, restored.messages)
        finally:
            self._thread.new_agents.pop(agent.agent_id, None)
            self._thread.restored = None

    @contextmanager
    def initializing_multi_agent(self, multi_agent: "MultiAgentBase") -> Iterator[None]:
        """While in this block, ``read_multi_agent`` stores the multi-agent if it is not stored yet."""
        self._thread.new_multi_agents[multi_agent.id] = multi_agent
        try:
            yield
        finally:
            self._thread.new_multi_agents.pop(multi_agent.id, None)

    @contextmanager
    def on_loop(self) -> Iterator[list[Callable[[], None]]]:
        """While in this block, nothing waits for the database.

        Gives the list of writes that must be carried out afterwards, in a worker thread.
        """
        self._thread.on_loop = True
        self._thread.deferred = []
        try:
            yield self._thread.deferred
        finally:
            self._thread.on_loop = False

    def leave_loop(self) -> None:
        """Refuse to go on in a block of ``on_loop``, unless it is one of ``comparing``.

        Raises:
            LeaveLoopError: This is one.
        """
        if self._thread.on_loop and not self._thread.comparing:
            raise LeaveLoopError

    @contextmanager
    def comparing(self, agent: "LocalAgent") -> Iterator[None]:
        """While in this block, an agent of which little is stored ahead is compared with that on the loop.

        Only if it differs the loop must be left.
        """
        writer = self._agents.get(agent.agent_id)
        self._thread.comparing = (
            writer is not None
            and writer.ahead
            and writer.unchanged is not None
            and writer.unchanged.length <= _COMPARED_ON_LOOP
        )
        try:
            yield
        finally:
            self._thread.comparing = False

    @contextmanager
    def one_event(self) -> Iterator[None]:
        """While in this block, a message and the agent's state that follows it are one statement."""
        self._thread.group = []
        try:
            yield
        finally:
            self._write_group()
            self._thread.group = None

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Give the session, created if it does not exist."""
        session = self._repository.read_session(session_id)
        if session is not None:
            return session
        try:
            return self._repository.create_session(Session(session_id=session_id, session_type=SessionType.AGENT))
        except SessionExistsError:
            return self._repository.read_session(session_id)

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Store a new session."""
        return self._repository.create_session(session)

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Give a stored agent; None if it was not stored, though it may be now (see ``initializing_agent``)."""
        conversation = self._tables.conversations.read(session_id, agent_id)
        if conversation is None and agent_id in self._thread.new_agents:
            with self._guard.writing():
                try:
                    self._store_new_agent(self._thread.new_agents[agent_id])
                except SessionExistsError:
                    conversation = self._tables.conversations.read(session_id, agent_id)
        if conversation is None:
            return None
        if agent_id in self._thread.new_agents:
            self._thread.restored = conversation
        stored = conversation.stored
        # Now, since Strands goes on working with some of these documents themselves.
        unchanged = EncodedAgent.of(stored.agent)
        self._agents[agent_id] = Writer(stored.write_id, unchanged, transcript=Transcript(stored.next_message_id))
        return stored.agent

    def _store_new_agent(self, agent: "LocalAgent") -> None:
        messages = [SessionMessage.from_message(message, index) for index, message in enumerate(agent.messages)]
        write_id = uuid4()
        self._tables.agents.create(
            self._session_id, SessionAgent.from_agent(agent), messages, write_id=write_id, term=self._guard.term
        )
        self._agents[agent.agent_id] = Writer(write_id, transcript=Transcript(len(messages)))

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Store a new agent, unless ``read_agent`` has."""
        if session_agent.agent_id not in self._thread.new_agents:
            write_id = uuid4()
            with self._guard.writing():
                self._tables.agents.create(session_id, session_agent, write_id=write_id, term=self._guard.term)
            self._agents[session_agent.agent_id] = Writer(write_id)

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Store an agent's state, with its message that waits for it, where nobody else has written it."""
        waiting = self._take_waiting(session_agent.agent_id)
        self._write_group()
        if waiting is not None and waiting.ahead is not None:
            session_agent.conversation_manager_state = waiting.ahead.conversation_manager_state
        state = session_agent.conversation_manager_state
        if (removed := state.get("removed_message_count")) is not None:
            index = self._agents[session_agent.agent_id].transcript.first_index(removed)
            session_agent.conversation_manager_state = {**state, "removed_message_count": index}
        message, is_ahead = (None, False) if waiting is None else (waiting.message, waiting.ahead is not None)
        self._write_agent(session_agent.agent_id, message, session_agent, is_ahead=is_ahead)

    def _take_waiting(self, agent_id: str) -> Waiting | None:
        group = self._thread.group
        return group.pop() if group and group[-1].agent_id == agent_id else None

    def create_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Store an agent's next message, unless ``read_agent`` has; its index is set here."""
        self._agents[agent_id].transcript.latest = session_message
        if agent_id in self._thread.new_agents:
            return
        if self._thread.group is None:
            self._write_agent(agent_id, session_message)
        else:
            self._thread.group.append(Waiting(agent_id, session_message))

    def look_ahead(self, agent: "LocalAgent") -> None:
        """Have an agent's message that waits take along what the turn that it may end will do to the agent."""
        group = self._thread.group
        # After a repair, which message is the first depends on those that the agent still holds.
        if group and group[-1].agent_id == agent.agent_id and not self._agents[agent.agent_id].transcript.repaired:
            group[-1] = group[-1]._replace(ahead=after_turn(agent, group[-1].message.to_message()))

    def catch_up(self, agent: "LocalAgent") -> None:
        """Store an agent as it is if the row is ahead of it still, since the turn did not end as was foreseen."""
        if self._agents[agent.agent_id].ahead and not self._thread.group:
            self.leave_loop()
            self.update_agent(self._session_id, SessionAgent.from_agent(agent))

    def _write_group(self) -> None:
        group = self._thread.group
        while group:
            agent_id, message, ahead = group.pop(0)
            self._write_agent(agent_id, message, ahead, is_ahead=ahead is not None)

    def _write_agent(
        self,
        agent_id: str,
        message: SessionMessage | None,
        agent: SessionAgent | None = None,
        *,
        is_ahead: bool = False,
    ) -> None:
        """Store a message, or an agent, or both in one statement; an agent only if it is not stored as it is."""
        writer = self._agents[agent_id]
        with self._guard.writing():
            documents = None if agent is None else EncodedAgent.of(agent)
        if documents is not None and documents == writer.unchanged:
            writer.ahead, agent = is_ahead, None
        if agent is None and message is None:
            return
        if self._thread.on_loop:
            raise LeaveLoopError
        write_id = uuid4()
        with writer.lock, self._guard.writing():
            if message is not None:
                message.message_id = writer.transcript.next_message_id
            if agent is None and message is not None:
                self._tables.messages.append(
                    self._session_id, agent_id, message, write_id=write_id, term=self._guard.term
                )
            elif agent is not None and message is None:
                self._tables.agents.update(
                    self._session_id,
                    agent,
                    documents,
                    write_id=write_id,
                    expected=writer.write_id,
                    term=self._guard.term,
                )
            elif agent is not None and message is not None:
                self._tables.agents.update_and_append(
                    self._session_id,
                    agent,
                    message,
                    documents,
                    write_id=write_id,
                    expected=writer.write_id,
                    term=self._guard.term,
                )
            if agent is not None:
                writer.write_id, writer.unchanged, writer.ahead = write_id, documents if is_ahead else None, is_ahead
            if message is not None:
                writer.transcript.next_message_id += 1

    def read_message(self, session_id: str, agent_id: str, message_id: int, **kwargs: Any) -> SessionMessage | None:
        """Give a message, or None."""
        return self._repository.read_message(session_id, agent_id, message_id)

    def update_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Store a message's present content and redaction; a redaction wherever the message is stored."""
        self._write_group()
        others = self._agents[agent_id].transcript.others(session_message) if session_message.redact_message else []
        for message in (session_message, *others):
            message.message, message.redact_message = session_message.message, session_message.redact_message
            with self._guard.writing():
                self._tables.messages.update(session_id, agent_id, message, write_id=uuid4(), term=self._guard.term)

    def continue_latest(self, agent: "LocalAgent", message: Message) -> bool:
        """Store a message in the place of an agent's last one if it continues that one; give whether it does."""
        latest = self._agents[agent.agent_id].transcript.continue_latest(message, agent.messages)
        if latest is not None:
            self.update_message(self._session_id, agent.agent_id, latest)
        return latest is not None

    def replace_message(self, agent_id: str, message: Message) -> None:
        """Store a message in the place of the stored one that has its tracking id.

        Raises:
            SessionNotFoundError: None has it.
        """
        self._write_group()
        writer = self._agents[agent_id]
        with writer.lock, self._guard.writing():
            self._tables.messages.replace(self._session_id, agent_id, message, write_id=uuid4(), term=self._guard.term)
        writer.transcript.replace_latest(message)

    def list_messages(
        self, session_id: str, agent_id: str, limit: int | None = None, offset: int = 0, **kwargs: Any
    ) -> list[SessionMessage]:
        """Give an agent's messages from index ``offset`` on."""
        restored = self._thread.restored
        if restored is None or restored.stored.agent.agent_id != agent_id:
            return self._repository.list_messages(session_id, agent_id, limit, offset)
        if (limit, offset) != (None, restored.offset):
            restored = restored._replace(messages=self._repository.list_messages(session_id, agent_id, limit, offset))
            self._thread.restored = restored
        return restored.messages

    def read_multi_agent(self, session_id: str, multi_agent_id: str, **kwargs: Any) -> dict[str, Any] | None:
        """Give a stored multi-agent's state; None if it was not stored, though it may be now."""
        return self._multi_agents.read(multi_agent_id)

    def create_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any) -> None:
        """Store a new multi-agent, unless ``read_multi_agent`` has."""
        self._multi_agents.create(multi_agent)

    def update_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any) -> None:
        """Store a multi-agent's state as it is now; on an event loop it is taken at once and stored later."""
        self._multi_agents.update(multi_agent)
