"""PostgreSQL persistence for Strands Agents, on psycopg 3 and one connection pool."""

from strands_psycopg.errors import (
    BadFileError,
    DatabaseError,
    DatabaseUnavailableError,
    EmbeddingError,
    LeaseLostError,
    MemoryExistsError,
    MemoryNotFoundError,
    MemoryStoreError,
    MissingExtraError,
    PayloadCodecError,
    PostgresStorageError,
    ReportError,
    SchemaError,
    SessionBusyError,
    SessionConflictError,
    SessionExistsError,
    SessionForkError,
    SessionNotFoundError,
    StorageConflictError,
    StrandsPsycopgError,
    TransferError,
)
from strands_psycopg.lease import Lease
from strands_psycopg.manager import PostgresSessionManager
from strands_psycopg.memory import PostgresMemoryStore, PostgresSearchOptions
from strands_psycopg.memory.entry import Memory, MemoryPage
from strands_psycopg.payload import PayloadCodec, PayloadContext
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.repository.listing import AgentSummary, SessionPage, SessionSummary
from strands_psycopg.repository.retention import PurgeResult
from strands_psycopg.storage import PostgresStorage

__all__ = [
    "AgentSummary",
    "BadFileError",
    "DatabaseError",
    "DatabaseUnavailableError",
    "EmbeddingError",
    "Lease",
    "LeaseLostError",
    "Memory",
    "MemoryExistsError",
    "MemoryNotFoundError",
    "MemoryPage",
    "MemoryStoreError",
    "MissingExtraError",
    "PayloadCodec",
    "PayloadCodecError",
    "PayloadContext",
    "PostgresMemoryStore",
    "PostgresSearchOptions",
    "PostgresSessionManager",
    "PostgresSessionRepository",
    "PostgresStorage",
    "PostgresStorageError",
    "PurgeResult",
    "ReportError",
    "SchemaError",
    "SessionBusyError",
    "SessionConflictError",
    "SessionExistsError",
    "SessionForkError",
    "SessionNotFoundError",
    "SessionPage",
    "SessionSummary",
    "StorageConflictError",
    "StrandsPsycopgError",
    "TransferError",
]
