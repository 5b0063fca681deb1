"""What all writes of a manager have in common: the lease's term, and the refusal to write after a failure."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from strands_psycopg import telemetry
from strands_psycopg.errors import DatabaseUnavailableError, SessionConflictError
from strands_psycopg.lease import Leases


class WriteGuard:
    """Lets a manager write for as long as it is in step with the stored session.

    Args:
        session_id: The session.
        leases: The leases of its repository.
        owner: Whose session it must be; None if it may be anyone's.

    Attributes:
        owner: The same.
    """

    def __init__(self, session_id: str, leases: Leases, *, owner: str | None) -> None:
        self.owner = owner
        self._session_id = session_id
        self._leases = leases
        self._lease = leases.current(session_id)
        self._failure: Exception | None = None

    @property
    def term(self) -> UUID | None:
        """The term that writes carry: of the lease in whose block the manager was built, or of a later one."""
        if self._lease is not None and self._leases.holds(self._lease):
            return self._lease.term
        return self._leases.term(self._session_id)

    @contextmanager
    def writing(self, agent_id: str) -> Iterator[None]:
        """Remember the error of the first write that fails or is interrupted, and raise it in place of later writes.

        After such a write, the agent in memory and the stored session may differ.

        Args:
            agent_id: The agent, graph or swarm that is written.
        """
        if self._failure is not None:
            # Without the traceback of earlier refusals, which would grow with each.
            raise self._failure.with_traceback(None)
        began = time.monotonic()
        try:
            with telemetry.span("session.write", self._session_id, agent_id):
                yield
        except BaseException as error:
            if isinstance(error, SessionConflictError):
                telemetry.conflicts.add(1)
            self._failure = error if isinstance(error, Exception) else self._interruption()
            raise
        finally:
            telemetry.write_duration.record(time.monotonic() - began)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Refuse all later writes if a signal handler interrupts the block, which records what to write."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            self._failure = self._interruption()
            raise

    def _interruption(self) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            f"a write to session {self._session_id!r} was interrupted, so it is unknown what was stored; build a new "
            "session manager and agent"
        )
