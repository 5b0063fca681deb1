"""The report in a real browser: on a phone and on a desktop, in light and in dark."""

import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import strands_psycopg.report
from strands_psycopg import PostgresSessionRepository
from strands_psycopg.report import write_report
from support.transcripts import assistant, call, result, store, usage, user

pytestmark = pytest.mark.browser

HOSTILE = '<script>document.title = "owned"</script><img src="http://192.0.2.1/x" onerror="document.title=1">'

WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("no program chromium; install Debian's package chromium")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def report(repository: PostgresSessionRepository, connection: psycopg.Connection[Any], tmp_path: Path) -> str:
    """Write the report of some sessions, one of which has hostile names, and return its URL."""
    today = datetime.now(timezone.utc).date()
    for number, name in enumerate(["alpha", "beta", "gamma", "a" * 255, HOSTILE]):
        messages: list[tuple[str, Any]] = []
        for turn in range(number + 1):
            time = f"{today - timedelta(days=number)} 10:{turn:02}"
            tool = HOSTILE if name == HOSTILE else f"tool_{turn}"
            metrics = {"latencyMs": 900, "timeToFirstByteMs": 90}
            messages += [
                (f"{time}:00", user("hello")),
                (
                    f"{time}:01",
                    assistant(
                        call(f"t{turn}", tool),
                        usage=usage(1000, 50),
                        metrics=metrics,
                    ),
                ),
                (f"{time}:03", user(result(f"t{turn}", status="error" if turn == 1 else "success"))),
            ]
        store(repository, connection, name, messages)
    write_report(repository, tmp_path / "report.html")
    return (tmp_path / "report.html").as_uri()


class Visit:
    """A page that is open in a browser, with its requests and errors."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)

    def rows(self, table: str) -> list[str]:
        """Return the first cell of each visible row."""
        return self.page.locator(f"#{table} tbody tr:visible th").all_inner_texts()


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=WIDTHS)
def visit(request: pytest.FixtureRequest, browser: Browser, report: str, scheme: str) -> Iterator[Visit]:
    width = WIDTHS[request.param]
    options: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "has_touch": width < 500}
    with browser.new_context(color_scheme="dark" if scheme == "dark" else "light", **options) as context:
        visit = Visit(context.new_page(), report)
        yield visit
        # The page requested nothing but itself.
        assert [url for url in visit.requests if not url.startswith("data:")] == [report]
        assert visit.errors == []
        assert re.fullmatch(r"Agent sessions in sessions_under_test_\w+", visit.page.title())


def test_nothing_is_wider_than_the_screen(visit: Visit) -> None:
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert visit.page.evaluate(overflow) == 0
    # Wide tables scroll by themselves.
    assert (
        visit.page.locator(".scroll").evaluate_all("all => all.map(each => getComputedStyle(each).overflowX)")
        == ["auto"] * 3
    )
    plots = visit.page.locator(".plot svg:visible")
    assert plots.count() == 7
    for box in [plots.nth(number).bounding_box() for number in range(7)]:
        assert box is not None
        assert box["x"] >= 0
        assert box["width"] > 250
        assert box["x"] + box["width"] <= visit.page.evaluate("innerWidth")


def test_letters_in_plots_are_large_enough(visit: Visit) -> None:
    smallest = """Math.min(...[...document.querySelectorAll('.plot text')].filter(text => text.getClientRects().length)
        .map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"""
    assert visit.page.evaluate(smallest) >= 10.5


def test_colours_are_those_of_the_scheme_and_can_be_read(visit: Visit, scheme: str) -> None:
    colours = visit.page.evaluate(
        """() => {
            const of = (selector, property) => getComputedStyle(document.querySelector(selector))[property];
            return {page: of('body', 'backgroundColor'), ink: of('body', 'color'), card: of('.card', 'backgroundColor'),
                note: of('.note', 'color'), label: of('.plot text', 'fill')};
        }"""
    )
    brightness = {name: _brightness(colour) for name, colour in colours.items()}
    assert (brightness["page"] < brightness["ink"]) == (scheme == "dark")
    for text, ground in [("ink", "page"), ("ink", "card"), ("note", "page"), ("note", "card"), ("label", "card")]:
        assert _contrast(brightness[text], brightness[ground]) >= 4.5


def test_the_search_shows_what_matches(visit: Visit) -> None:
    search = visit.page.get_by_label("Search in Sessions")
    count = visit.page.locator("output[for=sessions-search]")
    assert visit.rows("sessions") == [HOSTILE, "a" * 255, "gamma", "beta", "alpha"]
    expect(count).to_have_text("5 of 5")

    search.click()
    search.press_sequentially("MM")
    expect(count).to_have_text("1 of 5")
    assert visit.rows("sessions") == ["gamma"]
    assert len(visit.rows("tools")) == 5

    search.fill("<script>")
    assert visit.rows("sessions") == [HOSTILE]

    search.fill("nobody")
    expect(visit.page.get_by_text("No matching rows.").locator("visible=true")).to_have_count(1)
    assert visit.rows("sessions") == []

    search.fill("")
    assert len(visit.rows("sessions")) == 5


def test_a_search_among_some_of_the_sessions_says_so(
    browser: Browser,
    report: str,
    repository: PostgresSessionRepository,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(strands_psycopg.report, "_LONGEST", 2)
    write_report(repository, tmp_path / "report.html")
    with browser.new_context() as context:
        page = Visit(context.new_page(), report).page
        expect(page.locator("output[for=sessions-search]")).to_have_text("2 of 2 listed")
        expect(page.locator("output[for=tools-search]")).to_have_text("5 of 5")
        page.get_by_label("Search in Sessions").fill("alpha")
        expect(page.locator("output[for=sessions-search]")).to_have_text("0 of 2 listed")
        among = "No matching rows among the 2 sessions with the most messages; the others are not on this page."
        expect(page.get_by_text(among).locator("visible=true")).to_have_count(1)


def test_rows_are_shown_by_and_by_and_ids_do_not_wrap(
    browser: Browser, repository: PostgresSessionRepository, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    connection.execute(
        "INSERT INTO strands_sessions (session_id, session_type, owner, title, write_id, created_at, updated_at) "
        "SELECT md5(n::text)::uuid::text, 'AGENT', 'alice@example.com', 'Trip no-' || n || '.', gen_random_uuid(), "
        "now(), now() FROM generate_series(1, 1200) AS n"
    )
    write_report(repository, tmp_path / "report.html")
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = Visit(context.new_page(), (tmp_path / "report.html").as_uri()).page
        rows, more = page.locator("#sessions tbody tr:visible"), page.get_by_role("button", name="Show more rows")
        count = page.locator("output[for=sessions-search]")
        expect(count).to_have_text("1,200 of 1,200")
        expect(rows).to_have_count(500)
        heights = "all => new Set(all.map(each => each.getBoundingClientRect().height)).size"
        assert rows.locator("th").evaluate_all(heights) == 1
        page.get_by_label("Search in Sessions").fill("no-1200.")
        expect(count).to_have_text("1 of 1,200")
        expect(more).to_be_hidden()
        page.get_by_label("Search in Sessions").fill("")
        more.click()
        more.click()
        expect(rows).to_have_count(1200)
        expect(more).to_be_hidden()


def test_a_heading_sorts_its_column(visit: Visit) -> None:
    heads = visit.page.locator("#sessions thead")
    heads.get_by_role("button", name="Session").click()
    assert visit.rows("sessions") == [HOSTILE, "a" * 255, "alpha", "beta", "gamma"]
    heads.get_by_role("button", name="Turns").click()
    assert visit.rows("sessions") == [HOSTILE, "a" * 255, "gamma", "beta", "alpha"]
    heads.get_by_role("button", name="Turns").click()
    assert visit.rows("sessions") == ["alpha", "beta", "gamma", "a" * 255, HOSTILE]
    expect(heads.get_by_role("columnheader", name="Turns")).to_have_attribute("aria-sort", "ascending")
    expect(heads.locator("[aria-sort]")).to_have_count(1)

    heads.get_by_role("button", name="Session").press("Enter")
    assert visit.rows("sessions") == [HOSTILE, "a" * 255, "alpha", "beta", "gamma"]


def test_a_bar_has_a_tooltip(visit: Visit) -> None:
    today = datetime.now(timezone.utc).date()
    bar = visit.page.locator(".first [aria-label*='messages']:visible").last
    tooltip = visit.page.locator(".tooltip")
    expect(tooltip).to_be_hidden()
    bar.hover()
    expect(tooltip).to_have_text(f"{today.day} {today:%b} {today.year}: 3 messages, 1 starting a turn")
    box, width = tooltip.bounding_box(), visit.page.evaluate("innerWidth")
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    visit.page.locator("h1").hover()
    expect(tooltip).to_be_hidden()


def test_names_are_text(visit: Visit) -> None:
    assert visit.page.locator("img, main script, [onerror]").count() == 0
    expect(visit.page.get_by_role("rowheader", name=HOSTILE, exact=True)).to_have_count(2)


def test_everything_has_a_name_for_screen_readers(visit: Visit) -> None:
    page = visit.page
    assert page.get_by_role("heading", level=1).all_inner_texts() == ["Agent sessions"]
    assert page.locator("[role=img][aria-label]").count() == 7
    summary = page.get_by_role("img", name="Messages per day. 45 messages, 15 of which start a turn.")
    expect(summary).to_have_count(1)
    assert page.get_by_role("table").count() == 3
    assert [region.get_attribute("tabindex") for region in page.locator(".scroll").all()] == ["0"] * 3
    assert page.evaluate("document.documentElement.lang") == "en"


def test_without_scripts_everything_is_there(browser: Browser, report: str) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(report)
        expect(page.locator("#sessions tbody tr:visible")).to_have_count(5)
        expect(page.locator("input:visible")).to_have_count(0)
        expect(page.locator(".plot svg:visible")).to_have_count(7)


def _brightness(colour: str) -> float:
    """Return a colour's relative luminance, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: float, other: float) -> float:
    """Return the contrast ratio of two luminances, as WCAG 2 defines it."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
