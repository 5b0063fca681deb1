"""strands-postgres-storage."""

from typing import Any

from sqlalchemy import create_engine
from strands_postgres_storage import PostgresStorage

from benchmarks.contenders.urls import url


class Contender:
    """Keeps values through SQLAlchemy and psycopg2."""

    def __init__(self, dsn: str, folder: str) -> None:
        self._engine = create_engine(url("postgresql+psycopg2", dsn), pool_size=10)
        self.storage: Any = PostgresStorage(engine=self._engine)

    def close(self) -> None:
        """Close the pool."""
        self._engine.dispose()
