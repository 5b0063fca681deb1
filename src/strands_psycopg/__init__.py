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
    SessionOwnerError,
    StorageConflictError,
    StrandsPsycopgError,
    TransferError,
)
from strands_psycopg.lease import Lease
from strands_psycopg.manager import PostgresSessionManager
from strands_psycopg.memory import PostgresMemoryStore, PostgresSearchOptions
from strands_psycopg.memory.entry import Memory, MemoryPage
from strands_psycopg.payload import PayloadCodec, PayloadContext
from strands_psycopg.pool_options import PoolOptions
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.repository.annotations import AnnotatedSession
from strands_psycopg.repository.erasure import ErasureResult
from strands_psycopg.repository.listing import AgentSummary, SessionPage, SessionSummary
from strands_psycopg.repository.retention import PurgeResult
from strands_psycopg.repository.status import PoolStatus, Status, TableStatus
from strands_psycopg.storage import PostgresStorage
from strands_psycopg.storage.purging import StoragePurgeResult

__all__ = [
    "AgentSummary",
    "AnnotatedSession",
    "BadFileError",
    "DatabaseError",
    "DatabaseUnavailableError",
    "EmbeddingError",
    "ErasureResult",
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
    "PoolOptions",
    "PoolStatus",
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
    "SessionOwnerError",
    "SessionPage",
    "SessionSummary",
    "Status",
    "StorageConflictError",
    "StoragePurgeResult",
    "StrandsPsycopgError",
    "TableStatus",
    "TransferError",
]
