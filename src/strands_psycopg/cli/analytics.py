"""The commands that tell what the sessions amount to: ``stats`` and ``report``."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from datetime import date, datetime

from strands_psycopg.cli import output
from strands_psycopg.cli.options import TABLES, Commands, repository_of
from strands_psycopg.printable import printable
from strands_psycopg.report import (
    QUERIES,
    Figures,
    Latency,
    Statistics,
    ToolFigures,
    formatting,
    read_statistics,
    write_report,
)

_DAYS = 30
_LONGEST = 10


def add_to(commands: Commands) -> None:
    """Add the commands."""
    stats = commands.add_parser(
        "stats",
        parents=[TABLES],
        allow_abbrev=False,
        help="show what the sessions amount to: turns, tokens, tools",
        description="Show what the sessions of the last days amount to: turns, messages, tokens, tool calls, latency "
        f"and the {_LONGEST} longest sessions. The server reads every message for it.",
    )
    _add_days(stats)
    stats.add_argument("--json", action="store_true", help="print JSON")
    stats.set_defaults(run=_stats)

    report = commands.add_parser(
        "report",
        parents=[TABLES],
        allow_abbrev=False,
        help="write the same as a page with plots and tables",
        description="Write what the sessions of the last days amount to as a page of HTML with plots and searchable "
        "tables, which needs no other file and no network. The extra report draws the plots.",
    )
    report.add_argument("--html", metavar="FILE", required=True, help="the file; it is replaced")
    _add_days(report)
    report.set_defaults(run=_report)


def _add_days(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--days",
        metavar="N",
        type=int,
        default=_DAYS,
        help=f"how many days, of which today is the last, in UTC ({_DAYS})",
    )


def _stats(arguments: argparse.Namespace) -> int:
    with repository_of(arguments) as repository, output.progress("reading messages", QUERIES) as progress:
        statistics = read_statistics(repository, days=arguments.days, longest=_LONGEST, progress=progress)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(statistics), indent=2, default=_iso))
    else:
        _describe(statistics)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    with repository_of(arguments) as repository, output.progress("reading messages", QUERIES + 1) as progress:
        statistics = write_report(repository, arguments.html, days=arguments.days, progress=progress)
    print(f"wrote {printable(arguments.html)}: {formatting.count(statistics.total.messages)} messages")
    return 0


def _iso(value: date | datetime) -> str:
    return value.isoformat()


def _describe(statistics: Statistics) -> None:
    total = statistics.total
    failed = formatting.share(total.tool_failures, total.tool_calls)
    print(f"time      {statistics.since or 'all'} to {statistics.until}, days in UTC")
    print(f"sessions  {statistics.sessions:,}, {total.turns:,} turns, {total.messages:,} messages")
    print(f"tokens    {total.input_tokens:,} in, {total.output_tokens:,} out, {total.cache_read_tokens:,} from cache")
    print(f"tools     {total.tool_calls:,} calls, {total.tool_failures:,} failed ({failed})")
    print(f"model     {_latency(statistics.model_latency)}; first byte {_latency(statistics.first_byte)}")
    _print_table(
        ("day", "sessions", "turns", "messages", "tool calls", "failed", "tokens in", "tokens out"),
        [(f"{each.day}", *_counts(each.sessions, each)) for each in statistics.days],
    )
    _print_table(
        ("tool", "calls", "failed", "no result", "median", "95 % within", "longest"),
        [(_name(each.name), *_of_tool(each)) for each in statistics.tools],
    )
    _print_table(
        ("session", "last active", "turns", "messages", "tool calls", "failed", "tokens in", "tokens out"),
        [
            (_name(each.session_id), f"{each.last_active_at:%Y-%m-%d %H:%M}", *_counts(None, each))
            for each in statistics.longest
        ],
    )


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        print()
        output.print_table(header, rows, right=header[1:])


def _counts(sessions: int | None, figures: Figures) -> list[str]:
    counts = (
        sessions,
        figures.turns,
        figures.messages,
        figures.tool_calls,
        figures.tool_failures,
        figures.input_tokens,
        figures.output_tokens,
    )
    return [formatting.count(each) for each in counts if each is not None]


def _of_tool(tool: ToolFigures) -> list[str]:
    times = tool.latency and (tool.latency.median, tool.latency.p95, tool.latency.longest)
    return [
        *map(formatting.count, (tool.calls, tool.failures, tool.unanswered)),
        *(map(formatting.duration, times) if times else ("", "", "")),
    ]


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return "no times"
    return f"{formatting.duration(latency.median)} median, 95 % within {formatting.duration(latency.p95)}"


def _name(name: str | None) -> str:
    return printable(name) if name else "(no name)"
