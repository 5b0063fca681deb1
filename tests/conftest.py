"""Databases for the tests: on an embedded server, or one of other programs (``--postgresql-exec``, the path of a
``pg_ctl``), or the one named by ``--postgresql-host`` and the options beside it.

With ``--dsn``, tests run on one database of a Citus cluster, with distributed tables, one after the other.

Tests run in several processes, each with a server of its own. A template database is migrated once; each test gets a
fresh copy of it, or one in which an earlier test has left nothing but rows, which were deleted; ``repository`` goes on
with a connection of that test. With ``--pgbouncer``, tests and their repositories reach it through a PgBouncer in
transaction mode.
"""

import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Nothing of what is imported and collected is garbage, and to look for some takes as long as the rest of it.
gc.disable()
# To compile what is imported and rewrite its assertions takes longer than to import it, and each process would do so.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from strands_psycopg import PostgresSessionRepository
from support import processes
from support.bedrock import make_cheap
from support.crew import Crew, shared_host
from support.databases import Databases
from support.distribution import distributed, empty
from support.kept_connections import KeptConnection
from support.odd_pool import odd_pool
from support.pgbouncer import MISSING, PROGRAM, PgBouncer
from support.retries import Retries
from support.servers import QuickServer, remember_access, shared_clusters


def pytest_configure(config: pytest.Config) -> None:
    """Allow tests to interrupt processes, servers to share clusters, and crews a host; let default models be cheap."""
    make_cheap()
    remember_access()
    # A shell's background jobs ignore Ctrl-C, and so would their children.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        shared = ExitStack()
        shared.enter_context(shared_clusters())
        if config.getoption("numprocesses"):
            shared.enter_context(shared_host())
        config.add_cleanup(shared.close)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Compile a file in one process; the others find the result when it is their turn."""
    if not isinstance(collector, pytest.Module):
        return (yield)
    with collector.path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Look for garbage among what the tests create, and less often than Python does."""
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pgbouncer", action="store_true", help="reach the databases through a PgBouncer")
    parser.addoption("--odd-pool", action="store_true", help="use pools that the caller has set in odd ways")
    parser.addoption("--dsn", help="an empty database of a Citus cluster: distribute the tables there, and use them")
    parser.addoption("--postgresql-exec", type=Path, help="a pg_ctl: run the server from the programs beside it")
    parser.addoption("--postgresql-host", help="use the server there, as a superuser")
    for name in ("port", "user", "password"):
        parser.addoption(f"--postgresql-{name}", help=f"its {name}")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for each processor, since tests wait now and then, and not more than are useful."""
    files_only = all(Path(argument.partition("::")[0]).is_file() for argument in config.args)
    # Workers take seconds to start, more than most files, and would share the roles of a given server.
    shared = config.getoption("--postgresql-host") or config.getoption("--dsn")
    return 0 if files_only or shared else min(2 * (os.cpu_count() or 1), 8)


# Tests that look at the server's own connections or settings, which PgBouncer hides.
_OF_SETTINGS = "sets options of a connection at its start, which PgBouncer refuses"
_OF_CONNECTIONS = "looks at the server's connections, which are PgBouncer's"
_NOT_THROUGH_PGBOUNCER = {
    "test_callable_is_asked_for_a_dsn_at_each_connect": _OF_CONNECTIONS,
    "test_child_works_on_connections_of_its_own_and_the_parents_go_on": _OF_CONNECTIONS,
    "test_ctrl_c_leaves_no_process_behind": _OF_CONNECTIONS,
    "test_manager_that_cannot_be_built_leaves_no_connection_behind": _OF_CONNECTIONS,
    "test_missing_right_is_a_database_error_that_names_table_and_cure": _OF_SETTINGS,
    "test_repository_made_before_a_fork_is_opened_in_each_process_that_uses_it": _OF_CONNECTIONS,
    "test_statement_that_was_cancelled_is_a_database_error": _OF_SETTINGS,
    "test_status_reads_well": "expects the server's own address",
    "test_with_nothing_pending_no_lock_is_waited_for": _OF_SETTINGS,
    "test_with_nothing_pending_nothing_is_written": _OF_SETTINGS,
}


# Tests of what a repository does with a pool of its own.
_AFTER_A_FORK = "uses the repository in a forked child, where a caller's open pool is refused"
_NOT_ON_A_CALLERS_POOL = {
    "test_agent_used_on_both_sides_of_a_fork_is_overtaken_not_overwritten": _AFTER_A_FORK,
    "test_child_works_on_connections_of_its_own_and_the_parents_go_on": _AFTER_A_FORK,
    "test_closed_repository_is_closed_in_the_child_too": "closes the repository, which leaves a caller's pool open",
    "test_fork_during_a_statement_of_another_thread_leaves_both_processes_working": _AFTER_A_FORK,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        _spread(items)
    for option, skipped in (("--pgbouncer", _NOT_THROUGH_PGBOUNCER), ("--odd-pool", _NOT_ON_A_CALLERS_POOL)):
        for item in items if config.getoption(option) else ():
            if reason := skipped.get(item.name.partition("[")[0]):
                item.add_marker(pytest.mark.skip(reason))


def _spread(items: list[pytest.Item]) -> None:
    """Mix the files of all folders, so that each process gets as many tests that wait as the others."""
    folders: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(item.path for item in items):
        folders.setdefault(path.parent, []).append(path)
    places = {path: number / len(paths) for paths in folders.values() for number, path in enumerate(paths)}
    items.sort(key=lambda item: places[item.path])


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of the server that the tests of this process share."""
    host = request.config.getoption("--postgresql-host")
    if host is not None:
        names = ("port", "user", "password")
        given = {name: request.config.getoption(f"--postgresql-{name}") for name in names}
        yield make_conninfo("", host=host, dbname="postgres", **given)
        return
    with QuickServer(request.config.getoption("--postgresql-exec")) as server:
        server.configure(synchronous_commit="off")
        yield server.dsn


@pytest.fixture(scope="session")
def databases(server: str, worker_id: str) -> Iterator[Databases]:
    """Creates further databases on that server."""
    with Databases(server, worker_id) as databases:
        yield databases


@pytest.fixture(scope="session")
def template(databases: Databases) -> Iterator[str]:
    """The name of a migrated database, to be copied."""
    with databases.create("template_under_test") as dsn:
        with PostgresSessionRepository(dsn) as repository:
            repository.ensure_schema()
        yield str(conninfo_to_dict(dsn)["dbname"])


@pytest.fixture(scope="session")
def pgbouncer(server: str) -> Iterator[PgBouncer]:
    """A PgBouncer in transaction mode before the server, with two connections to it for each database."""
    if PROGRAM is None:
        pytest.skip(MISSING)
    with PgBouncer(server) as pgbouncer:
        yield pgbouncer


@pytest.fixture(scope="session")
def crew() -> Crew:
    """Starts processes that need not import anything any more."""
    return processes.crew()


@pytest.fixture(scope="session")
def distributed_dsn(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The database of a Citus cluster, with distributed tables; None without ``--dsn``."""
    dsn = request.config.getoption("--dsn")
    if dsn is None:
        yield None
        return
    with distributed(dsn):
        yield dsn


@pytest.fixture
def direct_dsn(request: pytest.FixtureRequest, distributed_dsn: str | None) -> Iterator[str]:
    """A fresh, migrated database, without PgBouncer between."""
    if distributed_dsn is not None:
        empty(distributed_dsn)
        yield distributed_dsn
        return
    databases: Databases = request.getfixturevalue("databases")
    template: str = request.getfixturevalue("template")
    # A PgBouncer stays connected.
    reusable = not request.node.get_closest_marker("new_pages") and not request.config.getoption("--pgbouncer")
    with (databases.reuse if reusable else databases.create)("sessions_under_test", template) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def reached(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Returns the DSN by which the tests reach a database of that server, given its own."""
    if not request.config.getoption("--pgbouncer"):
        return str
    pgbouncer: PgBouncer = request.getfixturevalue("pgbouncer")
    return pgbouncer.through


@pytest.fixture
def dsn(direct_dsn: str, reached: Callable[[str], str]) -> str:
    """A fresh, migrated database."""
    return reached(direct_dsn)


@pytest.fixture
def empty_dsn(request: pytest.FixtureRequest, reached: Callable[[str], str]) -> Iterator[str]:
    """A fresh database without any table."""
    if request.config.getoption("--dsn"):
        pytest.skip("creates a database")
    databases: Databases = request.getfixturevalue("databases")
    with databases.create("empty_under_test") as dsn:
        yield reached(dsn)


@pytest.fixture
def pool_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a repository on ``dsn`` needs beside it."""
    return {"kwargs": {"prepare_threshold": None}} if request.config.getoption("--pgbouncer") else {}


@pytest.fixture
def kept_connection(
    request: pytest.FixtureRequest, direct_dsn: str, distributed_dsn: str | None
) -> type[KeptConnection] | None:
    """The class of the connections of ``repository``, if its database is used again."""
    if distributed_dsn is not None:
        return None
    databases: Databases = request.getfixturevalue("databases")
    return databases.connection_class(direct_dsn)


@pytest.fixture
def repository(
    request: pytest.FixtureRequest,
    dsn: str,
    pool_options: dict[str, Any],
    kept_connection: type[KeptConnection] | None,
) -> Iterator[PostgresSessionRepository]:
    """A repository on a fresh, migrated database."""
    with ExitStack() as stack:
        if request.config.getoption("--odd-pool"):
            pool = stack.enter_context(odd_pool(dsn, min_size=1, max_size=10, **pool_options))
            yield stack.enter_context(PostgresSessionRepository(pool))
        elif kept_connection is None:
            yield stack.enter_context(PostgresSessionRepository(dsn, **pool_options))
        else:
            yield stack.enter_context(PostgresSessionRepository(dsn, connection_class=kept_connection, **pool_options))
            kept_connection.keeps = True


@pytest.fixture
def connection(
    request: pytest.FixtureRequest, direct_dsn: str, distributed_dsn: str | None
) -> Iterator[psycopg.Connection[Any]]:
    """A plain connection to the fresh database, in autocommit, to look at the tables with."""
    if distributed_dsn is not None:
        with psycopg.connect(direct_dsn, autocommit=True) as connection:
            yield connection
        return
    databases: Databases = request.getfixturevalue("databases")
    with databases.connect(direct_dsn) as connection:
        yield connection


@pytest.fixture
def watcher(direct_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Another one, to look with while ``connection`` is in a transaction."""
    with psycopg.connect(direct_dsn, autocommit=True) as watcher:
        yield watcher


@pytest.fixture
def retries(caplog: pytest.LogCaptureFixture) -> Retries:
    """The retries of this process during the test."""
    caplog.set_level(logging.DEBUG, "strands_psycopg.database")
    return Retries(caplog)
