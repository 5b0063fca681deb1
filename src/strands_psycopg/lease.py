"""Leases: one writer of a session at a time, across processes and machines.

A session-level advisory lock would pin a connection for a whole model call, and a pooler would hand it to someone
else, so a lease is a row with a term and an expiry by the server's clock. A background thread renews it. Writes carry
the term and lock the row (see ``repository``), so that a holder that was stopped for too long cannot write any more.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple
from uuid import UUID, uuid4

from typing_extensions import Self

from strands_psycopg import worker
from strands_psycopg.database import Database
from strands_psycopg.errors import SessionBusyError, StrandsPsycopgError
from strands_psycopg.process_forks import after_fork_in_child

logger = logging.getLogger(__name__)

# make_interval counts seconds, where an interval of a day would count as what the clock's change makes of it.
_TAKE = """
    WITH taken AS (
        INSERT INTO {leases} AS l (session_id, term, acquired_at, expires_at)
        SELECT %(session_id)s::text, %(term)s::uuid, now(), now() + make_interval(secs => %(ttl)s) WHERE {in_time}
        ON CONFLICT (session_id) DO UPDATE
        SET term = EXCLUDED.term, acquired_at = EXCLUDED.acquired_at, expires_at = EXCLUDED.expires_at
        WHERE l.term = EXCLUDED.term OR EXCLUDED.expires_at - l.expires_at > make_interval(secs => %(ttl)s)
        RETURNING l.term
    )
    SELECT CASE WHEN {in_time} THEN {server_time} END, taken.term IS NOT NULL, held.since, held.until, held.seconds
    FROM (SELECT 1) AS one LEFT JOIN taken ON true LEFT JOIN (
        SELECT to_char(acquired_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS since,
            to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS until,
            extract(epoch FROM expires_at - now())::float8 AS seconds
        FROM {leases} WHERE session_id = %(session_id)s
    ) AS held ON true
"""

_RENEW = """
    UPDATE {leases} SET expires_at = now() + make_interval(secs => %(ttl)s)
    WHERE session_id = ANY(%(session_ids)s) AND term = ANY(%(terms)s)
    RETURNING term::text
"""

_RELEASE = "DELETE FROM {leases} WHERE session_id = %(session_id)s AND term = %(term)s"

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0

# When a lost lease is renewed again; no lock can be waited for so long.
_NEVER = float("inf")
_LONGEST_NAP = 3600.0


class Lease:
    """The right to write one session, for as long as the block of ``with`` or ``async with`` runs.

    Entering waits until no one else holds the session, holding no connection meanwhile.

    Attributes:
        session_id: The session.
        term: What tells this holder from the ones before and after it.
        ttl: For how many seconds the session stays held if its holder dies.
    """

    def __init__(self, leases: "Leases", session_id: str, *, wait: float, ttl: float) -> None:
        self.session_id = session_id
        self.term = uuid4()
        # One type for every ttl, so that the server keeps one prepared statement.
        self.ttl = float(ttl)
        self._leases = leases
        self._wait = wait
        self._entered = False
        self._give_up_at = 0.0
        self._pause = _FIRST_PAUSE

    def __enter__(self) -> Self:
        """Wait for the session and hold it.

        Raises:
            SessionBusyError: Someone else held it for the whole of ``wait``.
            RuntimeError: The lease was entered before.
            DatabaseUnavailableError: The database could not be reached in time.
        """
        self._begin()
        try:
            while (pause := self._take()) is not None:
                time.sleep(pause)
        except BaseException:
            self._leases.leave(self)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leases.leave(self)

    async def __aenter__(self) -> Self:
        """Wait for the session and hold it, as ``__enter__`` does; a cancelled wait leaves nothing held."""
        self._begin()
        try:
            while (pause := await worker.run(self._take)) is not None:  # noqa: ASYNC110
                await asyncio.sleep(pause)
        except BaseException:
            await worker.run(partial(self._leases.leave, self))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await worker.run(partial(self._leases.leave, self))

    def _begin(self) -> None:
        if self._entered:
            raise RuntimeError("a lease can be entered once; call lease() for another")
        self._entered = True
        self._give_up_at = time.monotonic() + self._wait

    def _take(self) -> float | None:
        """Try once; give the seconds to wait before the next try, or None if the session is held now."""
        held = self._leases.take(self)
        if held is None:
            return None
        remaining = self._give_up_at - time.monotonic()
        if remaining <= 0:
            raise SessionBusyError(
                f"session {self.session_id!r} is held by another writer since {held.since} until {held.until} at "
                f"least, and was not free within {self._wait:g} s; try again later or wait longer",
                session_id=self.session_id,
                since=held.since,
                until=held.until,
            )
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._pause * 1.5, _LONGEST_PAUSE)
        return min(pause, remaining, max(held.seconds, _FIRST_PAUSE))


class _Held(NamedTuple):
    """Who else holds a session: since when, until when at least, and for how many seconds more."""

    since: str
    until: str
    seconds: float


class Leases:
    """The leases that this process holds on sessions of one database, schema and prefix.

    One thread renews all of them, a third of their time apart; it starts with the first lease and ends with the last.
    A forked child holds none of them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._take = database.statement(_TAKE)
        self._renew = database.statement(_RENEW)
        self._release = database.statement(_RELEASE)
        self._start()
        after_fork_in_child(self._start)

    def _start(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[Lease, float] = {}
        self._renewer: threading.Thread | None = None

    def term(self, session_id: str) -> UUID | None:
        """Give the term that writes to a session carry, if this process holds it."""
        lease = self.current(session_id)
        return None if lease is None else lease.term

    def current(self, session_id: str) -> Lease | None:
        """Give the lease that this process holds on a session, or has lost without having left its block."""
        with self._changed:
            # The newest, since an older one that is still in its block must have been lost.
            return next((lease for lease in reversed(self._held) if lease.session_id == session_id), None)

    def holds(self, lease: Lease) -> bool:
        """Tell whether a lease's block has been entered and not yet left, in this process."""
        return lease in self._held

    def take(self, lease: Lease) -> _Held | None:
        """Try to hold a session; give None if it is held by ``lease`` now, otherwise who holds it."""
        parameters = {
            "session_id": lease.session_id,
            "term": lease.term,
            "ttl": lease.ttl,
        }
        # The server's clock starts later than this one, so the renewal is not late.
        renew_at = time.monotonic() + lease.ttl / 3
        operation = f"taking a lease on session {lease.session_id!r}"
        try:
            rows = self._database.write(operation, self._take, parameters).rows
        except StrandsPsycopgError:
            raise
        except BaseException:
            # Interrupted, by Ctrl-C or another signal, perhaps when the server had just carried it out.
            self._free(lease)
            raise
        _, taken, since, until, seconds = rows[0]
        if not taken:
            return _Held(since or "just now", until or "soon", seconds or 0.0)
        with self._changed:
            self._held[lease] = renew_at
            if self._renewer is None:
                renewer = threading.Thread(target=self._renew_until_left, name="strands-psycopg-leases", daemon=True)
                renewer.start()
                self._renewer = renewer
            else:
                self._changed.notify()
        return None

    def leave(self, lease: Lease) -> None:
        """Free a session, unless another holder has taken over or this process never held it.

        If the database cannot be reached, that is logged, and the session is free after its ``ttl``.
        """
        with self._changed:
            if self._held.pop(lease, None) is None:
                return
            self._changed.notify()
        self._free(lease)

    def _free(self, lease: Lease) -> None:
        parameters = {"session_id": lease.session_id, "term": lease.term}
        operation = f"releasing the lease on session {lease.session_id!r}"
        try:
            self._database.fetch(operation, self._release, parameters)
        except StrandsPsycopgError as error:
            logger.warning(
                "session_id=<%s>, ttl=<%.1f>, error=<%s> | lease not released, free after its ttl",
                lease.session_id,
                lease.ttl,
                error,
            )

    def close(self) -> None:
        """Free every session that is still held."""
        for lease in list(self._held):
            self.leave(lease)

    def _renew_until_left(self) -> None:
        while True:
            with self._changed:
                while self._held and (pause := min(self._held.values()) - time.monotonic()) > 0:
                    self._changed.wait(min(pause, _LONGEST_NAP))
                if not self._held:
                    self._renewer = None
                    return
                by_ttl: dict[float, list[Lease]] = {}
                for lease, renew_at in self._held.items():
                    if renew_at < _NEVER:
                        by_ttl.setdefault(lease.ttl, []).append(lease)
            for ttl, leases in by_ttl.items():
                self._renew_leases(ttl, leases)

    def _renew_leases(self, ttl: float, leases: Sequence[Lease]) -> None:
        renew_at = time.monotonic() + ttl / 3
        parameters = {
            "ttl": ttl,
            "session_ids": [lease.session_id for lease in leases],
            "terms": [lease.term for lease in leases],
        }
        try:
            rows = self._database.fetch(f"renewing {len(leases)} leases", self._renew, parameters).rows
        except Exception as error:
            # Whatever it is, such as a lack of files, the thread goes on: without it every lease would be lost.
            logger.warning("leases=<%d>, error=<%s> | leases not renewed, trying again", len(leases), error)
            renew_at = time.monotonic() + min(ttl / 3, 1.0)
            lost = []
        else:
            renewed = {term for (term,) in rows}
            lost = [lease for lease in leases if str(lease.term) not in renewed]
        with self._changed:
            for lease in self._held.keys() & leases:
                self._held[lease] = _NEVER if lease in lost else renew_at
                if lease in lost:
                    logger.warning("session_id=<%s> | lease lost to another holder", lease.session_id)
