"""Sources of an import, and what all of them have in common."""

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from strands.types.session import SessionAgent, SessionMessage, decode_bytes_values

from strands_psycopg.errors import BadFileError
from strands_psycopg.transfer.rows import MessageRow, Row, SessionRow, agent_row, message_row

_T = TypeVar("_T")

# The key under which Strands' conversation managers store how many messages, counted from the first one, are no longer
# in the window.
_REMOVED_COUNT = "removed_message_count"


class UnreadableError(Exception):
    """A file cannot be read. The text gives the reason without the file's name."""


class ImportIssues:
    """The problems found while one session is read.

    Args:
        skip_bad: Skip what cannot be read instead of failing.
        hint: What the error advises to do if nothing may be skipped.

    Attributes:
        skipped: The name of each skipped item and the reason.
        gaps_closed: Number of gaps in message indexes that were closed.
    """

    def __init__(self, *, skip_bad: bool, hint: str = "repair or remove it, or skip bad files (--skip-bad)") -> None:
        self.skip_bad = skip_bad
        self._hint = hint
        self.skipped: list[str] = []
        self.gaps_closed = 0

    def skip(self, file: str, reason: str) -> None:
        """Skip a file.

        Raises:
            BadFileError: Nothing may be skipped.
        """
        if not self.skip_bad:
            raise BadFileError(f"{file} {reason}; {self._hint}", file=file)
        self.skipped.append(f"{file} {reason}")

    def parse_or_skip(self, file: str, parse: Callable[[], _T]) -> _T | None:
        """Return what ``parse`` returns, or None if the file is skipped.

        Raises:
            BadFileError: The file cannot be parsed and nothing may be skipped.
        """
        try:
            return parse()
        except UnreadableError as error:
            self.skip(file, str(error))
        except RecursionError:
            self.skip(file, "is nested too deeply")
        except KeyError as error:
            self.skip(file, f"lacks {error}")
        except (ValueError, TypeError) as error:
            self.skip(file, f"cannot be read: {error}")
        return None


class SourceSession(Protocol):
    """A session in a source. It can be read several times."""

    @property
    def session_id(self) -> str:
        """The session's id."""

    @property
    def raw(self) -> bool:
        """Whether documents are stored as they are, without the repository's payload codec."""

    def rows(self, issues: ImportIssues) -> Iterator[Row]:
        """Yield the session's own row, then each agent's row followed by its messages, then those of multi-agents.

        If there is no row at all, the session is skipped.

        Raises:
            TransferError: The session cannot be read.
        """


class Source(Protocol):
    """A place that holds sessions."""

    def sessions(self) -> Generator[SourceSession, None, None]:
        """Yield the sessions. Each must be read before the next one is requested.

        Raises:
            TransferError: The source cannot be read.
        """


class SourceMessage(NamedTuple):
    """A message that has not been read yet.

    Attributes:
        source_index: Its index in the source.
        file: Its name in error messages.
        read: Returns the message as ``SessionMessage.to_dict`` does.
    """

    source_index: int
    file: str
    read: Callable[[], Mapping[str, Any]]


SourceMessages: TypeAlias = Callable[[], Iterator[SourceMessage]]


def agent_rows(
    issues: ImportIssues,
    session: SessionRow,
    file: str,
    read_agent: Callable[[], SessionAgent],
    messages: SourceMessages,
) -> Iterator[Row]:
    """Yield the rows of an agent and its messages, which are renumbered without gaps.

    Args:
        issues: Records what is skipped and which gaps are closed.
        session: The agent's session; its creation time replaces missing times.
        file: The agent's name in error messages.
        read_agent: Returns the agent.
        messages: Returns an iterator over the agent's messages in order; it may be called twice.
    """
    agent = issues.parse_or_skip(file, read_agent)
    if agent is None:
        return
    if issues.skip_bad:
        _adjust_window(session, agent, messages)
    row = issues.parse_or_skip(file, lambda: agent_row(agent))
    if row is None:
        return
    yield row
    message_id = 0
    expected_index = 0
    for message in messages():
        issues.gaps_closed += message.source_index > expected_index
        expected_index = message.source_index + 1
        found = issues.parse_or_skip(message.file, _message_parser(session, agent.agent_id, message, message_id))
        if found is not None:
            yield found
            message_id += 1


def with_times(session: SessionRow, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a record in which the session's creation time replaces missing times."""
    created_at = record.get("created_at") or session.created_at.isoformat()
    return {**record, "created_at": created_at, "updated_at": record.get("updated_at") or created_at}


def _message_parser(
    session: SessionRow, agent_id: str, message: SourceMessage, message_id: int
) -> Callable[[], MessageRow]:
    def parse() -> MessageRow:
        record = with_times(session, message.read())
        # Does what SessionMessage.from_dict does, which takes longer than everything else together.
        documents = (
            decode_bytes_values(record["message"]),
            message_id,
            decode_bytes_values(record.get("redact_message")),
        )
        return message_row(agent_id, SessionMessage(*documents, record["created_at"], record["updated_at"]))

    return parse


def _adjust_window(session: SessionRow, agent: SessionAgent, messages: SourceMessages) -> None:
    """Reduce the agent's count of removed messages by those that are skipped, so that its window starts as before."""
    state = agent.conversation_manager_state
    removed = state.get(_REMOVED_COUNT) if isinstance(state, dict) else None
    if not isinstance(removed, int) or removed <= 0:
        return
    issues = ImportIssues(skip_bad=True)
    for message_id, message in zip(range(removed), messages(), strict=False):
        issues.parse_or_skip(message.file, _message_parser(session, agent.agent_id, message, message_id))
    agent.conversation_manager_state = {**state, _REMOVED_COUNT: removed - len(issues.skipped)}
