"""The pool: when it connects, with what, and what is said when it cannot."""

import contextlib
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool
from strands.types.session import Session, SessionType

from strands_psycopg import DatabaseUnavailableError, PostgresSessionManager, PostgresSessionRepository, database
from strands_psycopg.embedded import postgres
from strands_psycopg.errors import EmbeddedPostgresError
from support.proxy import Proxy
from support.retries import Retries
from support.waiting import wait_until

Connection = psycopg.Connection[Any]


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def loopback() -> Iterator[str]:
    """A server that asks for a password."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(postgres(port=0))
        except EmbeddedPostgresError as error:
            pytest.skip(f"needs an embedded server: {error}")


def all_that_is_said(error: BaseException) -> str:
    """Return every text that a log could show of an error and of those that led to it."""
    said = ["".join(traceback.format_exception(error))]
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is not None:
            said += [str(each), repr(each), repr(each.args), repr(vars(each))]
            chain += [each.__cause__, each.__context__]
    return "\n".join(said)


def terminate(connection: Connection) -> None:
    """End every session of this database but the connection's own."""
    connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_nothing_connects_before_the_first_statement(proxy: Proxy) -> None:
    threads = set(threading.enumerate())
    with PostgresSessionRepository(proxy.dsn, min_size=2) as repository:
        # Connects are made by the pool's threads, at some time.
        assert set(threading.enumerate()) <= threads
        assert proxy.connections == 0

        repository.read_session("s")

        wait_until(lambda: proxy.connections >= 2)


def test_one_call_after_the_other_uses_one_connection(proxy: Proxy) -> None:
    with PostgresSessionRepository(proxy.dsn) as repository:
        for _ in range(3):
            repository.read_session("s")

        assert proxy.connections == 1


def test_repository_that_was_never_used_is_closed_without_connecting(proxy: Proxy) -> None:
    with PostgresSessionRepository(proxy.dsn):
        pass

    assert proxy.connections == 0


def test_threads_that_make_the_first_statements_share_one_pool(proxy: Proxy) -> None:
    barrier = threading.Barrier(8, timeout=30)

    def read() -> None:
        barrier.wait()
        assert repository.read_session("s") is None

    with PostgresSessionRepository(proxy.dsn, max_size=2) as repository, ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(read) for _ in range(8)]:
            each.result()

    assert 1 <= proxy.connections <= 2


def test_callable_is_asked_for_a_dsn_at_each_connect(dsn: str, connection: Connection) -> None:
    names = iter(["first", "second", "never"])

    def sources() -> list[str]:
        found = connection.execute("SELECT application_name FROM pg_stat_activity WHERE application_name <> ''")
        return [name for (name,) in found if name in ("first", "second", "never")]

    with PostgresSessionRepository(lambda: make_conninfo(dsn, application_name=next(names)), max_size=1) as repository:
        repository.read_session("s")
        assert sources() == ["first"]

        terminate(connection)
        repository.read_session("s")

        assert sources() == ["second"]


def test_error_of_a_callable_is_not_quoted(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str:
        raise RuntimeError("no token for postgresql://user:hunter2@host")

    repository = PostgresSessionRepository(broken, retry_timeout=0.1)
    with repository, pytest.raises(DatabaseUnavailableError, match="RuntimeError in the callable") as raised:
        repository.read_session("s")

    assert "hunter2" not in all_that_is_said(raised.value) + caplog.text


def test_dsn_of_a_callable_that_cannot_be_parsed_is_not_quoted(caplog: pytest.LogCaptureFixture) -> None:
    repository = PostgresSessionRepository(lambda: "postgresql://user:hunt@er2@localhost/agents", retry_timeout=0.1)
    with repository, pytest.raises(DatabaseUnavailableError, match="DSN") as raised:
        repository.read_session("s")

    assert [part for part in ("hunt", "er2") if part in all_that_is_said(raised.value) + caplog.text] == []


def test_callable_that_returns_no_dsn_is_reported_at_once(retries: Retries) -> None:
    repository = PostgresSessionRepository(lambda: None)  # type: ignore[arg-type, return-value]
    with repository, pytest.raises(DatabaseUnavailableError, match="must return a DSN, not NoneType"):
        repository.read_session("s")
    assert not retries()


@pytest.mark.parametrize("password", ["wrong hunter2", "'hunter2\\", "wr@ng/hunter2"])
def test_wrong_password_is_reported_at_once_and_shown_nowhere(
    loopback: str, password: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = make_conninfo(loopback, password=password)
    repository = PostgresSessionRepository(wrong, retry_timeout=60)
    started = time.monotonic()

    with repository, pytest.raises(DatabaseUnavailableError, match="password authentication failed") as raised:
        repository.read_session("s")

    assert time.monotonic() - started < 20
    assert "hunter2" not in all_that_is_said(raised.value) + caplog.text + repr(repository) + repr(vars(repository))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"port": "99999"}, 'invalid port number: "99999"'),
        ({"sslmode": "bogus"}, 'invalid sslmode value: "bogus"'),
        ({"service": "nowhere"}, 'definition of service "nowhere" not found'),
        ({"host": "/nowhere" * 20}, "socket path .* is too long"),
    ],
    ids=str,
)
def test_a_setting_that_libpq_refuses_is_not_tried_again(setting: dict[str, str], reason: str) -> None:
    repository = PostgresSessionRepository(make_conninfo("host=127.0.0.1", **setting), retry_timeout=0.5)

    with repository, pytest.raises(DatabaseUnavailableError, match=reason) as raised:
        repository.read_session("s")

    assert "retry_timeout" not in str(raised.value)


def test_unknown_database_is_reported_at_once(dsn: str) -> None:
    repository = PostgresSessionRepository(make_conninfo(dsn, dbname="no_such_database"), retry_timeout=60)
    started = time.monotonic()

    with repository, pytest.raises(DatabaseUnavailableError, match='database "no_such_database" does not exist'):
        repository.read_session("s")

    assert time.monotonic() - started < 20


def test_server_that_is_down_is_waited_for_until_retry_timeout_and_named(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_FIRST_RETRY_TIMEOUT", 0.1)  # which is that of a repository without retry_timeout
    proxy.refuse()
    repository = PostgresSessionRepository(proxy.dsn, retry_timeout=1)
    started = time.monotonic()

    with (
        repository,
        pytest.raises(DatabaseUnavailableError, match=r"could not connect within 1 s.*Connection refused") as raised,
    ):
        repository.read_session("s")

    assert time.monotonic() - started < 10
    assert "reading session 's'" in str(raised.value)


def test_server_that_is_down_when_the_first_manager_is_built_is_waited_for(
    proxy: Proxy, retries: Retries, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(database, "retries", SimpleNamespace(add=counted.append))
    proxy.refuse()
    with PostgresSessionRepository(proxy.dsn) as repository, ThreadPoolExecutor(1) as thread:
        building = thread.submit(PostgresSessionManager, "s", repository)
        wait_until(lambda: repository._database._connections._source.failures >= 3)
        proxy.accept()

        assert building.result(30).session_id == "s"
    assert counted == [1] * len(retries())
    assert counted != []


def test_server_that_has_never_answered_is_not_waited_for_as_long_as_one_that_has(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_FIRST_RETRY_TIMEOUT", 0.2)
    monkeypatch.setattr(database, "_RETRY_TIMEOUT", 2.0)
    with PostgresSessionRepository(proxy.dsn) as repository:
        proxy.refuse()
        with pytest.raises(
            DatabaseUnavailableError, match=r"within 0\.2 s, and no server has answered yet \(check host"
        ):
            repository.read_session("s")
        proxy.accept()
        repository.read_session("s")
        proxy.refuse()
        with pytest.raises(DatabaseUnavailableError, match="could not connect within the 2 s of retry_timeout: "):
            repository.read_session("s")


def test_host_name_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_FIRST_RETRY_TIMEOUT", 0.2)
    with (
        PostgresSessionRepository("postgresql://no-such-host.invalid/agents") as repository,
        pytest.raises(DatabaseUnavailableError, match=r"no server has answered yet.*(no-such-host\.invalid|not known)"),
    ):
        repository.read_session("s")


def test_host_that_never_answers_a_connect_is_reported(proxy: Proxy) -> None:
    proxy.hold()
    repository = PostgresSessionRepository(make_conninfo(proxy.dsn, connect_timeout=2), retry_timeout=1)

    with repository, pytest.raises(DatabaseUnavailableError, match="timeout expired"):
        repository.read_session("s")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:hunt@er2@localhost/db7",
        "postgresql://user:hunter2@localhost@/db7",
        "postgresql://user:hunter2@[localhost/db7",
        "postgresql://user:hunter2@localhost/db7?no_such_option=1",
        "host=localhost password='hunter2",
        "host=localhost password=hunter2 no_such_option=1",
        "hunter2",
    ],
)
def test_dsn_that_cannot_be_parsed_is_refused_without_quoting_it(dsn: str) -> None:
    with pytest.raises(ValueError, match="DSN") as raised:
        PostgresSessionRepository(dsn)

    said = all_that_is_said(raised.value)
    assert [part for part in ("hunt", "er2", "db7", "no_such_option") if part in said] == []


@pytest.mark.parametrize(
    ("dsn", "advice"),
    [
        ("postgresql+psycopg://app:hunter2@localhost/db7", r"\+psycopg.*SQLAlchemy.*begin it with postgresql://"),
        ("jdbc:postgresql://localhost/db7?user=app&password=hunter2", "JDBC.*begin it with postgresql://"),
        ("postgresql://app:hunter2@localhost/db7?pgbouncer=true", "no parameter 'pgbouncer'.*prepare_threshold"),
        ("postgresql://app:hunter2@localhost/db7?sslmode=require&schema=agents", "no parameter 'schema'; pass schema="),
        ("postgresql://app:hunter2@localhost/db7?connection_limit=5", "'connection_limit'.*max_size="),
        ("postgresql://app:hunter2@localhost/db7?hunter2", "after its '[?]' is a parameter that libpq does not have"),
        ("postgresql://app:hun%ter2@localhost/db7", "'%' is %25"),
        ("host=localhost hunter2", "or pairs such as host="),
    ],
)
def test_dsn_that_cannot_be_parsed_says_which_part_is_wrong(dsn: str, advice: str) -> None:
    with pytest.raises(ValueError, match=f"the DSN cannot be parsed: .*{advice}") as raised:
        PostgresSessionRepository(dsn)

    assert [part for part in ("hunter2", "db7", "app:") if part in all_that_is_said(raised.value)] == []


@pytest.mark.parametrize("dsn", [None, 5, b"host=localhost", ["host=localhost"]])
def test_conninfo_of_a_wrong_type_is_a_type_error(dsn: Any) -> None:
    with pytest.raises(TypeError, match="conninfo must be"):
        PostgresSessionRepository(dsn)


def test_full_pool_is_named_and_works_again_when_a_connection_is_free(proxy: Proxy) -> None:
    repository = PostgresSessionRepository(proxy.dsn, max_size=1, timeout=0.5, retry_timeout=60)
    with repository, ThreadPoolExecutor(1) as thread:
        repository.read_session("s")
        proxy.hold()
        slow = thread.submit(repository.read_session, "s")
        wait_until(lambda: proxy.waiting)

        with pytest.raises(DatabaseUnavailableError, match=r"all 1 connections of the pool were in use for 0\.5 s"):
            repository.read_session("s")

        proxy.release()
        assert slow.result(30) is None
        assert repository.read_session("s") is None


def test_usage_is_what_is_checked_out_and_who_waits(proxy: Proxy) -> None:
    with PostgresSessionRepository(proxy.dsn, max_size=1, name="mine") as repository, ThreadPoolExecutor(2) as threads:
        usage = repository._database._connections.usage
        assert usage() == ("mine", 0, 0)
        repository.read_session("s")
        assert usage() == ("mine", 0, 0)
        proxy.hold()
        reading = [threads.submit(repository.read_session, "s") for _ in range(2)]
        wait_until(lambda: usage() == ("mine", 1, 1))
        proxy.release()
        assert [each.result(30) for each in reading] == [None, None]


def test_callers_full_pool_is_named_and_works_again_when_a_connection_is_free(dsn: str) -> None:
    with ConnectionPool(dsn, min_size=1, max_size=1, timeout=0.5, open=True) as pool:
        repository = PostgresSessionRepository(pool, retry_timeout=60)
        with (
            pool.connection(),
            pytest.raises(DatabaseUnavailableError, match=r"all 1 connections of the pool were in use for 0\.5 s"),
        ):
            repository.read_session("s")

        assert repository.read_session("s") is None


def test_closed_repository_says_so(dsn: str) -> None:
    repository = PostgresSessionRepository(dsn)
    repository.read_session("s")
    repository.close()
    repository.close()

    with pytest.raises(DatabaseUnavailableError, match="the connection pool is closed"):
        repository.read_session("s")


def test_repository_closed_before_its_first_use_says_so(proxy: Proxy) -> None:
    repository = PostgresSessionRepository(proxy.dsn)
    repository.close()

    with pytest.raises(DatabaseUnavailableError, match="the connection pool is closed"):
        repository.read_session("s")
    assert proxy.connections == 0


def test_callers_pool_stays_open(dsn: str) -> None:
    with ConnectionPool(dsn, min_size=1, open=True) as pool:
        with PostgresSessionRepository(pool) as repository:
            repository.create_session(Session("s", SessionType.AGENT))

        assert not pool.closed
        with pool.connection() as connection:
            assert connection.execute("SELECT session_id FROM strands_sessions").fetchall() == [("s",)]


def test_callers_pool_that_is_closed_says_so(dsn: str) -> None:
    pool = ConnectionPool(dsn, min_size=1, open=False)
    repository = PostgresSessionRepository(pool)

    with pytest.raises(DatabaseUnavailableError, match=r"the pool 'pool-\d+' is not open yet; call its open\(\) first"):
        repository.read_session("s")
    with pool:
        repository.read_session("s")
    with pytest.raises(DatabaseUnavailableError, match="the connection pool is closed; create a new one"):
        repository.read_session("s")


def test_pool_options_beside_a_callers_pool_are_a_type_error(dsn: str) -> None:
    pool = ConnectionPool(dsn, min_size=1, open=False)

    with pytest.raises(TypeError, match=r"pool options \['max_size', 'timeout'\] cannot be combined with a pool"):
        PostgresSessionRepository(pool, timeout=1, max_size=2)
