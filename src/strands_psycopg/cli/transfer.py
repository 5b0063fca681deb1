"""The commands ``export`` and ``import``."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from strands_psycopg import transfer
from strands_psycopg.cli import options, output
from strands_psycopg.cli.lines import STDIO, LinesFile, open_output, read_lines
from strands_psycopg.cli.options import CODEC, TABLES, Commands, get_dsn, open_repository, parse_id
from strands_psycopg.errors import SessionExistsError, SessionNotFoundError, TransferError
from strands_psycopg.printable import printable
from strands_psycopg.repository import PostgresSessionRepository
from strands_psycopg.transfer.sources import Source


def add_to(commands: Commands) -> None:
    """Add the commands."""
    _add_export(commands)
    _add_import(commands)


def _add_export(commands: Commands) -> None:
    export = commands.add_parser(
        "export",
        parents=[TABLES, CODEC],
        help="export sessions as JSON lines or as files of Strands' FileSessionManager",
        description="Export sessions as JSON lines, which import reads into any database, or as files of Strands' "
        "FileSessionManager. If the command is interrupted, files contain only complete sessions; a pipe may end with "
        "an incomplete one, which import refuses.",
    )
    export.add_argument("sessions", type=parse_id, metavar="SESSION", nargs="*", help="id of a session")
    export.add_argument("--all", action="store_true", help="export all sessions")
    export.add_argument("--prefix", metavar="TEXT", help="export all sessions whose id starts with TEXT")
    destination = export.add_mutually_exclusive_group()
    destination.add_argument(
        "--to",
        type=options.parse_path,
        metavar="FILE",
        default=STDIO,
        help="write JSON lines to a new file; - is standard output (default: -)",
    )
    destination.add_argument(
        "--files",
        type=options.parse_path,
        metavar="DIR",
        help="write files for FileSessionManager(storage_dir=DIR). Sessions that already exist there with the same "
        "content are not changed. Checkpoints, and windows of agents that are not the end of their logs, are left out "
        "and counted. Sessions that files cannot represent are reported and not written, and the exit code is 1",
    )
    export.add_argument(
        "--raw",
        action="store_true",
        help="export documents as they are stored, without the payload codec, for a backup that stays encrypted; "
        "import stores them as they are",
    )
    export.add_argument("--json", action="store_true", help="print the counts as JSON; requires --to FILE or --files")
    export.set_defaults(run=lambda arguments: _export(export, arguments))


def _add_import(commands: Commands) -> None:
    import_ = commands.add_parser(
        "import",
        parents=[TABLES, CODEC],
        help="import sessions from JSON lines, Strands' files, S3 or another package's tables",
        description="Import sessions with their original times. Each session is stored completely or not at all. An "
        "import that was interrupted, or that failed for some sessions, can be run again: sessions that already exist "
        "with the same content are not changed. No agent may write to the source during the import. The exit code is 1 "
        "if any session could not be imported; all others are stored.",
    )
    source = import_.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--from",
        dest="lines",
        type=options.parse_path,
        metavar="FILE",
        help="JSON lines written by export; - is standard input",
    )
    source.add_argument(
        "--files", type=options.parse_path, metavar="DIR", help="storage_dir of Strands' FileSessionManager"
    )
    source.add_argument(
        "--s3",
        metavar="s3://BUCKET/PREFIX",
        help="bucket and prefix of Strands' S3SessionManager; the connection is configured by AWS's environment "
        "variables (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL_S3, ...)",
    )
    source.add_argument(
        "--tables-of",
        choices=["strands-postgresql-session-manager"],
        metavar="PACKAGE",
        help="tables of another package: strands-postgresql-session-manager (versions 0.1 and 0.2)",
    )
    import_.add_argument(
        "--tables-dsn", metavar="DSN", help="database with the tables of --tables-of (default: the target database)"
    )
    import_.add_argument(
        "--tables-schema", metavar="NAME", help="schema of the tables of --tables-of (default: public)"
    )
    import_.add_argument(
        "--skip-bad",
        action="store_true",
        help="skip and report files, objects and rows that cannot be read, instead of failing for their sessions; not "
        "available with --from",
    )
    import_.add_argument("--json", action="store_true", help="print the result as JSON")
    import_.set_defaults(run=lambda arguments: _import(import_, arguments))


def _export(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    selections = [bool(arguments.sessions), arguments.all, arguments.prefix is not None]
    if sum(selections) != 1:
        parser.error("select sessions by their ids, with --all or with --prefix")
    if arguments.raw and arguments.files is not None:
        parser.error("--raw cannot be used with --files: Strands reads nothing but its own documents from them")
    to_standard_output = arguments.files is None and arguments.to == STDIO
    if to_standard_output and arguments.json:
        parser.error("--json requires --to FILE or --files, since the sessions go to standard output")
    failures: dict[str, str] = {}
    with open_repository(arguments) as repository, output.progress("exporting") as advance:
        if arguments.files is not None:
            result = _export_each(
                repository,
                arguments,
                lambda session_id: _export_files(repository, session_id, arguments.files, advance, failures),
            )
        else:
            with open_output(arguments.to) as file:
                result = _export_each(
                    repository,
                    arguments,
                    lambda session_id: _export_lines(repository, session_id, file, advance, raw=arguments.raw),
                )
    if not to_standard_output:
        _print_result("exported", result, as_json=arguments.json, failures=failures)
    return 1 if failures else 0


def _export_each(
    repository: PostgresSessionRepository,
    arguments: argparse.Namespace,
    export: Callable[[str], transfer.TransferResult],
) -> transfer.TransferResult:
    result = transfer.TransferResult()
    for session_id in dict.fromkeys(arguments.sessions) or transfer.session_ids(repository, arguments.prefix or ""):
        try:
            result += export(session_id)
        except SessionNotFoundError:
            # It was deleted after it had been listed.
            if arguments.sessions:
                raise
    return result


def _export_files(
    repository: PostgresSessionRepository,
    session_id: str,
    directory: str,
    advance: Callable[[int], None],
    failures: dict[str, str],
) -> transfer.TransferResult:
    try:
        result = transfer.export_files(repository, session_id, directory)
    except (TransferError, SessionExistsError) as error:
        # If the directory cannot be written, every other session would fail too.
        if isinstance(error.__cause__, OSError):
            raise
        failures[session_id] = str(error)
        return transfer.TransferResult()
    advance(result.messages)
    return result


def _export_lines(
    repository: PostgresSessionRepository,
    session_id: str,
    file: LinesFile,
    advance: Callable[[int], None],
    *,
    raw: bool,
) -> transfer.TransferResult:
    line = ""
    with file.all_or_nothing():
        for line in transfer.export_session(repository, session_id, raw=raw):
            file.write(line)
            advance(line.startswith('{"kind": "message"'))
    counts = json.loads(line)
    del counts["kind"]
    return transfer.TransferResult(sessions=1, **counts)


def _import(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.lines is not None and arguments.skip_bad:
        parser.error("--skip-bad cannot be used with --from")
    if arguments.tables_of is None and (arguments.tables_dsn, arguments.tables_schema) != (None, None):
        parser.error("--tables-dsn and --tables-schema require --tables-of")
    with (
        open_repository(arguments) as repository,
        _source(arguments) as source,
        output.progress("importing") as advance,
    ):
        try:
            result = transfer.import_sessions(repository, source, skip_bad=arguments.skip_bad, progress=advance)
        except transfer.IncompleteTransferError as error:
            failures = {session_id: str(failure) for session_id, failure in error.failures.items()}
            _print_result("imported", error.result, as_json=arguments.json, failures=failures)
            return 1
    _print_result("imported", result, as_json=arguments.json, failures={})
    return 0


@contextmanager
def _source(arguments: argparse.Namespace) -> Iterator[Source]:
    if arguments.lines is not None:
        yield transfer.SessionLines(read_lines(arguments.lines))
    elif arguments.files is not None:
        yield transfer.FileSessions(arguments.files)
    elif arguments.s3 is not None:
        address = urlsplit(arguments.s3)
        if address.scheme != "s3" or not address.netloc:
            raise ValueError(f"--s3 must be s3://BUCKET or s3://BUCKET/PREFIX, not {arguments.s3!r}")
        yield transfer.S3Sessions(address.netloc, address.path)
    else:
        dsn = get_dsn(arguments) or "" if arguments.tables_dsn is None else arguments.tables_dsn
        with transfer.PostgresqlSessionManagerTables(
            dsn, schema=arguments.tables_schema, retry_timeout=options.RETRY_TIMEOUT
        ) as source:
            yield source


def _print_result(verb: str, result: transfer.TransferResult, *, as_json: bool, failures: dict[str, str]) -> None:
    if as_json:
        print(json.dumps({**dataclasses.asdict(result), "failures": failures}, indent=2))
        return
    counts = ", ".join(
        output.pluralize(number, noun)
        for number, noun in (
            (result.sessions, "session"),
            (result.agents, "agent"),
            (result.messages, "message"),
            (result.multi_agents, "multi-agent"),
        )
    )
    checkpoints = f", {output.pluralize(result.checkpoints, 'checkpoint')}" if result.checkpoints else ""
    values = f", {output.pluralize(result.values, 'stored value')}" if result.values else ""
    print(f"{verb} {counts}{checkpoints}{values}")
    if result.unchanged:
        print(f"{output.pluralize(result.unchanged, 'session')} unchanged")
    if result.gaps_closed:
        print(f"{output.pluralize(result.gaps_closed, 'gap')} in message indexes closed")
    if result.windows_omitted:
        print(f"{output.pluralize(result.windows_omitted, 'window')} left out: files hold the log only")
    if result.checkpoints_omitted:
        print(f"{output.pluralize(result.checkpoints_omitted, 'checkpoint')} left out: files have no place for them")
    if result.values_omitted:
        print(f"{output.pluralize(result.values_omitted, 'stored value')} left out: files have no place for them")
    for skipped in result.skipped:
        print("skipped:", printable(skipped), file=sys.stderr)
    for failure in failures.values():
        print("failed:", printable(failure), file=sys.stderr)
