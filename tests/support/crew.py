"""Python processes that start at once: forked from one that has done the imports, or those of Strands.

Several test processes can share that one, the host: each has a copy of it, which forks its processes.

Each runs a script. Some are released together: their scripts call the global ``ready()``, which waits until the test
lets them go on.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

_DEADLINE = 60

# Names the folder of the host that is shared.
_SHARED = "STRANDS_PSYCOPG_TEST_HOST"
_SOCKETS = ("elder", "younger")

# It forks a copy of itself for each connection, until the end of its standard input. A copy's requests are one packet
# each: JSON of a script with its surroundings, with the child's three standard files, is answered with the child's id;
# a child's id is answered with the status of its end. A script runs where the copy ends, so that it ends as one of a
# process of its own does: it waits for its threads, runs the exit handlers and flushes its streams. To delete all
# objects then takes far longer than the rest, and is done on request only, and after errors.
_HOST = """
import atexit, gc, json, os, select, signal, socket, sys, threading, traceback, types
gc.disable()
import encodings.idna, strands
from support.bedrock import make_cheap

make_cheap()
# The younger host has imported Strands only.
listener, younger = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
if os.fork() == 0:
    listener, younger = younger, listener
else:
    import strands.models, strands.multiagent
    import strands_psycopg.cli, strands_psycopg.demo, strands_psycopg.embedded, support.agents
    strands.models.BedrockModel()
younger.close()
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # it does not wait for its copies
gc.freeze()
gc.enable()
control = None
while control is None:
    if 0 in select.select([0, listener], [], [])[0]:
        os._exit(0)
    control, _ = listener.accept()
    if os.fork() != 0:
        control.close()
        control = None
listener.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)

def ready():
    print("ready", flush=True)
    os.read(0, 1)

def serve():
    living = set()
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
            return request
        for file in files:
            os.close(file)
        living.add(child)
        control.send(json.dumps(child).encode())
    for child in living:
        os.kill(child, signal.SIGKILL)
    os._exit(0)

def end(status):
    if not isinstance(status, int):
        return
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError as error:
            status = 120
            if stream is sys.stdout:
                print(f"Exception ignored in: {stream!r}\\n{type(error).__name__}: {error}", file=sys.stderr)
    os._exit(status & 0xFF)

def run(request):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["-c", *request["arguments"]]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.ready = ready
    script = compile(request["script"], "<script>", "exec")
    if request["ending"] == "complete":
        return exec(script, vars(main))
    if request["ending"] == "quick":
        try:
            exec(script, vars(main))
            return end(0)
        except SystemExit as exit:
            end(exit.code or 0)
            raise
    status = 0
    try:
        exec(script, vars(main))
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

run(serve())
"""


@contextmanager
def host() -> Iterator[str]:
    """Run a host and yield the folder of its sockets."""
    with tempfile.TemporaryDirectory(prefix="strands-host-") as folder, ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) for _ in _SOCKETS]
        for listener, name in zip(listeners, _SOCKETS, strict=True):
            listener.bind(str(Path(folder, name)))
            listener.listen()
        numbers = [listener.fileno() for listener in listeners]
        process = subprocess.Popen(
            [sys.executable, "-c", _HOST, *map(str, numbers)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            # Pipes, so that Python reads and writes as it does for the children's, which take their places.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=numbers,
        )
        stack.close()
        with process:
            yield folder
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(_DEADLINE) == 0


@contextmanager
def shared_host() -> Iterator[None]:
    """Share one host among the crews of this process and of those that it starts."""
    with host() as folder:
        os.environ[_SHARED] = folder
        yield
        del os.environ[_SHARED]


class Crew:
    """Copies of the host that the others are forked from; they end, and the others with them, with its ``with`` block.

    If no host is shared, it runs one of its own.
    """

    def __enter__(self) -> "Crew":
        with ExitStack() as stack:
            folder = os.environ.get(_SHARED) or stack.enter_context(host())
            self._control, self._younger = (
                stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) for _ in _SOCKETS
            )
            for control, name in zip((self._control, self._younger), _SOCKETS, strict=True):
                control.settimeout(_DEADLINE)
                control.connect(str(Path(folder, name)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, script: str, *arguments: str, younger: bool = False, complete: bool = False) -> "Process":
        """Fork a process that runs the script with these ``sys.argv[1:]`` and the environment of this one.

        A younger one has imported Strands, but neither this package nor psycopg. At the end of a complete one, all
        objects are deleted, as at the end of any other interpreter.
        """
        return Process(self, script, arguments, ending="complete" if complete else "quick", younger=younger)

    @contextmanager
    def of(self, number: int, script: str, *arguments: str) -> Iterator[list["Process"]]:
        """Fork ``number`` processes, yield them when all of them wait in ``ready()``, and kill those that are left.

        Each has its number as a last argument. They end without exit handlers.
        """
        processes = [Process(self, script, (*arguments, str(each)), ending="abrupt") for each in range(number)]
        try:
            for process in processes:
                assert process.line() == "ready"
            yield processes
        finally:
            for process in processes:
                process.close()

    def ask(self, request: object, files: Iterable[int] = (), *, younger: bool) -> int:
        """Send one of the hosts a request and return its answer. For the processes' use."""
        control = self._younger if younger else self._control
        socket.send_fds(control, [json.dumps(request).encode()], list(files))
        return int(json.loads(control.recv(1024)))


class Process:
    """One forked process, killed at the end of its ``with`` block.

    Attributes:
        pid: Its id.
    """

    def __init__(
        self, crew: Crew, script: str, arguments: tuple[str, ...], *, ending: str, younger: bool = False
    ) -> None:
        self._crew = crew
        self._younger = younger
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._read = b""
        self._status: int | None = None
        their_input, self._input = os.pipe()
        self._output, their_output = os.pipe()
        request = {
            "script": script,
            "arguments": arguments,
            "environment": dict(os.environ),
            "folder": os.getcwd(),  # noqa: PTH109
            "ending": ending,
        }
        self.pid = crew.ask(request, [their_input, their_output, self._errors.fileno()], younger=younger)
        os.close(their_input)
        os.close(their_output)

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, text: str) -> None:
        """Write to its standard input."""
        data = text.encode()
        while data:
            data = data[os.write(self._input, data) :]

    def release(self) -> None:
        """Resume it from ``ready()``, or from the next one if it waits in none."""
        self.write("x")

    def __iter__(self) -> Iterator[str]:
        """Yield the lines that it prints until its end, from the last one that was read on."""
        while b"\n" in self._read or self._read_more():
            if b"\n" in self._read:
                line, self._read = self._read.split(b"\n", 1)
                yield line.decode()

    def line(self) -> str:
        """Wait for the next line that it prints."""
        line = next(iter(self), None)
        assert line is not None, f"process {self.pid} has ended: {self.errors()}"
        return line

    def lines(self) -> list[str]:
        """Wait for its end and return the lines that it has printed since the last one that was read."""
        return list(self)

    def finish(self) -> tuple[int, str, str]:
        """Close its standard input, wait for its end and close it.

        Returns:
            Its exit status, negative for a signal, what it wrote to standard output since the last line that was read,
            and what it wrote to standard error.
        """
        if self._input >= 0:
            os.close(self._input)
            self._input = -1
        try:
            while self._read_more():
                pass
            return self.end(), self._read.decode(), self.errors()
        finally:
            self.close()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        # Nobody else can have its id: the host has not waited for it yet.
        if self._status is None:
            os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        if self._status is None:
            self._status = self._crew.ask(self.pid, younger=self._younger)
        return self._status

    def errors(self) -> str:
        """Return what it has written to standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def result(self) -> list[str]:
        """Wait for its end, which must be a success, and return the lines that it has printed."""
        lines = self.lines()
        assert self.end() == 0, self.errors()
        return lines

    def close(self) -> None:
        """Kill it if it lives."""
        if self._output < 0:
            return
        self.signal(signal.SIGKILL)
        self.end()
        if self._input >= 0:
            os.close(self._input)
        os.close(self._output)
        self._errors.close()
        self._output = -1

    def _read_more(self) -> bool:
        """Whether there was something to read before the end of its output."""
        readable, _, _ = select.select([self._output], [], [], _DEADLINE)
        assert readable, f"process {self.pid} printed nothing in time: {self.errors()}"
        data = os.read(self._output, 1 << 16)
        self._read += data
        return bool(data)
