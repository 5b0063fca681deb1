"""Calls to be made in a worker of a process pool, which imports their module."""

from strands_psycopg import PostgresSessionRepository


def hold_at_once(dsn: str, session_id: str) -> str:
    """Hold a session, unless another holder has it."""
    with PostgresSessionRepository(dsn) as repository, repository.lease(session_id, wait=0):
        return session_id
