"""Every error that this library raises on purpose.

Each inherits what a host already catches: Strands' ``SessionException`` for sessions, its ``StorageError`` for storage.
No message holds a password, a row's values or a message's content.
"""

from strands.types.exceptions import SessionException

try:
    from strands.types.exceptions import StorageError
except ImportError:  # before strands-agents 1.48
    StorageError = Exception  # type: ignore[assignment, misc]


class StrandsPsycopgError(Exception):
    """Base of all errors of this library."""


class SessionExistsError(StrandsPsycopgError, SessionException):
    """The session, agent or multi-agent to be created already exists."""


class SessionConflictError(SessionExistsError):
    """Another writer was there first; nothing was stored.

    Build a new session manager (and agent) to go on from what is stored.

    Attributes:
        session_id: The session that was written.
        agent_id: The agent or multi-agent that was written.
        message_id: The index of the refused message; None if an agent or multi-agent row was refused.
    """

    def __init__(self, message: str, *, session_id: str, agent_id: str, message_id: int | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.agent_id = agent_id
        self.message_id = message_id


class SessionNotFoundError(StrandsPsycopgError, SessionException):
    """The session, agent, message or multi-agent to be changed or listed does not exist."""


class SessionForkError(StrandsPsycopgError, SessionException):
    """A session cannot be forked in this way, since the fork could not go on as it should; nothing was stored.

    Attributes:
        session_id: The session that was to be forked.
        agent_id: The agent that stands in the way; None if it is not a single one.
    """

    def __init__(self, message: str, *, session_id: str, agent_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.agent_id = agent_id


class SessionBusyError(StrandsPsycopgError, SessionException):
    """Another writer holds the session, and did not free it in time.

    Attributes:
        session_id: The session.
        since: When it was taken, in UTC by the server's clock, as ISO 8601.
        until: Until when it is held at least; its holder may renew it.
    """

    def __init__(self, message: str, *, session_id: str, since: str, until: str) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.since = since
        self.until = until


class LeaseLostError(StrandsPsycopgError, SessionException):
    """Another holder has taken the session over; nothing was stored. Stop writing.

    Attributes:
        session_id: The session.
    """

    def __init__(self, message: str, *, session_id: str) -> None:
        super().__init__(message)
        self.session_id = session_id


class TransferError(StrandsPsycopgError, SessionException):
    """A session could not be exported or imported; the message names what is in the way.

    What was to be written of that session was not; sessions before it are whole.
    """


class BadFileError(TransferError):
    """Something in the source of an import cannot be read as what it should be; nothing of its session was stored.

    Attributes:
        file: The name of the file, the address of the object in S3, the line or the row of a table.
    """

    def __init__(self, message: str, *, file: str) -> None:
        super().__init__(message)
        self.file = file


class SchemaError(StrandsPsycopgError, SessionException):
    """The database's tables are missing, or are not those of this version of the package."""


class DatabaseUnavailableError(StrandsPsycopgError, SessionException):
    """No statement could be run on the database in time.

    The outcome of the write that raised this is unknown: it may have been stored without the answer
    arriving. Nothing that was acknowledged before is lost.
    """


class DatabaseError(StrandsPsycopgError, SessionException):
    """The database refused a statement for a reason that no retry mends, such as a missing permission.

    Attributes:
        sqlstate: PostgreSQL's five-character error code, if the server sent one.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class PostgresStorageError(StrandsPsycopgError, StorageError):
    """A storage's call was refused, or failed in the database; then the error that says how is the cause."""


class EmbeddedPostgresError(StrandsPsycopgError):
    """The embedded server could not be found, set up, started or stopped; the message says what to do."""


class MissingExtraError(StrandsPsycopgError, ImportError):
    """What was asked for needs an optional dependency; the message says what to install.

    Attributes:
        extra: The extra of this package that brings it.
    """

    def __init__(self, message: str, *, extra: str) -> None:
        super().__init__(message)
        self.extra = extra


class ReportError(StrandsPsycopgError):
    """The report could not be written; the message says why."""
