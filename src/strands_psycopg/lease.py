"""Leases: one writer of a session at a time, across processes and machines.

A session-level advisory lock would pin a connection for a whole model call, and a pooler would give that connection to
another client. So a lease is a row with a term and an expiry on the server's clock, renewed by a background thread.
Writes carry the term and lock the row (see ``repository``), so that a holder that was suspended for too long can no
longer write.
"""

import asyncio
import logging
import random
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutinefunction
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID, uuid4

from psycopg.rows import TupleRow
from typing_extensions import Self

from strands_psycopg import telemetry
from strands_psycopg.calls import is_interrupted
from strands_psycopg.database import Database
from strands_psycopg.errors import (
    DatabaseUnavailableError,
    SessionBusyError,
    StrandsPsycopgError,
    owner_error,
    suppressed_error,
)
from strands_psycopg.process_forks import after_fork_in_child
from strands_psycopg.system_errors import NO_THREAD, is_shutting_down
from strands_psycopg.uncopyable import Uncopyable
from strands_psycopg.workers import Workers

logger = logging.getLogger(__name__)

_R = TypeVar("_R")

# make_interval(secs => ...), since an interval of a day has 23 or 25 hours where daylight saving time begins or ends.
_ACQUIRE = """
    WITH acquired AS (
        INSERT INTO {leases} AS l (session_id, term, acquired_at, expires_at)
        SELECT %(session_id)s::text, %(term)s::uuid, pg_catalog.now(),
            pg_catalog.now() + pg_catalog.make_interval(secs => %(ttl)s)
        WHERE {in_time} AND (%(owner)s::text IS NULL OR NOT EXISTS (
            SELECT true FROM {sessions} WHERE session_id = %(session_id)s AND owner IS DISTINCT FROM %(owner)s::text
        ))
        ON CONFLICT (session_id) DO UPDATE
        SET term = EXCLUDED.term, acquired_at = EXCLUDED.acquired_at, expires_at = EXCLUDED.expires_at
        WHERE l.term = EXCLUDED.term OR EXCLUDED.expires_at - l.expires_at > pg_catalog.make_interval(secs => %(ttl)s)
        RETURNING l.term
    )
    SELECT CASE WHEN {in_time} THEN {server_time} END, acquired.term IS NOT NULL,
        %(owner)s::text IS NOT NULL AND EXISTS (
            SELECT true FROM {sessions} WHERE session_id = %(session_id)s AND owner IS DISTINCT FROM %(owner)s::text
        ),
        held.since, held.until, held.seconds
    FROM (SELECT 1) AS one LEFT JOIN acquired ON true LEFT JOIN (
        SELECT pg_catalog.to_char(acquired_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS since,
            pg_catalog.to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS until,
            extract(epoch FROM expires_at - pg_catalog.now()) AS seconds
        FROM {leases} WHERE session_id = %(session_id)s
    ) AS held ON true
"""

_RENEW = """
    UPDATE {leases} SET expires_at = pg_catalog.now() + pg_catalog.make_interval(secs => %(ttl)s)
    WHERE session_id = ANY(%(session_ids)s) AND term = ANY(%(terms)s)
    RETURNING term::text
"""

_READ_ALL = """
    SELECT session_id, term::text, pg_catalog.to_char(acquired_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        pg_catalog.to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    FROM {leases} WHERE expires_at > pg_catalog.now() ORDER BY expires_at, session_id
"""

_RELEASE = "DELETE FROM {leases} WHERE session_id = %(session_id)s AND term = %(term)s"

# By how many seconds the clocks of two nodes may differ.
_MAX_CLOCK_DIFFERENCE = 60.0

_MIN_PAUSE = 0.05
_MAX_PAUSE = 1.0

# When a lost lease is renewed: never.
_NO_RENEWAL = float("inf")
# The queue accepts no infinite timeout.
_MAX_QUEUE_TIMEOUT = 3600.0


class _ExitMethod(Generic[_R]):
    """Descriptor of ``__exit__`` and ``__aexit__``: the ``with`` statement has the only reference to what it returns.

    Signal handlers may raise at the first line of such a method, or at the last one of ``__enter__``. In whatever way
    the block ends, the statement drops its reference, and a callback without any Python code wakes the renewal
    thread.
    """

    def __init__(self, method: Callable[..., _R]) -> None:
        self._method = method
        self._is_coroutine = iscoroutinefunction(method)

    def __get__(self, lease: "Lease | None", owner: "type[Lease]") -> Callable[..., _R]:
        if lease is None:  # ``ExitStack`` calls it as a function
            return self._method
        if not self._is_coroutine:
            method = partial(self._method, lease)
            lease._observe_end(method)
            return method
        # The statement has only the coroutine while it awaits it.
        block = _Block()
        lease._observe_end(block)
        return partial(self._method, lease, block)


class _Block:
    """Lives as long as the block of an ``async with`` statement."""


class _BlockEnd(weakref.ref[Any]):
    """Refers to what lives as long as a lease's block.

    Attributes:
        lease: The lease.
    """

    lease: "Lease"


class Lease(Uncopyable):
    """The exclusive right to write a session, for the duration of a ``with`` or ``async with`` block.

    Entering waits until no one else holds the session; no connection is held during the wait.

    Attributes:
        session_id: The session.
        term: Distinguishes this holder from earlier and later ones.
        ttl: How many seconds the session stays held if its holder dies.
    """

    _why_uncopyable = "belongs to the block that it is entered for; call lease() of the repository for another one"

    def __init__(self, leases: "Leases", session_id: str, *, wait: float, ttl: float, owner: str | None) -> None:
        self.session_id = session_id
        self.term = uuid4()
        # Always a float, so that the server needs only one prepared statement.
        self.ttl = float(ttl)
        self._leases = leases
        self._owner = owner
        self._wait = wait
        self._entered = False
        self._deadline = 0.0
        self._pause = _MIN_PAUSE
        self._renew_at = _NO_RENEWAL
        # Whether a statement renews it alone, since the one that renews all leases failed.
        self._is_renewed_alone = False
        # Whether an attempt to acquire it may have succeeded unnoticed.
        self._in_doubt = False
        self._block_end: _BlockEnd | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} session_id={self.session_id!r} term={self.term} ttl={self.ttl:g}>"

    def __enter__(self) -> Self:
        """Wait for the session and hold it.

        Raises:
            SessionBusyError: Another writer held it during the whole ``wait``.
            SessionOwnerError: The session does not belong to the lease's owner.
            RuntimeError: The lease has been entered before.
            DatabaseUnavailableError: The database could not be reached in time.
        """
        self._start_waiting()
        try:
            with telemetry.span("lease.wait", self.session_id):
                while (pause := self._leases.workers.run(self._try_to_acquire)) is not None:
                    time.sleep(pause)
        except BaseException:
            self._leave()
            raise
        return self

    async def __aenter__(self) -> Self:
        """Wait for the session and hold it, as ``__enter__`` does; after a cancelled wait it is not held."""
        self._start_waiting()
        try:
            with telemetry.span("lease.wait", self.session_id):
                while (pause := await self._leases.workers.run_async(self._try_to_acquire)) is not None:  # noqa: ASYNC110
                    await asyncio.sleep(pause)
        except BaseException:
            await self._leave_async()
            raise
        return self

    def _leave(self, *_: object) -> None:
        self._leases.workers.run(partial(self._leases.release, self))

    async def _leave_async(self, *_: object) -> None:
        await self._leases.workers.run_async(partial(self._leases.release, self))

    __exit__ = _ExitMethod[None](_leave)
    __aexit__ = _ExitMethod[Awaitable[None]](_leave_async)

    def _observe_end(self, block: object) -> None:
        """Wake the renewal thread when ``block`` is no longer referred to, unless the lease has been entered before."""
        if not self._entered:
            self._block_end = _BlockEnd(block, self._leases.wake_renewal)
            self._block_end.lease = self

    def _start_waiting(self) -> None:
        if self._entered:
            raise RuntimeError("a lease can be entered only once; call lease() for another one")
        self._entered = True
        self._deadline = time.monotonic() + self._wait

    def _try_to_acquire(self) -> float | None:
        """Try once; return the seconds to wait before the next attempt, or None if the session is held now."""
        holder = self._leases.acquire(self)
        if holder is None:
            return None
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise SessionBusyError(
                f"session {self.session_id!r} has been held by another writer since {holder.since} "
                f"(until {holder.until} at least) and was not released within {self._wait:g} s; "
                "try again later or wait longer",
                session_id=self.session_id,
                since=holder.since,
                until=holder.until,
            )
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._pause * 1.5, _MAX_PAUSE)
        return min(pause, remaining, max(holder.seconds, _MIN_PAUSE))


class _Holder(NamedTuple):
    """The other holder of a session: since when, until when at least, and how many seconds that is from now."""

    since: str
    until: str
    seconds: float


@dataclass(frozen=True)
class LeaseSummary:
    """A lease that some process holds.

    Attributes:
        session_id: The session.
        term: Distinguishes this holder from earlier and later ones.
        since: When it was acquired, in UTC by the server's clock, as ISO 8601.
        until: When it expires if its holder does not renew it, in the same form.
    """

    session_id: str
    term: str
    since: str
    until: str


class Leases:
    """The leases that this process holds on sessions of one database, schema and prefix.

    One thread renews all of them, each after every third of its ttl. It starts with the first lease and ends with the
    last. A forked child holds none of them.

    Attributes:
        workers: The threads of the database.
        wake_renewal: Wakes that thread with the end of a block, or None. It is a single instruction, as is each change
            of what is held, since signal handlers may interrupt the main thread between any two.
    """

    def __init__(self, database: Database) -> None:
        self.workers: Workers = database.workers
        self._database = database
        self._acquire = database.statement(_ACQUIRE)
        self._renew = database.statement(_RENEW)
        self._release = database.statement(_RELEASE)
        self._read_all = database.statement(_READ_ALL)
        self._reset()
        after_fork_in_child(self._reset)
        telemetry.observe_leases(self)

    def _reset(self) -> None:
        self._held: dict[Lease, None] = {}
        self._block_ends: SimpleQueue[_BlockEnd | None] = SimpleQueue()
        self.wake_renewal = self._block_ends.put
        # The thread that removes the only item starts the renewal thread, which puts it back when it ends.
        self._renewal_stopped = deque([True])

    def count(self) -> int:
        """Return how many leases this process holds."""
        return len(self._held)

    def read_all(self) -> list[LeaseSummary]:
        """Return the leases that are held by any process, ordered by expiry."""
        return [LeaseSummary(*row) for row in self._database.fetch("listing leases", self._read_all, {}).rows]

    def term(self, session_id: str) -> UUID | None:
        """Return the term that writes to a session must carry, or None if this process has no lease on it."""
        lease = self.current(session_id)
        return None if lease is None else lease.term

    def current(self, session_id: str) -> Lease | None:
        """Return this process's lease on a session, even a lost one if its block has not ended, or None."""
        # The newest, since an older one whose block has not ended must have been lost.
        return next((lease for lease in reversed(self._held.copy()) if lease.session_id == session_id), None)

    def holds(self, lease: Lease) -> bool:
        """Return whether a lease's block has been entered, and not yet left, in this process."""
        return lease in self._held

    def acquire(self, lease: Lease) -> _Holder | None:
        """Try to hold a session; return None if ``lease`` holds it now, otherwise its holder.

        Raises:
            SessionOwnerError: The session does not belong to the lease's owner.
            DatabaseError: No one holds it, but the lease was not stored.
        """
        parameters = {
            "session_id": lease.session_id,
            "term": lease.term,
            "ttl": lease.ttl,
            "owner": lease._owner,
        }
        # Counted from before the server reads its clock, so that the renewal is not late.
        lease._renew_at = time.monotonic() + lease.ttl / 3
        operation = f"acquiring a lease on session {lease.session_id!r}"
        lease._in_doubt = True
        try:
            row = self._run_acquire(operation, parameters)
        except StrandsPsycopgError:
            lease._in_doubt = is_interrupted()
            raise
        _, acquired, of_another_owner, since, until, seconds = row
        if acquired:
            self._held[lease] = None
            self._start_renewal(operation)
        lease._in_doubt = False
        if of_another_owner and not acquired:
            raise owner_error(operation, lease.session_id)
        return None if acquired else _Holder(since or "just now", until or "soon", float(seconds or 0))

    def _run_acquire(self, operation: str, parameters: dict[str, object]) -> TupleRow:
        """Run the statement; once more if no one holds the session, since another may have taken it meanwhile."""
        for _ in range(2):
            [row] = self._database.write(operation, self._acquire, parameters).rows
            _, acquired, of_another_owner, *_, seconds = row
            if acquired or of_another_owner or (seconds is not None and seconds > -_MAX_CLOCK_DIFFERENCE):
                return row
        raise suppressed_error(operation)

    def release(self, lease: Lease) -> None:
        """Release a session, unless another holder has taken over or this process has never held it.

        If the database cannot be reached, that is logged, and the lease expires after its ``ttl``.
        """
        if lease in self._held:
            self._held.pop(lease, None)
            self.wake_renewal(None)
        elif not lease._in_doubt:
            return
        lease._in_doubt = False
        parameters = {"session_id": lease.session_id, "term": lease.term}
        operation = f"releasing the lease on session {lease.session_id!r}"
        try:
            self._database.fetch(operation, self._release, parameters)
        except StrandsPsycopgError as error:
            logger.warning(
                "session_id=<%s>, ttl=<%.1f>, error=<%s> | lease not released, it expires after its ttl",
                lease.session_id,
                lease.ttl,
                error,
            )

    def close(self) -> None:
        """Release every session that is still held."""
        for lease in self._held.copy():
            self.workers.run(partial(self.release, lease))

    def _start_renewal(self, operation: str) -> None:
        """Start the renewal thread, or wake it for a lease that was acquired.

        Raises:
            DatabaseUnavailableError: The thread cannot be started.
        """
        try:
            self._renewal_stopped.pop()
        except IndexError:
            self.wake_renewal(None)
            return
        try:
            Thread(target=self._run_renewal, name="strands-psycopg-leases", daemon=True).start()
        except RuntimeError as error:
            self._renewal_stopped.append(True)
            if not is_shutting_down(error):
                raise DatabaseUnavailableError(f"{operation}: {NO_THREAD}") from error

    def _run_renewal(self) -> None:
        while True:
            while self._held:
                next_renewal = min((lease._renew_at for lease in self._held.copy()), default=0.0)
                if (pause := next_renewal - time.monotonic()) <= 0:
                    self._renew_all()
                    continue
                try:
                    end = self._block_ends.get(timeout=min(pause, _MAX_QUEUE_TIMEOUT))
                except Empty:
                    continue
                if end is not None and end.lease._block_end is end:
                    self.release(end.lease)
            self._renewal_stopped.append(True)
            if not self._held:
                return
            # A lease has been acquired meanwhile.
            try:
                self._renewal_stopped.pop()
            except IndexError:
                return  # another thread has been started for it

    def _renew_all(self) -> None:
        groups: dict[float | Lease, list[Lease]] = {}
        for lease in self._held.copy():
            if lease._renew_at < _NO_RENEWAL:
                groups.setdefault(lease if lease._is_renewed_alone else lease.ttl, []).append(lease)
        failed = 0
        last_error: Exception | None = None
        for leases in sorted(groups.values(), key=lambda leases: leases[0]._is_renewed_alone):
            if min(lease._renew_at for lease in leases) <= time.monotonic():
                try:
                    self._renew_leases(leases)
                except Exception as error:
                    # The thread survives any error; without it every lease would be lost.
                    last_error = error
                    failed += len(leases)
                    _retry_renewal(leases)
        if failed:
            logger.warning("leases=<%d>, error=<%s> | leases not renewed, retrying", failed, last_error)

    def _renew_leases(self, leases: Sequence[Lease]) -> None:
        ttl = leases[0].ttl
        renew_at = time.monotonic() + ttl / 3
        parameters = {
            "ttl": ttl,
            "session_ids": [lease.session_id for lease in leases],
            "terms": [lease.term for lease in leases],
        }
        # Leases that are renewed one by one must not wait for each other.
        retry_timeout = 0.0 if leases[0]._is_renewed_alone else ttl / 6
        operation = f"renewing {len(leases)} leases"
        rows = self._database.fetch(operation, self._renew, parameters, retry_timeout=retry_timeout).rows
        renewed = {term for (term,) in rows}
        for lease in leases:
            lease._is_renewed_alone = False
            is_lost = str(lease.term) not in renewed
            lease._renew_at = _NO_RENEWAL if is_lost else renew_at
            if is_lost and lease in self._held:
                telemetry.leases_lost.add(1)
                logger.warning(
                    "session_id=<%s> | lease lost: another holder has taken over, or the session was deleted",
                    lease.session_id,
                )


def _retry_renewal(leases: Sequence[Lease]) -> None:
    """Plan the next attempt to renew leases that were not renewed by one statement: each by its own, at once.

    In a distributed database, the node that has some of them may be lost, and the others must not be lost with it.
    """
    for lease in leases:
        lease._renew_at = time.monotonic() + (min(lease.ttl / 3, 1.0) if len(leases) == 1 else 0.0)
        lease._is_renewed_alone = len(leases) > 1 or lease._is_renewed_alone
