"""Processes that start at once: forked from one that has done the imports, and released together.

Each runs a script whose global ``ready()`` waits until the test lets it go on. What it prints is read line by line.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

_DEADLINE = 60

# Its requests are one packet each: JSON of a script with its arguments, with the child's three standard files, is
# answered with the child's id; a child's id is answered with the status of its end.
_HOST = """
import json, os, signal, socket, sys, traceback
import support.agents

control = socket.socket(fileno=int(sys.argv[1]))
living = set()

def ready():
    print("ready", flush=True)
    os.read(0, 1)

while True:
    message, files, _, _ = socket.recv_fds(control, 1 << 20, 3)
    if not message:
        break
    request = json.loads(message)
    if isinstance(request, int):
        status = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
        living.discard(request)
        control.send(json.dumps(status).encode())
        continue
    child = os.fork()
    if child == 0:
        control.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.argv = ["crew", *request["arguments"]]
        status = 0
        try:
            exec(compile(request["script"], "<script>", "exec"), {"__name__": "__main__", "ready": ready})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    for file in files:
        os.close(file)
    living.add(child)
    control.send(json.dumps(child).encode())
for child in living:
    os.kill(child, signal.SIGKILL)
"""


class Crew:
    """The process that the others are forked from; ends, and they with it, when its ``with`` block does."""

    def __enter__(self) -> "Crew":
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._host = subprocess.Popen(
                [sys.executable, "-c", _HOST, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=[theirs.fileno()],
            )
        self._control.settimeout(_DEADLINE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._control.close()
        assert self._host.wait(_DEADLINE) == 0

    def start(self, script: str, *arguments: str) -> "Member":
        """Fork a process that runs the script with these ``sys.argv[1:]``."""
        return Member(self, script, arguments)

    @contextmanager
    def of(self, number: int, script: str, *arguments: str) -> Iterator[list["Member"]]:
        """Fork so many processes, give them when all of them wait in ``ready()``, and kill what is left of them."""
        members = [self.start(script, *arguments, str(each)) for each in range(number)]
        try:
            for member in members:
                assert member.line() == "ready", member.errors()
            yield members
        finally:
            for member in members:
                member.close()

    def ask(self, request: object, files: Iterable[int] = ()) -> int:
        """Send the host a request and give its answer. For the members' use."""
        socket.send_fds(self._control, [json.dumps(request).encode()], list(files))
        return int(json.loads(self._control.recv(1024)))


class Member:
    """One forked process.

    Attributes:
        pid: Its id.
    """

    def __init__(self, crew: Crew, script: str, arguments: tuple[str, ...]) -> None:
        self._crew = crew
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._read = b""
        self._status: int | None = None
        their_input, self._release = os.pipe()
        self._output, their_output = os.pipe()
        files = [their_input, their_output, self._errors.fileno()]
        self.pid = crew.ask({"script": script, "arguments": arguments}, files)
        os.close(their_input)
        os.close(their_output)

    def release(self) -> None:
        """Let it go on from ``ready()``, or from the next one if it waits in none."""
        os.write(self._release, b"x")

    def line(self) -> str:
        """Wait for the next line that it prints; the empty string if it has ended."""
        deadline = time.monotonic() + _DEADLINE
        while b"\n" not in self._read:
            readable, _, _ = select.select([self._output], [], [], max(deadline - time.monotonic(), 0))
            assert readable, f"process {self.pid} printed nothing in time"
            data = os.read(self._output, 1 << 16)
            if not data:
                return ""
            self._read += data
        line, self._read = self._read.split(b"\n", 1)
        return line.decode()

    def lines(self) -> list[str]:
        """Wait for its end and give the lines that it has printed since the last one that was read."""
        return list(iter(self.line, ""))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        # Nobody else can have its id: the host has not waited for it yet.
        if self._status is None:
            os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for its end and give its exit status, negative for a signal."""
        if self._status is None:
            self._status = self._crew.ask(self.pid)
        return self._status

    def errors(self) -> str:
        """Give what it has written to standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def result(self) -> list[str]:
        """Wait for its end, which must be a success, and give the lines that it has printed."""
        lines = self.lines()
        assert self.end() == 0, self.errors()
        return lines

    def close(self) -> None:
        """Kill it if it lives."""
        if self._output < 0:
            return
        self.signal(signal.SIGKILL)
        self.end()
        os.close(self._release)
        os.close(self._output)
        self._errors.close()
        self._output = -1
