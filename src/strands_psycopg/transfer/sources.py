"""Where an import takes sessions from, and what all such places have in common."""

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from strands.types.session import SessionAgent, SessionMessage, decode_bytes_values

from strands_psycopg.errors import BadFileError
from strands_psycopg.transfer.rows import MessageRow, Row, SessionRow, agent_row, message_row

_T = TypeVar("_T")

# Where Strands' conversation managers keep how many messages are no longer in the window: a position in the list.
_REMOVED = "removed_message_count"


class UnreadableError(Exception):
    """A file cannot be read; the text says why, without its name."""


class ImportIssues:
    """What is noticed while a session is read.

    Args:
        skip_bad: Leave out what cannot be read, instead of failing.
        advice: What to do about it if not.

    Attributes:
        skipped: What was left out.
        gaps_closed: How many gaps in the indexes of messages were closed.
    """

    def __init__(
        self, *, skip_bad: bool, advice: str = "mend or remove it, or have bad files skipped (--skip-bad)"
    ) -> None:
        self.skip_bad = skip_bad
        self._advice = advice
        self.skipped: list[str] = []
        self.gaps_closed = 0

    def bad(self, file: str, reason: str) -> None:
        """Leave a file out.

        Raises:
            BadFileError: Nothing may be left out.
        """
        if not self.skip_bad:
            raise BadFileError(f"{file} {reason}; {self._advice}", file=file)
        self.skipped.append(f"{file} {reason}")

    def parsed(self, file: str, read: Callable[[], _T]) -> _T | None:
        """Give what is read, or None if it is left out.

        Raises:
            BadFileError: It cannot be read and nothing may be left out.
        """
        try:
            return read()
        except UnreadableError as error:
            self.bad(file, str(error))
        except RecursionError:
            self.bad(file, "is nested too deeply")
        except KeyError as error:
            self.bad(file, f"lacks {error}")
        except (ValueError, TypeError) as error:
            self.bad(file, f"cannot be read: {error}")
        return None


class SourceSession(Protocol):
    """A session in its source; it can be read several times."""

    @property
    def session_id(self) -> str:
        """Its id."""

    def rows(self, issues: ImportIssues) -> Iterator[Row]:
        """Give its own row, then each agent's before those of its messages, and those of multi-agents.

        No row at all means that the session is left out.

        Raises:
            TransferError: It cannot be read.
        """


class Source(Protocol):
    """A place with sessions."""

    def sessions(self) -> Generator[SourceSession, None, None]:
        """Give them one after another; each is to be read before the next one is taken.

        Raises:
            TransferError: The place cannot be read.
        """


class SourceMessage(NamedTuple):
    """A message that is still to be read.

    Attributes:
        number: Its index in its source.
        file: What to call it if it cannot be read.
        read: Gives what ``SessionMessage.to_dict`` gave.
    """

    number: int
    file: str
    read: Callable[[], Mapping[str, Any]]


SourceMessages: TypeAlias = Callable[[], Iterator[SourceMessage]]


def agent_rows(
    issues: ImportIssues, session: SessionRow, file: str, agent: Callable[[], SessionAgent], messages: SourceMessages
) -> Iterator[Row]:
    """Give the rows of an agent and its messages, which are numbered anew, without gaps.

    Args:
        issues: Takes what is noticed.
        session: The agent's session; its time of creation stands for missing ones.
        file: What to call the agent if it cannot be read.
        agent: Reads it.
        messages: Gives its messages in order, and gives them again if asked again.
    """
    found = issues.parsed(file, agent)
    if found is None:
        return
    if issues.skip_bad:
        _count_skipped(session, found, messages)
    row = issues.parsed(file, lambda: agent_row(found))
    if row is None:
        return
    yield row
    position = 0
    expected = 0
    for message in messages():
        issues.gaps_closed += message.number > expected
        expected = message.number + 1
        read = _reader(session, found.agent_id, message, position)
        message_found = issues.parsed(message.file, read)
        if message_found is not None:
            yield message_found
            position += 1


def with_times(session: SessionRow, record: Mapping[str, Any]) -> dict[str, Any]:
    """Give a record in which the session's time of creation stands where there is none."""
    created_at = record.get("created_at") or session.created_at.isoformat()
    return {**record, "created_at": created_at, "updated_at": record.get("updated_at") or created_at}


def _reader(session: SessionRow, agent_id: str, message: SourceMessage, position: int) -> Callable[[], MessageRow]:
    def read() -> MessageRow:
        record = with_times(session, message.read())
        # As SessionMessage.from_dict does, but that takes longer than all the rest together.
        documents = (
            decode_bytes_values(record["message"]),
            position,
            decode_bytes_values(record.get("redact_message")),
        )
        return message_row(agent_id, SessionMessage(*documents, record["created_at"], record["updated_at"]))

    return read


def _count_skipped(session: SessionRow, agent: SessionAgent, messages: SourceMessages) -> None:
    """Have the agent's window begin with the same message when some before it are left out."""
    state = agent.conversation_manager_state
    removed = state.get(_REMOVED) if isinstance(state, dict) else None
    if not isinstance(removed, int) or removed <= 0:
        return
    issues = ImportIssues(skip_bad=True)
    for position, message in zip(range(removed), messages(), strict=False):
        issues.parsed(message.file, _reader(session, agent.agent_id, message, position))
    agent.conversation_manager_state = {**state, _REMOVED: removed - len(issues.skipped)}
