"""Two network namespaces with a cable between them, for links that go down."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from psycopg import conninfo

from support import processes
from support.crew import Process

IP = shutil.which("ip", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")

_PORT = 5432

# Passes what it gets on a TCP port on to a unix socket, which is the same in every namespace.
_FORWARDER = """
import asyncio, contextlib, sys

async def copy(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()

async def serve(reader, writer):
    to_server = await asyncio.open_unix_connection(sys.argv[1])
    await asyncio.gather(copy(reader, to_server[1]), copy(to_server[0], writer))

async def main():
    server = await asyncio.start_server(serve, sys.argv[2], int(sys.argv[3]))
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


class Cable(NamedTuple):
    """A link between a namespace with clients and one from which a server can be reached.

    Attributes:
        clients: The name of the clients' namespace.
        servers: The name of the other.
        dsn: The server, for clients in their namespace.
    """

    clients: str
    servers: str
    dsn: str

    def pull(self) -> None:
        """Take the link down: what is sent gets lost, and nobody is told."""
        _ip("-n", self.servers, "link", "set", "end", "down")

    def plug(self) -> None:
        """Take the link up."""
        _ip("-n", self.servers, "link", "set", "end", "up")

    def start(self, script: str, *arguments: str) -> Process:
        """Start a process in the clients' namespace that runs the script with these ``sys.argv[1:]``."""
        return processes.start(_ENTER + script, self.clients, *arguments)


# Enters the namespace named by its first argument, and takes that away.
_ENTER = """
import ctypes, os, sys
with open("/run/netns/" + sys.argv.pop(1)) as namespace:
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")
"""


def missing() -> str:
    """Return what is missing for namespaces; nothing if they can be made."""
    if IP is None:
        return "no program ip (iproute2)"
    name = f"strands-{os.getpid()}-probe"
    if _try("netns", "add", name) != 0:
        return "no right to make a network namespace (root with CAP_NET_ADMIN and CAP_SYS_ADMIN)"
    made = _try("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "other")
    _ip("netns", "del", name)
    return "" if made == 0 else "no virtual Ethernet in this kernel"


@contextmanager
def cable(dsn: str) -> Iterator[Cable]:
    """Lay a cable to a server that listens on a unix socket."""
    server = conninfo.conninfo_to_dict(dsn)
    clients, servers = (f"strands-{os.getpid()}-{name}" for name in ("clients", "servers"))
    with ExitStack() as stack:
        for name in (clients, servers):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        _ip("-n", clients, "link", "add", "end", "type", "veth", "peer", "name", "end", "netns", servers)
        for name, address in ((clients, "10.0.0.1/24"), (servers, "10.0.0.2/24")):
            _ip("-n", name, "address", "add", address, "dev", "end")
            _ip("-n", name, "link", "set", "end", "up")
        socket = f"{server['host']}/.s.PGSQL.{server.get('port', 5432)}"
        forwarder = processes.start(_ENTER + _FORWARDER, servers, socket, "10.0.0.2", str(_PORT))
        stack.enter_context(forwarder)
        assert forwarder.line() == "ready"
        yield Cable(clients, servers, conninfo.make_conninfo(dsn, host="10.0.0.2", port=_PORT))


def _try(*arguments: str) -> int:
    assert IP is not None
    return subprocess.run([IP, *arguments], capture_output=True, check=False).returncode


def _ip(*arguments: str) -> None:
    assert IP is not None
    subprocess.run([IP, *arguments], capture_output=True, check=True)
