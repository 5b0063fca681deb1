"""Clocks and settings that are not what one would expect: nothing that is stored or restored depends on them."""

import datetime
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import strands.types.session
from psycopg import sql
from strands.types.session import Session, SessionType

from strands_psycopg import LeaseLostError, PostgresSessionRepository, SessionBusyError
from support.agents import build, dump, look_up
from support.tables import one, texts
from support.writes import agent, message

Connection = psycopg.Connection[Any]

TALK = ([{"name": "look_up", "input": {"city": "Köln"}, "toolUseId": "use"}], ["It is warm."])

STORED_TIMES = """
    SELECT s.created_at, s.updated_at, a.created_at, a.updated_at, m.created_at, m.updated_at
    FROM strands_sessions AS s JOIN strands_agents AS a USING (session_id) JOIN strands_messages AS m USING (session_id)
"""

# Each of them changes how values look in SQL's text form, or what an unqualified name means.
ODD = {
    "TimeZone": "Pacific/Chatham",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "xmlbinary": "hex",
    "search_path": "pg_catalog",
    "default_transaction_isolation": "repeatable read",
    "transform_null_equals": "on",
    "backslash_quote": "on",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "plan_cache_mode": "force_generic_plan",
}


def real_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


@pytest.fixture(params=[-3600, 3600], ids=["an hour slow", "an hour fast"])
def shift(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Set this process's clock, as Python code sees it, off by an hour."""
    seconds: float = request.param

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Shifted":
            return super().now(tz) + datetime.timedelta(seconds=seconds)

    now: Callable[[], float] = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    monkeypatch.setattr(strands.types.session, "datetime", Shifted)
    return seconds


def test_times_are_the_servers_whatever_the_applications_clock(shift: float, own_dsn: str, look: Connection) -> None:
    assert (
        Session("s", SessionType.AGENT).created_at[:13] != datetime.datetime.now(datetime.timezone.utc).isoformat()[:13]
    )
    began = one(look, "SELECT clock_timestamp()")
    session, new, first = Session("s", SessionType.AGENT), agent("new"), message(0, "first")
    with PostgresSessionRepository(own_dsn) as repository:
        repository.create_session(session)
        repository.create_agent("s", new)
        repository.create_message("s", "a", first)
        repository.update_message("s", "a", first)
        repository.update_agent("s", new)
        given = [each for item in (session, new, first) for each in (item.created_at, item.updated_at)]
        restored = [
            each
            for item in (
                repository.read_session("s"),
                repository.read_agent("s", "a"),
                repository.read_message("s", "a", 0),
            )
            if item is not None
            for each in (item.created_at, item.updated_at)
        ]
    ended = one(look, "SELECT clock_timestamp()")

    assert restored == given
    times = [datetime.datetime.fromisoformat(each) for each in given]
    assert all(began <= each <= ended for each in times)
    assert look.execute(STORED_TIMES).fetchall() == [tuple(times)]


def test_lease_ends_by_the_servers_clock(shift: float, own_dsn: str, look: Connection) -> None:
    with PostgresSessionRepository(own_dsn) as repository, PostgresSessionRepository(own_dsn) as other:
        with repository.lease("s", ttl=40):
            remaining = one(look, "SELECT extract(epoch FROM expires_at - now())::float8 FROM strands_leases")
            assert 30 < remaining <= 40
            with pytest.raises(SessionBusyError), other.lease("s", wait=0):
                pass
            look.execute("UPDATE strands_leases SET expires_at = now()")
            with other.lease("s", wait=10):
                assert one(look, "SELECT count(*) FROM strands_leases WHERE expires_at > now()") == 1
        assert one(look, "SELECT count(*) FROM strands_leases") == 0


def test_turns_take_place_whatever_the_applications_clock(shift: float, own_dsn: str, look: Connection) -> None:
    with PostgresSessionRepository(own_dsn) as repository:
        talker = build(repository, replies=TALK, tools=[look_up])
        talker("How is the weather?")
        assert dump(build(repository)) == dump(talker)


@pytest.mark.parametrize("seconds", [-3600, 3600], ids=["back", "forward"])
def test_writes_go_on_when_the_servers_clock_was_set(seconds: float, own_dsn: str, look: Connection) -> None:
    with PostgresSessionRepository(own_dsn) as repository:
        talker = build(repository)
        talker("first")
        # As if it had shown another time until now.
        repository._database._clock.observe(time.time() - seconds, sent_at=time.monotonic())
        talker("second")
        with repository.lease("s"):
            build(repository)("third")
            look.execute("DELETE FROM strands_leases")
            with pytest.raises(LeaseLostError):
                build(repository)("lost")
    assert texts(look) == ["first", "ok", "second", "ok", "third", "ok"]


@pytest.fixture
def odd(own_dsn: str, look: Connection) -> Callable[[], None]:
    """Return the database odd settings, for connections made from then on."""

    def odd() -> None:
        alter = sql.SQL("ALTER DATABASE {} SET {} = {}")
        for name, value in ODD.items():
            # A list, for settings that are one.
            values = sql.SQL(", ").join(map(sql.Literal, value.split(", ")))
            look.execute(alter.format(sql.Identifier(look.info.dbname), sql.Identifier(name), values))
        with psycopg.connect(own_dsn) as connection:
            assert connection.execute("SHOW TimeZone").fetchall() == [("Pacific/Chatham",)]

    return odd


def test_odd_settings_of_the_database_change_no_value(own_dsn: str, odd: Callable[[], None]) -> None:
    def talk(session_id: str) -> str:
        with PostgresSessionRepository(own_dsn) as repository:
            talker = build(repository, session_id, TALK, tools=[look_up])
            talker("How is the weather?")
            return dump(talker)

    told = {"before": talk("before")}
    odd()
    told["after"] = talk("after")
    with PostgresSessionRepository(own_dsn) as repository:
        assert {session_id: dump(build(repository, session_id)) for session_id in told} == told


def test_odd_settings_of_the_database_change_no_time(own_dsn: str, look: Connection, odd: Callable[[], None]) -> None:
    odd()
    session, new, first = Session("s", SessionType.AGENT), agent("new"), message(0, "first")
    with PostgresSessionRepository(own_dsn) as repository:
        repository.create_session(session)
        repository.create_agent("s", new)
        repository.create_message("s", "a", first)
        repository.update_agent("s", new)
        restored = (repository.read_session("s"), repository.read_agent("s", "a"), repository.read_message("s", "a", 0))

    given = [each for item in (session, new, first) for each in (item.created_at, item.updated_at)]
    assert [each for item in restored if item is not None for each in (item.created_at, item.updated_at)] == given
    (stored,) = look.execute(STORED_TIMES).fetchall()
    assert [each.astimezone(datetime.timezone.utc).isoformat() for each in stored] == given


def test_odd_settings_of_the_database_change_no_lease(own_dsn: str, look: Connection, odd: Callable[[], None]) -> None:
    odd()
    with (
        PostgresSessionRepository(own_dsn) as repository,
        PostgresSessionRepository(own_dsn) as other,
        repository.lease("s", ttl=40),
    ):
        with pytest.raises(SessionBusyError) as busy, other.lease("s", wait=0):
            pass
        acquired_at, expires_at = look.execute("SELECT acquired_at, expires_at FROM strands_leases").fetchall()[0]
    assert expires_at - acquired_at == datetime.timedelta(seconds=40)
    told = [
        datetime.datetime.fromisoformat(each.replace("Z", "+00:00")) for each in (busy.value.since, busy.value.until)
    ]
    assert told == [acquired_at.replace(microsecond=0), expires_at.replace(microsecond=0)]
