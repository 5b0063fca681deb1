"""Repositories for the places where a database may be: behind poolers, at Supabase, at RDS, with changing passwords.

The library sends no SET and keeps nothing on a connection, so every pooler in transaction mode will do, and RDS Proxy
pins no connection for it. Migrations go through a pooler too; dumps need a direct connection.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from strands_psycopg import PostgresSessionRepository

# Prepared statements belong to a connection of the server, which in transaction mode is another one each time.
UNPREPARED: dict[str, Any] = {"prepare_threshold": None}


def behind_pgbouncer(dsn: str) -> PostgresSessionRepository:
    """PgBouncer, or another pooler, in transaction mode.

    From PgBouncer 1.21 on, with its max_prepared_statements above 0, a plain ``PostgresSessionRepository(dsn)`` will
    do. Its query_wait_timeout should be below response_timeout, so that a full pooler says so.
    """
    return PostgresSessionRepository(dsn, kwargs=UNPREPARED)


def at_supabase(dsn: str, certificate: Path) -> PostgresSessionRepository:
    """Supabase's shared pooler in transaction mode.

    Args:
        dsn: The dashboard's under "Transaction pooler": port 6543, and postgres.PROJECT for the user.
        certificate: The dashboard's, of the authority that signs its servers' certificates.
    """
    return PostgresSessionRepository(_verified(dsn, certificate), kwargs=UNPREPARED)


def at_rds(dsn: str, certificate: Path, client: Any, *, proxy: bool = False) -> PostgresSessionRepository:
    """RDS or Aurora, or RDS Proxy before it, with IAM authentication: the role must be granted rds_iam.

    Args:
        dsn: With host, port and user, without a password.
        certificate: The bundle of AWS's authorities, global-bundle.pem; for RDS Proxy, that of Amazon Trust Services.
        client: ``boto3.client("rds")``.
        proxy: Whether it is RDS Proxy, which pins the connection of a client that prepares statements.
    """
    return PostgresSessionRepository(rds_dsn(_verified(dsn, certificate), client), kwargs=UNPREPARED if proxy else {})


def rds_dsn(dsn: str, client: Any) -> Callable[[], str]:
    """Return what a repository asks for a DSN at each connect: a token is good for a connect within 15 minutes."""
    given = conninfo_to_dict(dsn)

    def with_token() -> str:
        token = client.generate_db_auth_token(DBHostname=given["host"], Port=given["port"], DBUsername=given["user"])
        return make_conninfo(dsn, password=token)

    return with_token


def with_password_file(dsn: str, file: Path) -> PostgresSessionRepository:
    """Any server, with a password that somebody renews in a file, such as a mounted secret; read at each connect."""
    return PostgresSessionRepository(lambda: make_conninfo(dsn, password=file.read_text().strip()))


def _verified(dsn: str, certificate: Path) -> str:
    """Nothing is sent before the server has proved that it is the one that the DSN names."""
    return make_conninfo(dsn, sslmode="verify-full", sslrootcert=str(certificate))
