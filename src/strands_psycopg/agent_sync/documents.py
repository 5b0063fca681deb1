"""What is stored of an agent besides its messages: state, conversation manager, interrupts, the model's own state."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from strands import Agent
from strands.agent.state import AgentState
from strands.types.session import SessionAgent

from strands_psycopg.agent_sync.fingerprint import Fingerprint, fingerprint
from strands_psycopg.repository.checkpoints import PINNED

if TYPE_CHECKING:
    from strands.types.agent import LocalAgent

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_PINNED_ATTRIBUTE = "_pin_first_applied"

# How often copying documents is tried, since other threads may change them meanwhile.
_MAX_COPIES = 1_000


@dataclass(frozen=True, eq=False)
class DocumentsVersion:
    """Shows whether an agent's documents may have changed since, without encoding or copying them.

    State and interrupts are counted by Strands, which raises their version at every change.
    """

    counted: tuple[tuple[object, int], ...]
    compared: tuple[Fingerprint, ...]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DocumentsVersion)
            and self.compared == other.compared
            and len(self.counted) == len(other.counted)
            and all(
                mine is theirs and version == other_version
                for (mine, version), (theirs, other_version) in zip(self.counted, other.counted, strict=True)
            )
        )


def documents_version(agent: "LocalAgent", manager_state: dict[str, Any]) -> DocumentsVersion:
    """Return the version of an agent's documents, with this state of its conversation manager."""
    counted = [agent.state, getattr(agent, "_interrupt_state", None)]
    compared = [manager_state, getattr(agent, "_model_state", None), _has_pinned(agent)]
    return DocumentsVersion(
        tuple((each, each._get_version()) for each in counted if each is not None), tuple(map(fingerprint, compared))
    )


def manager_state(agent: "LocalAgent") -> dict[str, Any]:
    """Return the state of an agent's conversation manager; an empty one if it has no manager."""
    return agent.conversation_manager.get_state() if isinstance(agent, Agent) else {}


def to_session_agent(agent: "LocalAgent", manager_state: dict[str, Any]) -> SessionAgent:
    """Return an agent as it is to be stored, with this state of its conversation manager."""
    # Before strands-agents 1.57 bidirectional agents had a method of their own.
    from_bidi_agent = getattr(SessionAgent, "from_bidi_agent", None)
    convert = SessionAgent.from_agent if from_bidi_agent is None or isinstance(agent, Agent) else from_bidi_agent
    stored = _copy_with_retries(lambda: convert(agent))
    stored.conversation_manager_state = manager_state
    if _has_pinned(agent):
        stored._internal_state = {**stored._internal_state, PINNED: True}
    return stored


def _copy_with_retries(copy_documents: Callable[[], _T]) -> _T:
    """Return a copy of documents that other threads may change meanwhile; older Strands does not prevent that."""
    for _ in range(_MAX_COPIES - 1):
        try:
            return copy_documents()
        except RuntimeError as error:
            logger.debug("error=<%s> | documents changed while they were copied, copying again", error)
    return copy_documents()


def load_documents(agent: "LocalAgent", stored: SessionAgent) -> list[Any]:
    """Set an agent's documents to stored ones.

    Returns:
        The messages that its conversation manager puts before those of the log, such as a summary.

    Raises:
        ValueError: The conversation manager is not of the kind whose state is stored.
    """
    agent.state = AgentState(stored.state)
    initialize_bidi = getattr(stored, "initialize_bidi_internal_state", None)
    if initialize_bidi is None or isinstance(agent, Agent):
        stored.initialize_internal_state(agent)
    else:
        initialize_bidi(agent)
    if not isinstance(agent, Agent):
        return []
    before = agent.conversation_manager.restore_from_session(stored.conversation_manager_state) or []
    set_pinned(agent, pinned=bool(stored._internal_state.get(PINNED)))
    return before


def snapshot_data(agent: "LocalAgent") -> dict[str, Any]:
    """Return an agent's documents and its system prompt, as Strands' snapshots have them, without messages."""
    data = agent.take_snapshot(preset="session", include=["system_prompt"], exclude=["messages"]).data
    return {**data, PINNED: True} if _has_pinned(agent) else data


def set_pinned(agent: "LocalAgent", *, pinned: bool) -> None:
    """Set whether an agent's conversation manager has pinned the first messages."""
    manager = getattr(agent, "conversation_manager", None)
    if hasattr(manager, _PINNED_ATTRIBUTE):
        setattr(manager, _PINNED_ATTRIBUTE, pinned)


def _has_pinned(agent: "LocalAgent") -> bool:
    return bool(getattr(getattr(agent, "conversation_manager", None), _PINNED_ATTRIBUTE, False))
