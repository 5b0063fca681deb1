"""Export and import of sessions: JSON lines, Strands' files and S3 objects, another package's tables."""

from strands_psycopg.transfer.files import FileSessions, export_files
from strands_psycopg.transfer.importing import import_sessions
from strands_psycopg.transfer.jsonlines import SessionLines, export_session, import_session
from strands_psycopg.transfer.postgresql_session_manager import PostgresqlSessionManagerTables
from strands_psycopg.transfer.result import IncompleteTransferError, TransferResult
from strands_psycopg.transfer.s3 import S3Sessions
from strands_psycopg.transfer.stored_sessions import session_ids

__all__ = [
    "FileSessions",
    "IncompleteTransferError",
    "PostgresqlSessionManagerTables",
    "S3Sessions",
    "SessionLines",
    "TransferResult",
    "export_files",
    "export_session",
    "import_session",
    "import_sessions",
    "session_ids",
]
