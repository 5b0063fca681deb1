"""The result of an export or import."""

from dataclasses import astuple, dataclass
from operator import add

from strands_psycopg.errors import StrandsPsycopgError, TransferError


@dataclass(frozen=True)
class TransferResult:
    """Counts of what was exported or imported; results can be added.

    Attributes:
        sessions: Number of sessions that were written.
        agents: Number of agents in these sessions.
        messages: Number of messages in them.
        message_variants: Number of messages in a form that the agent's log does not have, such as summaries and
            truncated tool results.
        checkpoints: Number of checkpoints of their agents.
        multi_agents: Number of multi-agents in them.
        values: Number of values in their storages.
        unchanged: Number of sessions that already existed with the same content; ``sessions`` does not include them.
        gaps_closed: Number of gaps in message indexes that were closed.
        windows_omitted: Number of agents whose messages in memory are not those that Strands restores from its files.
        checkpoints_omitted: Number of checkpoints that were not exported, since Strands' files have no place for them.
        values_omitted: Number of values of storages that were not exported, for the same reason.
        skipped: What was left out because it could not be read: its name and the reason.
    """

    sessions: int = 0
    agents: int = 0
    messages: int = 0
    message_variants: int = 0
    checkpoints: int = 0
    multi_agents: int = 0
    values: int = 0
    unchanged: int = 0
    gaps_closed: int = 0
    windows_omitted: int = 0
    checkpoints_omitted: int = 0
    values_omitted: int = 0
    skipped: tuple[str, ...] = ()

    def __add__(self, other: "TransferResult") -> "TransferResult":
        return TransferResult(*map(add, astuple(self), astuple(other)))


class IncompleteTransferError(TransferError):
    """Some sessions of an import could not be stored; all others are stored.

    Attributes:
        result: The counts of what was stored.
        failures: The errors by session id.
    """

    def __init__(self, message: str, *, result: TransferResult, failures: dict[str, StrandsPsycopgError]) -> None:
        super().__init__(message)
        self.result = result
        self.failures = failures
