"""Outputs of a process when the disk is full, a file may not grow, descriptors run out, or a standard stream is closed.

What remains is whole, and the error is one line of the command, or one of the library's errors, with advice.
"""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from strands.types.session import Session, SessionMessage, SessionType

from strands_psycopg import PostgresSessionRepository, ReportError
from strands_psycopg.embedded import postgres
from strands_psycopg.errors import EmbeddedPostgresError
from strands_psycopg.report import write_report
from strands_psycopg.repository.window import Variant, Window
from strands_psycopg.transfer import export_files, export_session, session_ids
from support import agents, processes, transfers

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="only Linux has a disk that is always full")

# Commands with as much room for each file as the first argument says, with standard output in the second one if any.
MAIN = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, room, output, *arguments = sys.argv
if output:
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    sys.stdout.reconfigure(write_through=False) # as it is unless PYTHONUNBUFFERED is set
if room:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
from strands_psycopg.cli import main
sys.exit(main(arguments))
"""

# Commands whose standard streams with the numbers in the first argument are closed, as a shell would leave them.
CLOSED = """
import os, sys
from strands_psycopg.cli import main
_, numbers, *arguments = sys.argv
for number in map(int, numbers):
    os.close(number)
    name = ("stdin", "stdout", "stderr")[number]
    setattr(sys, name, None)
    setattr(sys, f"__{name}__", None)
sys.exit(main(arguments))
"""

ROOM = 1 << 20

# Calls something, in which there is no descriptor left from ``exhaust`` on.
WITHOUT_DESCRIPTORS = """
import os, resource, sys
from strands_psycopg import PostgresSessionRepository, StrandsPsycopgError
from strands_psycopg import report
from strands_psycopg.report import page
from strands_psycopg.transfer import FileSessions, export_files, files, import_sessions

def exhaust():
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))

class Exhausting:
    raw = False
    def __init__(self, session):
        self.session_id = session.session_id
        self.session = session
    def rows(self, issues):
        exhaust()
        return self.session.rows(issues)

class Source:
    def sessions(self):
        yield from map(Exhausting, FileSessions(folder).sessions())

class Directory(FileSessions):
    def sessions(self):
        exhaust()
        yield from super().sessions()

def read_and_exhaust(*arguments, **options):
    statistics = read(*arguments, **options)
    exhaust()
    return statistics

read, report.read_statistics = report.read_statistics, read_and_exhaust
write, files._write_session = files._write_session, lambda *arguments: exhaust() or write(*arguments)
_, dsn, folder, call = sys.argv
repository = PostgresSessionRepository(dsn)
repository.list_sessions()
try:
    print(eval(call))
except StrandsPsycopgError as error:
    print(type(error).__name__, error)
"""


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk with ``ROOM`` bytes in a folder."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=755", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(params=["a full disk", "a limit on the size of files"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """A folder with room for ``ROOM`` bytes, the limit that its users need for that, and why more is refused."""
    if request.param != "a full disk":
        yield tmp_path, str(ROOM), "File too large; raise the limit on the size of files"
        return
    with small_disk(tmp_path):
        yield tmp_path, "", "No space left on device; free some space, or choose another place"


def fill(repository: PostgresSessionRepository, session_id: str, *, messages: int, size: int = 100_000) -> None:
    repository.create_session(Session(session_id, SessionType.AGENT))
    repository.create_agent(session_id, transfers.agent("a"))
    for index in range(messages):
        repository.create_message(
            session_id, "a", SessionMessage({"role": "user", "content": [{"text": f"{index}" * size}]}, index)
        )


def exported(repository: PostgresSessionRepository, session_id: str) -> str:
    return "".join(export_session(repository, session_id))


def refused(errors: str, text: str) -> None:
    """Check that a command has failed with one line."""
    assert errors.startswith("strands-psycopg: error: ")
    assert text in errors
    assert errors.count("\n") == 1


def test_export_leaves_whole_sessions_in_its_file(
    repository: PostgresSessionRepository, dsn: str, place: tuple[Path, str, str]
) -> None:
    folder, room, reason = place
    fill(repository, "a", messages=2)
    fill(repository, "b", messages=20)
    file = folder / "sessions.jsonl"

    status, _, errors = processes.start(MAIN, room, "", "export", "--all", "--to", str(file), "--dsn", dsn).finish()

    refused(errors, f"{file} cannot be written: {reason}")
    assert status == 1
    assert file.read_text() == exported(repository, "a")


def test_export_leaves_no_file_if_there_is_no_room_for_its_first_session(
    repository: PostgresSessionRepository, dsn: str, place: tuple[Path, str, str]
) -> None:
    folder, room, reason = place
    fill(repository, "b", messages=20)
    file = folder / "sessions.jsonl"

    status, _, errors = processes.start(MAIN, room, "", "export", "b", "--to", str(file), "--dsn", dsn).finish()

    refused(errors, reason)
    assert status == 1
    assert list(folder.iterdir()) == []


def test_export_leaves_whole_sessions_in_the_file_that_is_its_standard_output(
    repository: PostgresSessionRepository, dsn: str, place: tuple[Path, str, str]
) -> None:
    folder, room, reason = place
    fill(repository, "a", messages=2)
    fill(repository, "b", messages=20)
    file = folder / "sessions.jsonl"
    file.write_text("\n")

    status, _, errors = processes.start(MAIN, room, str(file), "export", "--all", "--dsn", dsn).finish()

    refused(errors, f"standard output cannot be written: {reason}")
    assert status == 1
    assert file.read_text() == "\n" + exported(repository, "a")


def test_export_leaves_whole_sessions_in_its_folder(
    repository: PostgresSessionRepository, dsn: str, place: tuple[Path, str, str]
) -> None:
    folder, room, reason = place
    fill(repository, "a", messages=2)
    # Too much for the disk, and its last message for a file.
    fill(repository, "b", messages=12)
    text = "x" * ROOM
    repository.create_message("b", "a", SessionMessage({"role": "user", "content": [{"text": text}]}, 12))

    status, _, errors = processes.start(
        MAIN, room, "", "export", "--all", "--files", str(folder), "--dsn", dsn
    ).finish()

    refused(errors, f"exporting session 'b' to {folder}: {reason}")
    assert status == 1
    assert [path.name for path in folder.iterdir()] == ["session_a"]
    assert len(list((folder / "session_a/agents/agent_a/messages").iterdir())) == 2


def test_report_leaves_the_previous_one(
    repository: PostgresSessionRepository, dsn: str, place: tuple[Path, str, str]
) -> None:
    folder, room, reason = place
    file = folder / "report.html"
    file.write_text("the previous one")
    with (folder / "filling").open("wb") as filling, suppress(OSError):
        filling.write(bytes(ROOM - (1 << 14)))
    room = room and "1000"

    status, _, errors = processes.start(MAIN, room, "", "report", "--html", str(file), "--dsn", dsn).finish()

    refused(errors, f"the report cannot be written to {str(file)!r}: {reason}")
    assert status == 1
    assert file.read_text() == "the previous one"
    assert sorted(path.name for path in folder.iterdir()) == ["filling", "report.html"]


@needs_full
def test_stream_that_does_not_take_the_report_is_an_error(repository: PostgresSessionRepository) -> None:
    with (
        io.TextIOWrapper(FULL.open("wb", buffering=0), write_through=True) as full,
        pytest.raises(ReportError, match="the report cannot be written: No space left on device; free some space"),
    ):
        write_report(repository, full)


def test_import_without_room_for_its_temporary_file_stores_whole_sessions(
    monkeypatch: pytest.MonkeyPatch,
    repository: PostgresSessionRepository,
    empty_dsn: str,
    tmp_path_factory: pytest.TempPathFactory,
    place: tuple[Path, str, str],
) -> None:
    folder, room, reason = place
    monkeypatch.setenv("TMPDIR", str(folder))
    fill(repository, "a", messages=2)
    fill(repository, "b", messages=60)
    file = tmp_path_factory.mktemp("other") / "sessions.jsonl"
    file.write_text(exported(repository, "a") + exported(repository, "b"))
    with PostgresSessionRepository(empty_dsn) as other:
        other.ensure_schema()

        status, _, errors = processes.start(MAIN, room, "", "import", "--from", str(file), "--dsn", empty_dsn).finish()

        refused(errors, f"a temporary file cannot be written: {reason}")
        assert "TMPDIR" in errors
        assert status == 1
        assert list(session_ids(other)) == ["a"]
    assert list(folder.iterdir()) == []


def test_export_without_room_for_its_temporary_file_is_an_error(
    monkeypatch: pytest.MonkeyPatch, repository: PostgresSessionRepository, dsn: str, place: tuple[Path, str, str]
) -> None:
    folder, room, reason = place
    monkeypatch.setenv("TMPDIR", str(folder))
    fill(repository, "s", messages=1)
    variants = [
        Variant(each, None, {"role": "user", "content": [{"text": f"{each % 10}" * 100_000}]}) for each in range(1, 61)
    ]
    transfers.store_window(repository, "s", "a", Window(tuple(range(1, 61)), None), *variants)

    status, written, errors = processes.start(MAIN, room, "", "export", "s", "--dsn", dsn).finish()

    refused(errors, f"a temporary file cannot be written: {reason}")
    assert (status, written) == (1, "")
    # The connection is still good for another session.
    assert exported(repository, "s").count("message_variant") == 61


COMMANDS = [
    ["--help"],
    ["migrate", "--sql"],
    ["migrate", "--json"],
    ["migrate"],
    ["status"],
    ["status", "--json"],
    ["sessions"],
    ["show", "s"],
    ["show", "s", "--json"],
    ["stats"],
    ["export", "s"],
    ["purge", "--idle-for", "30d"],
]


@pytest.fixture
def with_session(repository: PostgresSessionRepository) -> None:
    agents.build(repository)("hello")


@needs_full
@pytest.mark.usefixtures("with_session")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, dsn: str, command: list[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)

    status, _, errors = processes.start(MAIN, "", str(FULL), *command).finish()

    expected = "standard output cannot be written: No space left on device; free some space, or choose another place\n"
    assert (status, errors) == (1, f"strands-psycopg: error: {expected}")


@pytest.fixture
def _in_the_environment(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)


OUTPUT_IS_CLOSED = "strands-psycopg: error: standard output is closed; redirect it, for example to /dev/null\n"


@pytest.mark.usefixtures("with_session", "_in_the_environment")
@pytest.mark.parametrize("command", [["--help"], ["sessions"], ["export", "s"]], ids=" ".join)
def test_closed_standard_output_is_one_line(command: list[str]) -> None:
    assert processes.start(CLOSED, "1", *command).finish() == (1, "", OUTPUT_IS_CLOSED)
    assert processes.start(CLOSED, "12", *command).finish() == (1, "", "")


@pytest.mark.usefixtures("with_session", "_in_the_environment")
def test_closed_standard_input_and_error_change_nothing(repository: PostgresSessionRepository) -> None:
    lines = exported(repository, "s")
    assert processes.start(CLOSED, "02", "export", "s").finish() == (0, lines, "")
    assert processes.start(CLOSED, "2", "export", "missing").finish() == (1, "", "")
    assert processes.start(CLOSED, "2", "no command").finish() == (2, "", "")


@pytest.mark.usefixtures("_in_the_environment")
def test_import_from_closed_standard_input_is_one_line() -> None:
    status, _, errors = processes.start(CLOSED, "0", "import", "--from", "-").finish()
    assert (status, errors) == (1, "strands-psycopg: error: standard input is closed; redirect it\n")


@pytest.mark.usefixtures("with_session", "_in_the_environment")
def test_shell_closes_streams_like_that() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -m strands_psycopg export s <&- >&-', sys.executable],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (1, OUTPUT_IS_CLOSED)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("export_files(repository, 't', folder + '/new')", "TransferError exporting session 't' to {}/new: "),
        ("import_sessions(repository, Directory(folder))", "TransferError the directory {} cannot be read: "),
        # If it were skipped, a session would be lost.
        (
            "import_sessions(repository, Source(), skip_bad=True)",
            "IncompleteTransferError 1 session was not imported: {}/session_s/session.json cannot be read: ",
        ),
        (
            "report.write_report(repository, folder + '/report.html')",
            "ReportError the report cannot be written to '{}/report.html': ",
        ),
    ],
    ids=["export", "list", "import", "report"],
)
def test_lack_of_descriptors_is_an_error_with_advice(
    repository: PostgresSessionRepository, dsn: str, tmp_path: Path, call: str, expected: str
) -> None:
    for session_id in ("s", "t"):
        repository.create_session(Session(session_id, SessionType.AGENT))
    export_files(repository, "s", tmp_path)
    repository.delete_session("s")

    advice = "Too many open files; close files and connections, or raise the limit on open files (ulimit -n)\n"
    assert processes.run(WITHOUT_DESCRIPTORS, dsn, str(tmp_path), call) == expected.format(tmp_path) + advice


def test_path_that_is_no_folder_for_a_server_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(EmbeddedPostgresError, match=f"cannot be started: File exists.* .*{file}"), postgres(file):
        pass


def test_disk_that_is_too_small_for_a_server_is_an_error() -> None:
    # The user that runs the server for root must have access to it.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        disk = Path(folder, "disk")
        disk.mkdir()
        with (
            small_disk(disk),
            pytest.raises(EmbeddedPostgresError, match="No space left on device"),
            postgres(disk / "cluster"),
        ):
            pass
