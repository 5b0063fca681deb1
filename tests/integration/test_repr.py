"""How public objects are shown: what they work on, and no secret."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg_pool import ConnectionPool

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository, PostgresStorage
from strands_psycopg.embedded import Server
from strands_psycopg.transfer import FileSessions, PostgresqlSessionManagerTables, S3Sessions, SessionLines

SECRET = "hunter2"

# Where a DSN can hold a secret, and what is shown of it.
SHOWN = {
    f"postgresql://user:{SECRET}@db.example:5433/agents": "host=db.example port=5433 dbname=agents user=user",
    f"postgresql://db.example/agents?user=user&password={SECRET}": "host=db.example dbname=agents user=user",
    f"postgresql://a:1,b:2/agents?sslpassword={SECRET}&passfile=/{SECRET}": "host=a,b port=1,2 dbname=agents",
    f"host=/run/postgresql dbname=agents password={SECRET}": "host=/run/postgresql dbname=agents",
    f"host=db.example password='{SECRET} x' sslkey=/{SECRET} options='-c my.token={SECRET}'": "host=db.example",
    f"service=agents password={SECRET}": "conninfo=...",
    # Passwords that are not percent-encoded, which the parser takes for something else.
    f"postgresql://user:pass/{SECRET}@db.example/agents": "conninfo=...",
    f"postgresql://user:{SECRET}/word@db.example/agents": "conninfo=...",
    f"postgresql://user:pass,{SECRET}/word@db.example/agents": "conninfo=...",
    f"dbname=postgresql://user:{SECRET}@db.example/agents": "conninfo=...",
    "": "conninfo=...",
    "dbname='two\u202e\nlines'": "dbname=two\\u202e\\nlines",
}


def without_storage() -> bool:
    try:
        from strands.storage.storage import StorageSearchResult  # noqa: F401
    except ImportError:
        return True
    return False


needs_storage = pytest.mark.skipif(without_storage(), reason="needs strands-agents 1.54 or later")


@pytest.mark.parametrize(("dsn", "shown"), SHOWN.items())
def test_repository_shows_where_its_database_is_and_no_secret(dsn: str, shown: str) -> None:
    repository = PostgresSessionRepository(dsn, schema="crm", table_prefix="agents_")

    assert repr(repository) == f"<PostgresSessionRepository {shown} schema=crm table_prefix=agents_>"


def test_connection_arguments_of_the_pool_take_precedence_over_the_dsn() -> None:
    kwargs = {"dbname": "other", "port": 5433, "password": SECRET}
    repository = PostgresSessionRepository("host=db.example dbname=agents", kwargs=kwargs)

    assert repr(repository) == (
        "<PostgresSessionRepository host=db.example port=5433 dbname=other schema=public table_prefix=strands_>"
    )


def test_callable_is_not_called_to_be_shown() -> None:
    def dsn() -> str:
        calls.append("called")
        return f"postgresql://user:{SECRET}@db.example/agents"

    calls: list[str] = []

    shown = repr(PostgresSessionRepository(dsn))

    assert shown == "<PostgresSessionRepository conninfo=callable schema=public table_prefix=strands_>"
    assert calls == []


def test_dsn_that_a_callable_returned_is_not_shown(dsn: str, pool_options: dict[str, Any]) -> None:
    with PostgresSessionRepository(lambda: f"{dsn} sslpassword={SECRET}", **pool_options) as repository:
        repository.read_session("s")

        assert repr(repository) == "<PostgresSessionRepository conninfo=callable schema=public table_prefix=strands_>"


@pytest.mark.parametrize("dsn", [f"postgresql://u:{SECRET}@db.example/agents", f"host=db.example password={SECRET}"])
def test_external_pool_is_shown_by_its_name(dsn: str) -> None:
    pool: ConnectionPool[Any] = ConnectionPool(dsn, name="agents", kwargs={"password": SECRET}, open=False)

    shown = repr(PostgresSessionRepository(pool))

    assert shown == "<PostgresSessionRepository pool=agents schema=public table_prefix=strands_>"


def test_subclass_is_shown_under_its_own_name() -> None:
    class Sessions(PostgresSessionRepository):
        pass

    assert repr(Sessions("host=db.example")) == "<Sessions host=db.example schema=public table_prefix=strands_>"


def test_manager_shows_its_session_and_repository(repository: PostgresSessionRepository) -> None:
    manager = PostgresSessionManager("user-42", repository)

    assert repr(manager) == f"<PostgresSessionManager session_id='user-42' repository={repository!r}>"


def test_manager_with_a_repository_of_its_own_shows_no_secret(dsn: str, pool_options: dict[str, Any]) -> None:
    with PostgresSessionManager.from_dsn("user-42", f"{dsn} sslpassword={SECRET}", **pool_options) as manager:
        assert SECRET not in repr(manager)
        assert repr(manager).startswith("<PostgresSessionManager session_id='user-42' repository=<Postgres")


def test_lease_shows_session_term_and_ttl() -> None:
    lease = PostgresSessionRepository(f"host=db.example password={SECRET}").lease("user\n42", ttl=90)

    term = repr(lease).split("term=")[1].split(" ")[0]
    assert UUID(term) == lease.term
    assert repr(lease) == f"<Lease session_id='user\\n42' term={term} ttl=90>"


@needs_storage
def test_storage_shows_where_its_database_is_and_its_prefix() -> None:
    storage = PostgresStorage(f"postgresql://user:{SECRET}@db.example/agents", prefix="crm")

    shown = "<PostgresStorage host=db.example dbname=agents user=user schema=public table_prefix=strands_ prefix='crm"
    assert repr(storage) == f"{shown}'>"
    assert repr(storage.namespace("snapshots")) == f"{shown}' namespace='snapshots'>"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (lambda: FileSessions("/srv/sessions"), "<FileSessions directory='/srv/sessions'>"),
        (lambda: S3Sessions("bucket", "/agents/"), "<S3Sessions bucket='bucket' prefix='agents/'>"),
        (lambda: SessionLines([SECRET], session_id="copy"), "<SessionLines session_id='copy'>"),
        (
            lambda: PostgresqlSessionManagerTables(f"host=db.example password={SECRET}", schema="old"),
            "<PostgresqlSessionManagerTables host=db.example schema=old>",
        ),
    ],
)
def test_source_of_an_import_shows_where_it_is(source: Callable[[], object], shown: str) -> None:
    assert repr(source()) == shown


def test_embedded_server_shows_no_password(tmp_path: Path) -> None:
    server = Server(tmp_path, port=0)
    server.dsn = f"host=127.0.0.1 password={SECRET}"

    assert repr(server) == f"<Server path={str(tmp_path.resolve())!r} port=0>"
    assert repr(Server()) == "<Server path=temporary port=None>"
