"""strands-session-sql."""

from typing import Any

from sqlalchemy import create_engine
from strands_session_sql import SQLSessionManager

from benchmarks.contenders.urls import url


class Contender:
    """Keeps sessions through SQLAlchemy and psycopg 3, with as many connections as the others."""

    def __init__(self, dsn: str, folder: str) -> None:
        self._engine = create_engine(url("postgresql+psycopg", dsn), pool_size=10)
        self.manager("the first creates the table")

    def manager(self, session_id: str) -> Any:
        """Return a session manager."""
        return SQLSessionManager(session_id, engine=self._engine)

    def close(self) -> None:
        """Close the pool."""
        self._engine.dispose()
