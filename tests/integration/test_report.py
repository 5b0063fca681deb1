"""The statistics, the page that shows them, and the commands for both."""

import asyncio
import builtins
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import vl_convert
from psycopg import errors
from strands.types.session import Session, SessionType

from strands_psycopg import PostgresSessionRepository, report
from strands_psycopg.cli import main
from strands_psycopg.errors import DatabaseError, MissingExtraError, ReportError, SchemaError
from strands_psycopg.report import (
    QUERY_COUNT,
    DayFigures,
    Figures,
    Latency,
    SessionFigures,
    ToolFigures,
    daily_plots,
    drawing,
    formatting,
    read_statistics,
    write_report,
)
from strands_psycopg.report.page import open_replacement
from support.multi_agents import Team
from support.storage import needs_storage
from support.transcripts import assistant, call, result, store, store_json, usage, user

Connection = psycopg.Connection[Any]

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


def day(back: int, hour: str = "12:00:00") -> str:
    return f"{datetime.now(timezone.utc).date() - timedelta(days=back)} {hour}"


@pytest.fixture(scope="module", autouse=True)
def _drawn_once() -> Iterator[None]:
    """Draw equal plots once, since to draw one takes longer than to read its figures."""
    drawn: dict[str, str] = {}

    def draw_once(specification: dict[str, Any]) -> str:
        key = json.dumps(specification)
        if key not in drawn:
            drawn[key] = vl_convert.vegalite_to_svg(specification)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "vl_convert", SimpleNamespace(vegalite_to_svg=draw_once))
        yield


@pytest.fixture
def talks(repository: PostgresSessionRepository, connection: Connection) -> None:
    """Store a session of the day before yesterday, and an older one."""
    store(
        repository,
        connection,
        "new",
        [
            (day(2, "10:00:00"), user("2 + 2?")),
            (
                day(2, "10:00:01"),
                assistant(
                    call("t1"),
                    call("t2", "ask"),
                    usage=usage(100, 20, cacheReadInputTokens=7),
                    metrics={"latencyMs": 1000, "timeToFirstByteMs": 200},
                ),
            ),
            (day(2, "10:00:03"), user(result("t1"), result("t2", status="error"))),
            (day(2, "10:00:05"), assistant("4", usage=usage(50, 5), metrics={"latencyMs": 3000})),
            (day(1, "10:00:00"), user("Again?")),
            (day(1, "10:00:02"), assistant(call("t3"), usage=usage(1, 2, cacheWriteInputTokens=4))),
        ],
    )
    store(repository, connection, "old", [(day(40), user("hello")), (day(40), assistant("hi", usage=usage(10, 1)))])


def test_statistics_are_the_sums_of_a_time(talks: None, repository: PostgresSessionRepository) -> None:
    statistics = read_statistics(repository, days=3)

    today = datetime.now(timezone.utc).date()
    total = Figures(
        turns=2,
        messages=6,
        tool_calls=3,
        tool_failures=1,
        input_tokens=151,
        output_tokens=27,
        cache_read_tokens=7,
        cache_write_tokens=4,
    )
    assert (statistics.since, statistics.until) == (today - timedelta(days=2), today)
    assert (statistics.sessions, statistics.total) == (1, total)
    assert statistics.days == (
        DayFigures(
            day=today - timedelta(days=2),
            sessions=1,
            turns=1,
            messages=4,
            tool_calls=2,
            tool_failures=1,
            input_tokens=150,
            output_tokens=25,
            cache_read_tokens=7,
            cache_write_tokens=0,
        ),
        DayFigures(
            day=today - timedelta(days=1),
            sessions=1,
            turns=1,
            messages=2,
            tool_calls=1,
            tool_failures=0,
            input_tokens=1,
            output_tokens=2,
            cache_read_tokens=0,
            cache_write_tokens=4,
        ),
    )
    two_seconds = Latency(median=2.0, p95=2.0, longest=2.0)
    assert statistics.tools == (
        ToolFigures(name="add", calls=2, failures=0, without_result=1, latency=two_seconds),
        ToolFigures(name="ask", calls=1, failures=1, without_result=0, latency=two_seconds),
    )
    assert statistics.model_latency == Latency(median=2.0, p95=2.9, longest=3.0)
    assert statistics.first_byte == Latency(median=0.2, p95=0.2, longest=0.2)
    begun, ended = (datetime.fromisoformat(f"{time}+00:00") for time in (day(2, "10:00:00"), day(1, "10:00:02")))
    assert statistics.longest == (
        SessionFigures(session_id="new", first_active_at=begun, last_active_at=ended, **vars(total)),
    )


def test_without_days_everything_counts(talks: None, repository: PostgresSessionRepository) -> None:
    statistics = read_statistics(repository)
    assert (statistics.since, statistics.sessions, statistics.total.messages) == (None, 2, 8)
    assert [session.session_id for session in statistics.longest] == ["new", "old"]
    assert [session.session_id for session in read_statistics(repository, longest=1).longest] == ["new"]
    assert read_statistics(repository, longest=0).longest == ()


def test_since_is_a_day(talks: None, repository: PostgresSessionRepository) -> None:
    since = datetime.now(timezone.utc).date() - timedelta(days=40)
    assert read_statistics(repository, since=since).total.messages == 8
    assert read_statistics(repository, since=since + timedelta(days=1)).total.messages == 6
    assert read_statistics(repository, since=date(1, 1, 1)).total.messages == 8
    assert read_statistics(repository, days=10**9).total.messages == 8


@pytest.mark.parametrize(
    "options", [{"days": 0}, {"days": -1}, {"longest": -1}, {"days": 1, "since": date(2025, 11, 3)}], ids=str
)
def test_wrong_arguments_are_refused_before_any_connection(options: dict[str, Any]) -> None:
    with PostgresSessionRepository("host=/nowhere") as repository, pytest.raises(ValueError, match=r"days|longest"):
        read_statistics(repository, **options)


def test_progress_is_reported_after_each_query(repository: PostgresSessionRepository) -> None:
    calls: list[int] = []
    read_statistics(repository, progress=calls.append)
    assert calls == [1] * QUERY_COUNT
    write_report(repository, io.StringIO(), progress=calls.append)
    assert calls == [1] * (2 * QUERY_COUNT + 1)


def test_an_empty_database_has_statistics(repository: PostgresSessionRepository) -> None:
    statistics = read_statistics(repository)
    assert (statistics.sessions, statistics.total.messages, statistics.days, statistics.tools) == (0, 0, (), ())
    assert (statistics.longest, statistics.model_latency, statistics.first_byte) == ((), None, None)


def test_missing_views_are_a_schema_error(repository: PostgresSessionRepository, connection: Connection) -> None:
    connection.execute("DROP VIEW strands_tool_calls")
    with pytest.raises(SchemaError, match=r"reading the statistics: .*ensure_schema"):
        read_statistics(repository)


def test_statistics_write_nothing(talks: None, repository: PostgresSessionRepository, connection: Connection) -> None:
    connection.execute(
        "CREATE FUNCTION sneak() RETURNS bigint LANGUAGE sql AS 'DELETE FROM public.strands_agents; SELECT 1'"
    )
    connection.execute("DROP VIEW strands_daily_figures")
    connection.execute(
        "CREATE VIEW strands_daily_figures AS SELECT current_date AS day, sneak() AS sessions, 0 AS turns, "
        "0 AS messages, 0 AS tool_calls, 0 AS tool_failures, 0 AS input_tokens, 0 AS output_tokens, "
        "0 AS cache_read_tokens, 0 AS cache_write_tokens"
    )
    with pytest.raises(DatabaseError) as error:
        read_statistics(repository)
    assert isinstance(error.value.__cause__, errors.ReadOnlySqlTransaction)


class Page(HTMLParser):
    """The parsed page: its elements, their attributes, and the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.ids: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        self.ids += [value or "" for name, value in attributes if name == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def page_of(repository: PostgresSessionRepository) -> str:
    stream = io.StringIO()
    write_report(repository, stream)
    return stream.getvalue()


def test_the_page_shows_every_tool_session_and_day(talks: None, repository: PostgresSessionRepository) -> None:
    page = Page(page_of(repository))
    assert ["add", "2", "0", "0%", "1", "2 s", "2 s", "2 s"] in page.rows
    assert ["ask", "1", "1", "100%", "0", "2 s", "2 s", "2 s"] in page.rows
    assert ["old", "2", "1", "0", "0", "10", "1"] in [row[:7] for row in page.rows]
    assert ["1", "1", "4", "2", "1", "150", "25", "7"] in [row[1:] for row in page.rows]
    assert len(page.ids) == len(set(page.ids))


def test_the_page_shows_owners_and_titles_if_there_are_any(talks: None, repository: PostgresSessionRepository) -> None:
    plain = Page(page_of(repository))
    repository.annotate_session("old", owner=HOSTILE, title="Trip")
    page = Page(page_of(repository))
    assert ["Session", "Owner", "Title", "Messages"] in [row[:4] for row in page.rows]
    assert ["old", HOSTILE, "Trip", "2"] in [row[:4] for row in page.rows]
    assert ["new", "", "", "6"] in [row[:4] for row in page.rows]
    assert page.elements == plain.elements
    assert ["Session", "Messages"] in [row[:2] for row in plain.rows]


def test_the_page_shows_graphs_and_swarms_if_there_are_any(talks: None, repository: PostgresSessionRepository) -> None:
    repository.create_session(Session("team", SessionType.AGENT))
    repository.create_multi_agent("team", Team("graph", {}))
    page = Page(page_of(repository))
    assert ["Session", "Messages", "Turns", "Graphs, swarms"] in [row[:4] for row in page.rows]
    assert ["team", "0", "0", "1"] in [row[:4] for row in page.rows]
    assert ["new", "6", "2", "0"] in [row[:4] for row in page.rows]


@needs_storage
def test_the_page_shows_the_size_of_storages_if_there_are_any(
    talks: None, repository: PostgresSessionRepository
) -> None:
    asyncio.run(repository.storage("old").write("report", bytes(12_300)))
    page = Page(page_of(repository))
    assert ["Session", "Messages", "Turns", "Stored bytes"] in [row[:4] for row in page.rows]
    assert ["old", "2", "1", "12.3k"] in [row[:4] for row in page.rows]
    assert ["new", "6", "2", "0"] in [row[:4] for row in page.rows]


def test_the_page_says_which_sessions_it_lists_if_there_are_more(
    talks: None, repository: PostgresSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "searches only" not in page_of(repository)
    monkeypatch.setattr(report, "_LONGEST", 1)
    page = page_of(repository)
    assert "whole history; of 2, this lists and searches only the 1 sessions with the most messages." in page
    assert 'data-listed="the 1 sessions with the most messages"' in page


def test_the_label_of_a_day_is_in_the_middle_of_its_bar(talks: None, repository: PostgresSessionRepository) -> None:
    statistics = read_statistics(repository, days=14)
    last = daily_plots._values(statistics, [("messages", lambda day: day.messages)])[-1]
    today = datetime.combine(statistics.until, time(), timezone.utc)
    assert (last["start"], last["next"]) == (
        (today - timedelta(hours=12)).isoformat(),
        (today + timedelta(hours=12)).isoformat(),
    )


def test_numbers_have_one_form() -> None:
    numbers = [0, 999, 1982, 9999, 10_000, 12_345, 999_400, 999_600, 4_560_000, 7 * 10**9, 2 * 10**12, 10**16]
    assert [formatting.compact(number) for number in numbers] == [
        *("0", "999", "1,982", "9,999", "10k", "12.3k", "999k", "1M", "4.56M", "7G", "2T", "10,000T"),
    ]


def test_axes_have_the_same_form(repository: PostgresSessionRepository) -> None:
    statistics = read_statistics(repository)
    for messages, labels in [(1982, {"500", "1,000", "2,000"}), (39_000, {"10k", "40k"}), (2, {"0", "1", "2"})]:
        counts = dict.fromkeys(Figures.__dataclass_fields__, 0) | {"messages": messages}
        day = DayFigures(day=statistics.until, sessions=1, **counts)
        plot, *_ = daily_plots.plots(dataclasses.replace(statistics, days=(day,)))
        assert labels <= set(re.findall("<text[^>]*>([^<]*)</text>", plot.drawings["narrow"]))


def test_the_page_asks_for_nothing_else(talks: None, repository: PostgresSessionRepository) -> None:
    text = page_of(repository)
    page = Page(text)
    assert page.elements.isdisjoint({"img", "iframe", "object", "embed", "base", "form", "image", "use", "style-src"})
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert links == ["data:,"]
    # XML namespaces, which are not requested.
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_names_from_messages_are_shown_and_nothing_else(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    def page_with(names: list[str]) -> Page:
        for each in names:
            answer = user(result(each, {"text": each}))
            turn = [(day(0), assistant(call(each, each), usage=usage(1, 1))), (day(0), answer)]
            store(repository, connection, each, turn)
        page = Page(page_of(repository))
        for each in names:
            repository.delete_session(each)
        return page

    names = [HOSTILE, "'\"&lt;&amp;", "{{ 7 * 7 }}", "${x}", "]]>-->", "datum.value", "\u202eabc\x1b[31m"]
    page, plain = page_with(names), page_with([f"plain {number}" for number, _ in enumerate(names)])

    for name in names:
        shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)
        assert [row[0] for row in page.rows].count(shown) == 2
        assert any(value.startswith(f"{shown}: 1 calls") for key, value in page.attributes if key == "aria-label")
    assert page.elements == plain.elements
    assert {key for key, _ in page.attributes} == {key for key, _ in plain.attributes}


def test_the_page_of_an_empty_database_says_so(repository: PostgresSessionRepository) -> None:
    text = page_of(repository)
    assert text.count("No data in this period.") == 7 + 3
    assert Page(text).rows == []


def test_the_page_survives_messages_of_any_shape(repository: PostgresSessionRepository, connection: Connection) -> None:
    store_json(
        connection,
        [
            *("null", "[]", '"text"', "7", "{}", '{"content": 1}', '{"content": ["a", null, {"toolUse": null}]}'),
            '{"content": [{"toolUse": {"name": "' + "x" * 1000 + '", "toolUseId": 7}}]}',
            '{"content": [{"toolUse": {"name": {"a": 1}, "toolUseId": null}}]}',
            '{"content": [], "metadata": {"usage": {"inputTokens": 1e12}, "metrics": {"latencyMs": 0}}}',
        ],
    )
    rows = [row[0] for row in Page(page_of(repository)).rows]
    assert {"(no name)", "x" * 255, '{"a": 1}', "odd"} <= set(rows)


def test_many_years_of_days_become_fewer_bars(repository: PostgresSessionRepository, connection: Connection) -> None:
    store(repository, connection, "s", [("1970-01-01 00:00", user("hello")), (day(0), user("again"))])
    text = page_of(repository)
    assert len(text) < 2_000_000
    assert "per day: 0 sessions" in text


def test_a_file_is_replaced_as_a_whole(talks: None, repository: PostgresSessionRepository, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("before")
    write_report(repository, file)
    assert file.read_text("utf-8").startswith("<!doctype html>")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_what_is_no_regular_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)
    try:
        with open_replacement(pipe) as file:
            file.write("page")
        assert [each.name for each in tmp_path.iterdir() if each.is_fifo()] == ["pipe"]
        assert os.read(end, 100) == b"page"
    finally:
        os.close(end)


def test_a_file_that_cannot_be_written_is_an_error_that_names_it_before_anything_is_read(
    repository: PostgresSessionRepository, tmp_path: Path
) -> None:
    file = tmp_path / "missing" / "report.html"
    with pytest.raises(
        ReportError,
        match=f"{re.escape(repr(str(file)))}: No such file or directory; check the path; its directory must exist",
    ):
        write_report(repository, str(file), progress=lambda _: pytest.fail("it has read"))


def test_a_missing_extra_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, repository: PostgresSessionRepository
) -> None:
    import_ = builtins.__import__

    def without_jinja(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "strands_psycopg.report.page":
            raise ImportError("No module named 'vl_convert'", name="vl_convert")
        return import_(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_jinja)
    with pytest.raises(MissingExtraError, match=r"pip install 'strands-psycopg\[report\]'") as error:
        write_report(repository, io.StringIO())
    assert error.value.extra == "report"


def test_stats_reads_well(talks: None, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--dsn", dsn, "--days", "3"]) == 0
    period, sessions, tokens, tools, model, *tables = capsys.readouterr().out.splitlines()
    assert period.startswith("period    2")
    assert sessions == "sessions  1, 2 turns, 6 messages"
    assert tokens == "tokens    151 in, 27 out, 7 from cache"
    assert tools == "tools     3 calls, 1 failed (33%)"
    assert model == "model     median 2 s, p95 2.9 s; first byte median 200 ms, p95 200 ms"
    assert [line.split() for line in tables[1:4]] == [
        ["day", "sessions", "turns", "messages", "tool", "calls", "failed", "tokens", "in", "tokens", "out"],
        [day(2)[:10], "1", "1", "4", "2", "1", "150", "25"],
        [day(1)[:10], "1", "1", "2", "1", "0", "1", "2"],
    ]
    assert [line.split() for line in tables[6:8]] == [
        ["add", "2", "0", "1", "2", "s", "2", "s", "2", "s"],
        ["ask", "1", "1", "0", "2", "s", "2", "s", "2", "s"],
    ]
    assert tables[10].split() == ["new", day(1)[:10], "10:00", "2", "6", "3", "1", "151", "27"]


def test_stats_prints_the_same_as_json(
    talks: None, dsn: str, repository: PostgresSessionRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", "--dsn", dsn, "--days", "3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["total"] == vars(read_statistics(repository, days=3).total)
    assert printed["until"] == day(0)[:10]
    assert printed["days"][0]["day"] == day(2)[:10]
    assert printed["tools"][1]["latency"] == {"median": 2.0, "p95": 2.0, "longest": 2.0}
    assert printed["longest"][0]["last_active_at"] == f"{day(1)[:10]}T10:00:02+00:00"


def test_stats_escapes_what_messages_name(
    dsn: str,
    repository: PostgresSessionRepository,
    connection: Connection,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store(repository, connection, "\x1b[31mred", [(day(0), assistant(call("t", "\x1b]0;title\x07")))])
    assert main(["stats", "--dsn", dsn]) == 0
    written = capsys.readouterr().out
    assert "\x1b" not in written
    assert "\\x1b[31mred" in written
    assert "\\x1b]0;title\\x07" in written


def test_stats_of_an_empty_database(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--dsn", dsn]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "sessions  0, 0 turns, 0 messages",
        "tokens    0 in, 0 out, 0 from cache",
        "tools     0 calls, 0 failed (0%)",
        "model     not measured; first byte not measured",
    ]


def test_report_writes_the_page(talks: None, dsn: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    assert main(["report", "--dsn", dsn, "--html", str(file)]) == 0
    assert capsys.readouterr() == (f"wrote {file}: 6 messages\n", "")
    assert "<h1>Agent sessions</h1>" in file.read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--html", "/nowhere/report.html"], 1, "the report cannot be written to '/nowhere/report.html'"),
        (["--html", "/dev/null", "--days", "0"], 2, "days must be 1 or more, not 0"),
    ],
    ids=str,
)
def test_what_goes_wrong_is_one_line(
    dsn: str, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert main(["report", "--dsn", dsn, *options]) == code
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"strands-psycopg: error: {message}")
    assert written.err.count("\n") == 1
