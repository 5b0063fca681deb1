"""Errors that are raised in a worker of a process pool reach the process that waits for its result."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from strands_psycopg import PostgresSessionRepository, SessionBusyError
from support.calls import hold_at_once

DEADLINE = 60


def test_error_in_a_worker_reaches_the_caller_with_its_attributes(
    repository: PostgresSessionRepository, dsn: str
) -> None:
    context = multiprocessing.get_context("spawn")
    with repository.lease("s"):
        with pytest.raises(SessionBusyError) as here:
            repository.lease("s", wait=0).__enter__()
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            with pytest.raises(SessionBusyError) as in_an_executor:
                executor.submit(hold_at_once, dsn, "s").result(DEADLINE)
            # It broke nothing.
            assert executor.submit(hold_at_once, dsn, "t").result(DEADLINE) == "t"
        with context.Pool(1) as pool, pytest.raises(SessionBusyError) as in_a_pool:
            pool.apply_async(hold_at_once, (dsn, "s")).get(DEADLINE)

    for raised in (in_an_executor, in_a_pool):
        error = raised.value
        assert (error.session_id, error.since) == ("s", here.value.since)
        assert error.until >= here.value.until
        assert str(error).startswith("session 's' has been held by another writer since")
