"""The exceptions that this library raises.

Each inherits one that applications already catch: Strands' ``SessionException`` for sessions, its ``StorageError`` for
storage. No error text contains a password, a row's values or a message's content.
"""

from typing import Any

from strands.types.exceptions import SessionException

try:
    from strands.types.exceptions import StorageError as StorageError
except ImportError:  # before strands-agents 1.48
    StorageError = Exception  # type: ignore[assignment, misc]


class StrandsPsycopgError(Exception):
    """Base class of this library's exceptions.

    They can be copied and pickled with their attributes, so worker processes can raise them.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are copied by calling their class with ``args``, which do not have the keyword-only arguments.
        return _copied, (type(self), self.args), *super().__reduce__()[2:]


def _copied(kind: type[StrandsPsycopgError], arguments: tuple[Any, ...]) -> StrandsPsycopgError:
    """Return an error without the attributes that its own constructor sets."""
    error = kind.__new__(kind, *arguments)
    if isinstance(error, ImportError):
        ImportError.__init__(error, *arguments)  # its ``msg`` is not in ``__dict__``
    return error


class SessionExistsError(StrandsPsycopgError, SessionException):
    """The session, agent or multi-agent to create already exists."""


class SessionConflictError(SessionExistsError):
    """Another writer has stored something first; this write stored nothing.

    To continue from what is stored, build a new session manager and agent.

    Attributes:
        session_id: The session of the refused write.
        agent_id: The agent or multi-agent of the refused write.
        message_id: The index of the refused message; None if an agent or multi-agent row was refused.
    """

    def __init__(self, message: str, *, session_id: str, agent_id: str, message_id: int | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.agent_id = agent_id
        self.message_id = message_id


class SessionNotFoundError(StrandsPsycopgError, SessionException):
    """The session, agent, message or multi-agent to change or list does not exist."""


class SessionForkError(StrandsPsycopgError, SessionException):
    """The session cannot be forked as requested, since the fork could not be continued correctly; nothing was stored.

    Attributes:
        session_id: The session to fork.
        agent_id: The agent that prevents the fork; None if it is not a single one.
    """

    def __init__(self, message: str, *, session_id: str, agent_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.agent_id = agent_id


class SessionBusyError(StrandsPsycopgError, SessionException):
    """Another writer holds the session and did not release it in time.

    Attributes:
        session_id: The session.
        since: When the other writer's lease was acquired, in UTC by the server's clock, as ISO 8601.
        until: When that lease expires if its holder does not renew it, in the same form.
    """

    def __init__(self, message: str, *, session_id: str, since: str, until: str) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.since = since
        self.until = until


class SessionOwnerError(StrandsPsycopgError, SessionException):
    """The session belongs to an owner other than the given one, or to none; nothing was read or stored.

    Attributes:
        session_id: The session.
    """

    def __init__(self, message: str, *, session_id: str) -> None:
        super().__init__(message)
        self.session_id = session_id


class LeaseLostError(StrandsPsycopgError, SessionException):
    """Another holder has taken over the session; nothing was stored. Stop writing.

    Attributes:
        session_id: The session.
    """

    def __init__(self, message: str, *, session_id: str) -> None:
        super().__init__(message)
        self.session_id = session_id


class TransferError(StrandsPsycopgError, SessionException):
    """A session could not be exported or imported; the message says why.

    Nothing of that session was written; sessions before it are complete.
    """


class BadFileError(TransferError):
    """A part of an import's source is not in the expected format; nothing of its session was stored.

    Attributes:
        file: The part: the name of a file, the address of an S3 object, a line, or a row of a table.
    """

    def __init__(self, message: str, *, file: str) -> None:
        super().__init__(message)
        self.file = file


class SchemaError(StrandsPsycopgError, SessionException):
    """The tables are missing, or are not those of this version of the package."""


class DatabaseUnavailableError(StrandsPsycopgError, SessionException):
    """No statement could be run on the database in time.

    The outcome of the write that raised this is unknown: it may have been stored although its acknowledgement did not
    arrive. Nothing that was acknowledged before is lost.
    """


class DatabaseError(StrandsPsycopgError, SessionException):
    """The database refused a statement for a reason that a retry does not resolve, such as a missing privilege.

    Attributes:
        sqlstate: PostgreSQL's five-character error code, if the server sent one.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class PayloadCodecError(StrandsPsycopgError, SessionException):
    """The application's ``payload_codec`` raised an error, which is the cause, or returned what cannot be used.

    If a document was being stored, nothing was.

    Attributes:
        session_id: The session of the document; None for a value of a storage that belongs to none.
        agent_id: Its agent, graph or swarm; None for a value of a storage.
        kind: What the document is, as in ``PayloadContext``.
        index: Its index, as in ``PayloadContext``.
    """

    def __init__(
        self, message: str, *, session_id: str | None, agent_id: str | None, kind: str, index: int | str | None
    ) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.agent_id = agent_id
        self.kind = kind
        self.index = index


class PostgresStorageError(StrandsPsycopgError, StorageError):
    """A storage operation was refused, or failed in the database; the database's error is then the cause."""


class StorageConflictError(PostgresStorageError):
    """Another writer has stored or deleted the value first; this call stored nothing.

    To continue from what is stored, build a new session manager and agent. To keep other writers away, hold a lease.

    Attributes:
        key: The key of the refused write or deletion, with the prefix of the storage.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class MemoryStoreError(StrandsPsycopgError):
    """A call of a memory store was refused; nothing was stored."""


class MemoryNotFoundError(MemoryStoreError):
    """The memory to update does not exist in this store, or belongs to another owner.

    Attributes:
        memory_id: Its id.
    """

    def __init__(self, message: str, *, memory_id: str) -> None:
        super().__init__(message)
        self.memory_id = memory_id


class MemoryExistsError(MemoryStoreError):
    """Another memory of the store has this text already.

    Attributes:
        memory_id: The id of the memory to update.
    """

    def __init__(self, message: str, *, memory_id: str) -> None:
        super().__init__(message)
        self.memory_id = memory_id


class EmbeddingError(MemoryStoreError):
    """The application's ``embed`` raised an error, which is the cause, or returned what cannot be used."""


class EmbeddedPostgresError(StrandsPsycopgError):
    """The embedded server could not be found, set up, started or stopped; the message says what to do."""


class MissingExtraError(StrandsPsycopgError, ImportError):
    """An optional dependency is missing; the message says what to install.

    Attributes:
        extra: The extra of this package that installs it.
    """

    def __init__(self, message: str, *, extra: str) -> None:
        super().__init__(message)
        self.extra = extra


class ReportError(StrandsPsycopgError):
    """The report could not be written; the message says why."""


def owner_error(operation: str, session_id: str) -> SessionOwnerError:
    """Return the error that says that a session does not belong to the given owner, but not whose it is."""
    return SessionOwnerError(
        f"{operation}: session {session_id!r} does not belong to the given owner; use another session id, or, if the "
        "session has no owner yet and should have this one, call annotate_session(owner=...) first",
        session_id=session_id,
    )


def lease_lost_error(operation: str, session_id: str) -> LeaseLostError:
    """Return the error that says that the lease on a session is no longer held."""
    return LeaseLostError(
        f"{operation}: another holder has taken over session {session_id!r}, or its lease was deleted; nothing was "
        "stored. Stop writing, and take a new lease to continue from what is stored",
        session_id=session_id,
    )


def suppressed_error(operation: str) -> DatabaseError:
    """Return the error that says that a write has not stored what it should, for no reason that is known here."""
    return DatabaseError(
        f"{operation}: the database reported success, but did not store or delete everything; look for a trigger or "
        "rule on its tables that suppresses rows, or a policy that hides them"
    )
