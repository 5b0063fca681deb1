"""Errors that are raised in a worker of a process pool reach the process that waits for its result."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from strands_psycopg import PostgresSessionRepository, SessionBusyError
from support import processes
from support.calls import hold_at_once

DEADLINE = 60

IN_A_POOL = """
import multiprocessing, sys
from strands_psycopg import SessionBusyError
from support import processes
from support.calls import hold_at_once

with multiprocessing.get_context("fork").Pool(1) as pool:
    try:
        pool.apply_async(hold_at_once, (sys.argv[1], "s")).get(60)
    except SessionBusyError as error:
        print(error.session_id, error.since, error.until, error, sep="\\n")
"""


def check(held: SessionBusyError, session_id: str, since: str, until: str, text: str) -> None:
    """Check the error of a worker against one that was raised before, where the session is held."""
    assert (session_id, since) == (held.session_id, held.since)
    assert until >= held.until
    assert text.startswith("session 's' has been held by another writer since")


def test_error_in_a_worker_reaches_the_caller_with_its_attributes(
    repository: PostgresSessionRepository, dsn: str
) -> None:
    with repository.lease("s"):
        with pytest.raises(SessionBusyError) as here:
            repository.lease("s", wait=0).__enter__()
        # Such a worker imports everything anew.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            with pytest.raises(SessionBusyError) as in_an_executor:
                executor.submit(hold_at_once, dsn, "s").result(DEADLINE)
            # It broke nothing.
            assert executor.submit(hold_at_once, dsn, "t").result(DEADLINE) == "t"
        session_id, since, until, text = processes.run(IN_A_POOL, dsn).splitlines()

    error = in_an_executor.value
    check(here.value, error.session_id, error.since, error.until, str(error))
    check(here.value, session_id, since, until, text)
