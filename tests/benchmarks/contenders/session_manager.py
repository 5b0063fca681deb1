"""strands-postgresql-session-manager."""

from typing import Any

from sqlalchemy import create_engine
from sqlmodel import SQLModel
from strands_postgresql_session_manager import PostgresSessionManager

from benchmarks.contenders.urls import url


class Contender:
    """Keeps sessions through SQLModel and psycopg2, with as many connections as the others."""

    def __init__(self, dsn: str, folder: str) -> None:
        self._engine = create_engine(url("postgresql+psycopg2", dsn), pool_size=10)
        SQLModel.metadata.create_all(self._engine)

    def manager(self, session_id: str) -> Any:
        """Return a session manager."""
        return PostgresSessionManager(session_id=session_id, engine=self._engine)

    def close(self) -> None:
        """Close the pool."""
        self._engine.dispose()
