"""What an export or import has done."""

import dataclasses
from dataclasses import dataclass

from strands_psycopg.errors import StrandsPsycopgError, TransferError


@dataclass(frozen=True)
class TransferResult:
    """Counts of what was moved; results of several sessions can be added.

    Attributes:
        sessions: How many sessions were written.
        agents: How many agents in them, as ``messages`` and ``multi_agents`` count theirs.
        messages: How many messages.
        multi_agents: How many multi-agents.
        already_there: How many sessions were found to be there already, the very same; they are not in ``sessions``.
        gaps_closed: How many gaps in the indexes of messages were closed.
        skipped: What was left out since it could not be read, each with its name and the reason.
    """

    sessions: int = 0
    agents: int = 0
    messages: int = 0
    multi_agents: int = 0
    already_there: int = 0
    gaps_closed: int = 0
    skipped: tuple[str, ...] = ()

    def __add__(self, other: "TransferResult") -> "TransferResult":
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name) for field in dataclasses.fields(self)
        }
        return TransferResult(**sums)


class IncompleteTransferError(TransferError):
    """Some of the sessions of an import were refused; all others are stored.

    Attributes:
        result: What was done.
        failures: For each refused session the error that says why.
    """

    def __init__(self, message: str, *, result: TransferResult, failures: dict[str, StrandsPsycopgError]) -> None:
        super().__init__(message)
        self.result = result
        self.failures = failures
