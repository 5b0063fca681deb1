"""The settings of ``connections.py``, as far as such places can be had here: PgBouncer, servers without TLS, tokens."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from recipes.connections import at_rds, at_supabase, behind_pgbouncer, rds_dsn, with_password_file
from strands_psycopg import DatabaseUnavailableError, PostgresSessionRepository
from strands_psycopg.embedded import Server
from support.errands import run_all
from support.pgbouncer import PgBouncer
from support.servers import QuickServer
from support.tables import Connection

CLIENT = boto3.client("rds", region_name="eu-central-1", aws_access_key_id="key", aws_secret_access_key="secret")


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server on a port, without TLS, where a password is needed."""
    with QuickServer(port=0) as server:
        with PostgresSessionRepository(server.dsn) as repository:
            repository.ensure_schema()
        yield server


def test_all_works_behind_pgbouncer(pgbouncer: PgBouncer, direct_dsn: str) -> None:
    dsn = pgbouncer.through(direct_dsn)
    with behind_pgbouncer(dsn) as first, behind_pgbouncer(dsn) as second:
        # More often than it takes until a statement would be prepared.
        for number in range(6):
            run_all(first, f"s{number}", f"first {number}")
            run_all(second, f"t{number}", f"second {number}")


@pytest.mark.parametrize(
    "repository",
    [
        lambda dsn: at_supabase(dsn, Path("/certificate")),
        lambda dsn: at_rds(dsn, Path("/certificate"), CLIENT),
        lambda dsn: at_rds(dsn, Path("/certificate"), CLIENT, proxy=True),
    ],
    ids=["supabase", "rds", "rds proxy"],
)
def test_server_that_proves_nothing_is_refused_at_once(
    own_server: Server, repository: Callable[[str], PostgresSessionRepository]
) -> None:
    with (
        repository(own_server.dsn) as unsafe,
        pytest.raises(DatabaseUnavailableError, match="server does not support SSL") as error,
    ):
        unsafe.read_session("s")
    assert "retry_timeout" not in str(error.value)


def test_each_connect_to_rds_has_a_fresh_token_for_its_role() -> None:
    dsn = rds_dsn("postgresql://runs@db.example:5433/agents?sslmode=verify-full", CLIENT)()

    given = conninfo_to_dict(dsn)
    token = urlsplit(f"//{given.pop('password')}")
    assert given == {"host": "db.example", "port": "5433", "user": "runs", "dbname": "agents", "sslmode": "verify-full"}
    assert token.netloc == "db.example:5433"
    signed = parse_qs(token.query)
    assert (signed["Action"], signed["DBUser"], signed["X-Amz-Expires"]) == (["connect"], ["runs"], ["900"])


class Tokens:
    """Stands in for boto3's client where a server must know the token: it is the role's password of the moment."""

    def __init__(self) -> None:
        self.token = "old /?&=%@"
        self.asked: list[dict[str, object]] = []

    def generate_db_auth_token(self, **arguments: object) -> str:
        self.asked.append(arguments)
        return self.token


@pytest.fixture
def owner(own_server: Server) -> Iterator[Connection]:
    """The server's owner, and a role ``runs``."""
    with psycopg.connect(own_server.dsn, autocommit=True) as owner:
        owner.execute("CREATE ROLE runs LOGIN SUPERUSER PASSWORD 'old /?&=%@'")
        try:
            yield owner
        finally:
            owner.execute("DROP ROLE runs")


def renew(owner: Connection) -> None:
    """Change the role's password, after which connections are good as long as they last, and end those."""
    owner.execute("ALTER ROLE runs PASSWORD 'new /?&=%@'")
    owner.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'runs'")


def test_each_connect_asks_for_a_token(own_server: Server, owner: Connection) -> None:
    dsn, tokens = make_conninfo(own_server.dsn, user="runs", password=""), Tokens()
    with PostgresSessionRepository(rds_dsn(dsn, tokens)) as repository:
        repository.read_session("s")
        asked = len(tokens.asked)
        tokens.token = "new /?&=%@"
        renew(owner)
        repository.read_session("s")
    assert len(tokens.asked) > asked
    arguments = {"DBHostname": "127.0.0.1", "Port": conninfo_to_dict(dsn)["port"], "DBUsername": "runs"}
    assert all(each == arguments for each in tokens.asked)


def test_password_that_is_renewed_in_its_file_is_used_for_the_next_connect(
    own_server: Server, owner: Connection, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("old /?&=%@\n")
    with with_password_file(make_conninfo(own_server.dsn, user="runs", password=""), file) as repository:
        repository.read_session("s")
        file.write_text("new /?&=%@\n")
        renew(owner)
        repository.read_session("s")
