"""The commands for usage statistics: ``stats`` and ``report``."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from datetime import date, datetime

from strands_psycopg.cli import output
from strands_psycopg.cli.options import TABLES, Commands, open_repository, parse_path
from strands_psycopg.printable import printable
from strands_psycopg.report import (
    QUERY_COUNT,
    Figures,
    Latency,
    Statistics,
    ToolFigures,
    formatting,
    read_statistics,
    write_report,
)
from strands_psycopg.report.formatting import display_name

_DAYS = 30
_LONGEST = 10


def add_to(commands: Commands) -> None:
    """Add the commands."""
    stats = commands.add_parser(
        "stats",
        parents=[TABLES],
        help="show statistics of sessions: turns, tokens, tools",
        description="Show statistics of the last days: turns, messages, tokens, tool calls, latency and the "
        f"{_LONGEST} longest sessions. The server reads every message for them, as it is stored: of those that a "
        "payload codec has encrypted, only numbers and times count.",
    )
    _add_days(stats)
    stats.add_argument("--json", action="store_true", help="print JSON")
    stats.set_defaults(run=_stats)

    report = commands.add_parser(
        "report",
        parents=[TABLES],
        help="write the same statistics as an HTML page with plots and tables",
        description="Write statistics of the last days as an HTML page with plots and searchable tables. The page "
        "needs no other file and no network. This command requires the extra report.",
    )
    report.add_argument(
        "--html", type=parse_path, metavar="FILE", required=True, help="file to write; an existing one is replaced"
    )
    _add_days(report)
    report.set_defaults(run=_report)


def _add_days(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--days",
        metavar="N",
        type=int,
        default=_DAYS,
        help=f"number of days up to and including today, in UTC (default: {_DAYS})",
    )


def _stats(arguments: argparse.Namespace) -> int:
    with open_repository(arguments) as repository, output.progress("reading messages", QUERY_COUNT) as progress:
        statistics = read_statistics(repository, days=arguments.days, longest=_LONGEST, progress=progress)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(statistics), indent=2, default=_format_date))
    else:
        _print_statistics(statistics)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    with open_repository(arguments) as repository, output.progress("reading messages", QUERY_COUNT + 1) as progress:
        statistics = write_report(repository, arguments.html, days=arguments.days, progress=progress)
    print(f"wrote {printable(arguments.html)}: {formatting.integer(statistics.total.messages)} messages")
    return 0


def _format_date(value: date | datetime) -> str:
    return value.isoformat()


def _print_statistics(statistics: Statistics) -> None:
    total = statistics.total
    failed = formatting.percentage(total.tool_failures, total.tool_calls)
    print(f"period    {statistics.since or 'all'} to {statistics.until}, days in UTC")
    print(f"sessions  {statistics.sessions:,}, {total.turns:,} turns, {total.messages:,} messages")
    print(f"tokens    {total.input_tokens:,} in, {total.output_tokens:,} out, {total.cache_read_tokens:,} from cache")
    print(f"tools     {total.tool_calls:,} calls, {total.tool_failures:,} failed ({failed})")
    print(f"model     {_format_latency(statistics.model_latency)}; first byte {_format_latency(statistics.first_byte)}")
    _print_table(
        ("day", "sessions", "turns", "messages", "tool calls", "failed", "tokens in", "tokens out"),
        [(f"{each.day}", *_count_cells(each.sessions, each)) for each in statistics.days],
    )
    _print_table(
        ("tool", "calls", "failed", "no result", "median", "p95", "longest"),
        [(display_name(each.name), *_tool_cells(each)) for each in statistics.tools],
    )
    names, annotations = output.annotation_columns(statistics.longest)
    _print_table(
        ("session", *names, "last active", "turns", "messages", "tool calls", "failed", "tokens in", "tokens out"),
        [
            (
                display_name(each.session_id),
                *cells,
                f"{each.last_active_at:%Y-%m-%d %H:%M}",
                *_count_cells(None, each),
            )
            for each, cells in zip(statistics.longest, annotations, strict=True)
        ],
        left=("session", *names),
    )


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()) -> None:
    if rows:
        print()
        left = left or header[:1]
        output.print_table(header, rows, right=[name for name in header if name not in left])


def _count_cells(sessions: int | None, figures: Figures) -> list[str]:
    counts = (
        sessions,
        figures.turns,
        figures.messages,
        figures.tool_calls,
        figures.tool_failures,
        figures.input_tokens,
        figures.output_tokens,
    )
    return [formatting.integer(each) for each in counts if each is not None]


def _tool_cells(tool: ToolFigures) -> list[str]:
    times = tool.latency and (tool.latency.median, tool.latency.p95, tool.latency.longest)
    return [
        *map(formatting.integer, (tool.calls, tool.failures, tool.without_result)),
        *(map(formatting.duration, times) if times else ("", "", "")),
    ]


def _format_latency(latency: Latency | None) -> str:
    if latency is None:
        return "not measured"
    return f"median {formatting.duration(latency.median)}, p95 {formatting.duration(latency.p95)}"
