"""The commands that move sessions in and out: ``export`` and ``import``."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from strands_psycopg import transfer
from strands_psycopg.cli import options, output
from strands_psycopg.cli.options import TABLES, Commands, dsn_of, id_of_session, repository_of
from strands_psycopg.errors import SessionExistsError, SessionNotFoundError, TransferError
from strands_psycopg.printable import printable
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.transfer.sources import Source

_STANDARD = "-"


def add_to(commands: Commands) -> None:
    """Add the commands."""
    _add_export(commands)
    _add_import(commands)


def _add_export(commands: Commands) -> None:
    export = commands.add_parser(
        "export",
        parents=[TABLES],
        allow_abbrev=False,
        help="write sessions as JSON lines, or as files of Strands' FileSessionManager",
        description="Write sessions as JSON lines, which import reads on any database, or as the files of Strands' "
        "FileSessionManager. Interrupted, it leaves whole sessions behind; on standard output perhaps a last one that "
        "is cut off, which import refuses.",
    )
    export.add_argument("sessions", type=id_of_session, metavar="SESSION", nargs="*", help="the id of a session")
    export.add_argument("--all", action="store_true", help="all sessions")
    export.add_argument("--prefix", metavar="TEXT", help="all sessions whose ids begin so")
    place = export.add_mutually_exclusive_group()
    place.add_argument(
        "--to", metavar="FILE", default=_STANDARD, help="write JSON lines to a new file; - is standard output (-)"
    )
    place.add_argument(
        "--files",
        metavar="DIR",
        help="write files, for FileSessionManager(storage_dir=DIR). A session that is there already, the very same, is "
        "counted and left alone; one that files cannot hold is named and refused, all others are written, and the exit "
        "code is 1",
    )
    export.add_argument("--json", action="store_true", help="print the counts as JSON; with --to FILE or --files")
    export.set_defaults(run=lambda arguments: _export(export, arguments))


def _add_import(commands: Commands) -> None:
    import_ = commands.add_parser(
        "import",
        parents=[TABLES],
        allow_abbrev=False,
        help="store sessions from JSON lines, Strands' files, S3 or another package's tables",
        description="Store sessions, with the times they had. Each is stored whole or not at all, so an import that "
        "was interrupted, or that failed for some sessions, can be run again: a session that is there already, the "
        "very same, is counted and left alone. No agent may run on the source meanwhile. The exit code is 1 if "
        "any session was refused; all others are stored.",
    )
    source = import_.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--from", dest="lines", metavar="FILE", help="JSON lines that export wrote; - is standard input"
    )
    source.add_argument("--files", metavar="DIR", help="the storage_dir of Strands' FileSessionManager")
    source.add_argument(
        "--s3",
        metavar="s3://BUCKET/PREFIX",
        help="the bucket and prefix of Strands' S3SessionManager; AWS's own variables (AWS_PROFILE, AWS_REGION, "
        "AWS_ENDPOINT_URL_S3, ...) say how to reach it",
    )
    source.add_argument(
        "--tables-of",
        choices=["strands-postgresql-session-manager"],
        help="the tables of another package, in its versions 0.1 and 0.2",
    )
    import_.add_argument("--tables-dsn", metavar="DSN", help="the database of such tables (the same one)")
    import_.add_argument("--tables-schema", metavar="NAME", help="the schema of such tables (public)")
    import_.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out and name files, objects and rows that cannot be read, instead of refusing their sessions; not "
        "with --from, since lines are whole or not",
    )
    import_.add_argument("--json", action="store_true", help="print what was done as JSON")
    import_.set_defaults(run=lambda arguments: _import(import_, arguments))


def _export(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    ways = [bool(arguments.sessions), arguments.all, arguments.prefix is not None]
    if sum(ways) != 1:
        parser.error("say which sessions: their ids, or --all, or --prefix")
    to_standard_output = arguments.files is None and arguments.to == _STANDARD
    if to_standard_output and arguments.json:
        parser.error("--json needs --to FILE or --files, since the sessions go to standard output")
    failures: dict[str, str] = {}
    with repository_of(arguments) as repository, output.progress("exporting") as advance:
        if arguments.files is not None:
            result = _each(
                repository,
                arguments,
                lambda session_id: _write_files(repository, session_id, arguments.files, advance, failures),
            )
        else:
            with _written(arguments.to) as file:
                result = _each(
                    repository, arguments, lambda session_id: _write_lines(repository, session_id, file, advance)
                )
    if not to_standard_output:
        _tell("exported", result, as_json=arguments.json, failures=failures)
    return 1 if failures else 0


def _each(
    repository: PostgresSessionRepository,
    arguments: argparse.Namespace,
    export: Callable[[str], transfer.TransferResult],
) -> transfer.TransferResult:
    result = transfer.TransferResult()
    for session_id in arguments.sessions or transfer.session_ids(repository, arguments.prefix or ""):
        try:
            result += export(session_id)
        except SessionNotFoundError:
            # One that was listed has just been deleted.
            if arguments.sessions:
                raise
    return result


def _write_files(
    repository: PostgresSessionRepository,
    session_id: str,
    directory: str,
    advance: Callable[[int], None],
    failures: dict[str, str],
) -> transfer.TransferResult:
    try:
        result = transfer.export_files(repository, session_id, directory)
    except (TransferError, SessionExistsError) as error:
        # A directory that cannot be written will not take the next one either.
        if isinstance(error.__cause__, OSError):
            raise
        failures[session_id] = str(error)
        return transfer.TransferResult()
    advance(result.messages)
    return result


def _write_lines(
    repository: PostgresSessionRepository, session_id: str, file: IO[str], advance: Callable[[int], None]
) -> transfer.TransferResult:
    # Standard output may be a file that this is appended to, where nobody can tell where this began.
    whole = file.tell() if file is not sys.stdout and file.seekable() else None
    line = ""
    try:
        for line in transfer.export_session(repository, session_id):
            file.write(line)
            advance(line.startswith('{"kind": "message"'))
        file.flush()
    except BaseException:
        # What is written of this session is of no use.
        if whole is not None:
            file.seek(whole)
            file.truncate()
        raise
    counts = json.loads(line)
    del counts["kind"]
    return transfer.TransferResult(sessions=1, **counts)


@contextmanager
def _written(name: str) -> Iterator[IO[str]]:
    """Open a file that does not exist, or something that is no file on a disk."""
    if name == _STANDARD:
        yield sys.stdout
        return
    path = Path(name)
    is_new = path.is_file() or not path.exists()
    try:
        with path.open("x" if is_new else "w", encoding="ascii") as file:
            try:
                yield file
            except BaseException:
                # So that the command can be run again.
                if is_new and file.tell() == 0:
                    path.unlink()
                raise
    except FileExistsError as error:
        raise TransferError(f"{name} exists; remove it first, or name another file") from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TransferError(f"{name} cannot be written: {error.strerror}") from error


def _import(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.lines is not None and arguments.skip_bad:
        parser.error("--skip-bad is not for --from")
    if arguments.tables_of is None and (arguments.tables_dsn or arguments.tables_schema) is not None:
        parser.error("--tables-dsn and --tables-schema need --tables-of")
    with (
        repository_of(arguments) as repository,
        _source(arguments) as source,
        output.progress("importing") as advance,
    ):
        try:
            result = transfer.import_sessions(repository, source, skip_bad=arguments.skip_bad, progress=advance)
        except transfer.IncompleteTransferError as error:
            failures = {session_id: str(failure) for session_id, failure in error.failures.items()}
            _tell("imported", error.result, as_json=arguments.json, failures=failures)
            return 1
    _tell("imported", result, as_json=arguments.json, failures={})
    return 0


@contextmanager
def _source(arguments: argparse.Namespace) -> Iterator[Source]:
    if arguments.lines is not None:
        yield transfer.SessionLines(_read_lines(arguments.lines))
    elif arguments.files is not None:
        yield transfer.FileSessions(arguments.files)
    elif arguments.s3 is not None:
        address = urlsplit(arguments.s3)
        if address.scheme != "s3" or not address.netloc:
            raise ValueError(f"--s3 must be s3://BUCKET or s3://BUCKET/PREFIX, not {arguments.s3!r}")
        yield transfer.S3Sessions(address.netloc, address.path)
    else:
        dsn = arguments.tables_dsn or dsn_of(arguments) or ""
        with transfer.PostgresqlSessionManagerTables(
            dsn, schema=arguments.tables_schema, retry_timeout=options.RETRY_TIMEOUT
        ) as source:
            yield source


def _read_lines(name: str) -> Iterator[str]:
    try:
        # Not what the locale says: export writes ASCII, and what others made of it is UTF-8.
        with open(
            sys.stdin.fileno() if name == _STANDARD else name, encoding="utf-8", closefd=name != _STANDARD
        ) as file:
            yield from file
    except UnicodeDecodeError:
        raise TransferError(f"{name} is not UTF-8; only what export wrote can be imported") from None
    except OSError as error:
        raise TransferError(f"{name} cannot be read: {error.strerror}") from error


def _tell(done: str, result: transfer.TransferResult, *, as_json: bool, failures: dict[str, str]) -> None:
    if as_json:
        print(json.dumps({**dataclasses.asdict(result), "failures": failures}, indent=2))
        return
    counts = ", ".join(
        output.counted(number, noun)
        for number, noun in (
            (result.sessions, "session"),
            (result.agents, "agent"),
            (result.messages, "message"),
            (result.multi_agents, "multi-agent"),
        )
    )
    print(f"{done} {counts}")
    if result.already_there:
        print(f"{output.counted(result.already_there, 'session')} already there")
    if result.gaps_closed:
        print(f"{output.counted(result.gaps_closed, 'gap')} in the indexes of messages closed")
    for skipped in result.skipped:
        print("skipped:", printable(skipped), file=sys.stderr)
    for failure in failures.values():
        print("refused:", printable(failure), file=sys.stderr)
