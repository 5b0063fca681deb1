"""This library."""

from functools import cached_property
from typing import Any

from strands.types.session import SessionMessage

from benchmarks.contenders.filling import fill
from benchmarks.model import build, user_message
from benchmarks.works import Measured, timed
from strands_psycopg import PostgresSessionManager, PostgresSessionRepository, PostgresStorage
from strands_psycopg.codec import decode, encode


class Contender:
    """Keeps sessions and values."""

    def __init__(self, dsn: str, folder: str) -> None:
        self._dsn = dsn
        self._repository = PostgresSessionRepository(dsn, max_size=10)
        self._repository.ensure_schema()

    @cached_property
    def storage(self) -> PostgresStorage:
        """On the sessions' pool."""
        return PostgresStorage(self._repository)

    def manager(self, session_id: str) -> PostgresSessionManager:
        """Return a session manager."""
        return PostgresSessionManager(session_id, self._repository)

    def close(self) -> None:
        """Close the pool."""
        self._repository.close()

    def appends(self, *, messages: int, count: int) -> Measured:
        """Messages that are added to a session of so many."""
        session_id = fill(self._dsn, messages, "appends")
        indexes = iter(range(len(self._repository.list_messages(session_id, "default")), 1 << 60))

        def append() -> None:
            message = SessionMessage.from_message(user_message(), next(indexes))  # type: ignore[arg-type]
            self._repository.create_message(session_id, "default", message)

        return {"seconds": timed(append, count)}

    def last_of(self, *, messages: int, count: int) -> Measured:
        """Agents restored with the last 40 messages of so many."""
        session_id = fill(self._dsn, messages, "last_of")
        return {"seconds": timed(lambda: build(self.manager(session_id), window=40), count)}

    def codec(self, *, document: Any, count: int) -> Measured:
        """Encoding and decoding of a document."""
        stored = encode(document)
        assert decode(*stored) == document
        return {
            "encode": timed(lambda: encode(document), count),
            "decode": timed(lambda: decode(*stored), count),
        }
