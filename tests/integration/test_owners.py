"""Whose session it is: owners, titles and metadata, and that nothing of an owner is open to another one."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from strands import Agent
from strands.session.file_session_manager import FileSessionManager
from strands.types.session import Session, SessionAgent, SessionType

from strands_psycopg import (
    AnnotatedSession,
    BadFileError,
    LeaseLostError,
    PayloadCodecError,
    PostgresSessionManager,
    PostgresSessionRepository,
    SessionExistsError,
    SessionNotFoundError,
    SessionOwnerError,
)
from strands_psycopg.cli import main
from strands_psycopg.repository import session_tables
from strands_psycopg.scripted_model import ScriptedModel
from strands_psycopg.transfer import FileSessions, export_files, export_session, import_session, import_sessions
from support.agents import build
from support.multi_agents import Team
from support.payloads import ScramblingCodec
from support.tables import contents, one
from support.wire import ONE, Wire
from support.writes import message

Connection = psycopg.Connection[Any]

# What JSONB alone would not return as it was.
METADATA = {"z": 1, "a": [float("-0.0"), "\0", b"bytes"], "tier": {"name": "gold"}}


def open_session(repository: PostgresSessionRepository, session_id: str = "s", **options: Any) -> None:
    PostgresSessionManager(session_id, repository, **options)


def stored(repository: PostgresSessionRepository, session_id: str = "s") -> tuple[object, object, str]:
    """Return the owner, title and metadata of a session, the latter as JSON text."""
    session = repository.read_session(session_id)
    assert isinstance(session, AnnotatedSession)
    return session.owner, session.title, dumps(session.metadata)


def dumps(metadata: Any) -> str:
    return json.dumps(metadata, default=repr)


# A session that is not Alice's.
STRANGE: dict[str, Callable[[PostgresSessionRepository], object]] = {
    "of another owner": lambda repository: repository.create_session(Session("s", SessionType.AGENT), owner="Mallory"),
    "of none": lambda repository: repository.create_session(Session("s", SessionType.AGENT)),
}

USES: dict[str, Callable[[PostgresSessionRepository], object]] = {
    "manager": lambda repository: PostgresSessionManager("s", repository, owner="Alice", title="mine"),
    "read": lambda repository: repository.read_session("s", owner="Alice"),
    "fork": lambda repository: repository.fork_session("s", "fork", owner="Alice"),
    "lease": lambda repository: repository.lease("s", owner="Alice", wait=0).__enter__(),
    "lease async": lambda repository: asyncio.run(repository.lease("s", owner="Alice", wait=0).__aenter__()),
    "annotate": lambda repository: repository.annotate_session("s", title="mine", expected_owner="Alice"),
    "claim": lambda repository: repository.annotate_session("s", owner="Alice", expected_owner="Alice"),
    "delete": lambda repository: repository.delete_session("s", owner="Alice"),
    "delete agent": lambda repository: repository.delete_agent("s", "a", owner="Alice"),
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_session_of_another_owner_or_of_none_is_refused_and_stays_as_it_is(
    repository: PostgresSessionRepository,
    connection: Connection,
    strange: Callable[[PostgresSessionRepository], object],
    use: Callable[[PostgresSessionRepository], object],
) -> None:
    strange(repository)
    repository.create_agent("s", SessionAgent("a", {}, {}))
    before = repository.list_sessions(), repository.list_agents("s")

    with pytest.raises(SessionOwnerError, match="does not belong to the given owner") as refusal:
        use(repository)

    assert refusal.value.session_id == "s"
    assert "Mallory" not in str(refusal.value)
    assert (repository.list_sessions(), repository.list_agents("s")) == before
    assert one(connection, "SELECT count(*) FROM strands_leases") == 0


@pytest.mark.parametrize("owner", ["Alice", None])
def test_owner_and_whoever_names_none_can_do_everything(
    repository: PostgresSessionRepository, owner: str | None
) -> None:
    open_session(repository, owner="Alice")
    agent = build(repository)
    agent("hello")
    with repository.lease("s", owner=owner, wait=0):
        open_session(repository, owner=owner)
    assert repository.fork_session("s", "fork", owner=owner).messages == 2
    repository.delete_agent("s", "default", owner=owner)
    repository.delete_session("s", owner=owner)
    assert [each.session_id for each in repository.list_sessions().sessions] == ["fork"]


def test_lease_on_a_session_that_does_not_exist_yet_may_have_any_owner(repository: PostgresSessionRepository) -> None:
    with repository.lease("s", owner="Alice"):
        open_session(repository, owner="Alice")
    assert repository.read_session("s", owner="Alice") is not None


def test_loser_of_a_race_to_create_a_session_is_refused_if_it_is_anothers(
    repository: PostgresSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_session(repository, owner="Mallory")
    tables = session_tables(repository)
    read, answers = tables.sessions.read, [None]
    monkeypatch.setattr(
        tables.sessions, "read", lambda *key, **owner: answers.pop() if answers else read(*key, **owner)
    )

    with pytest.raises(SessionOwnerError):
        open_session(repository, owner="Alice")


def test_session_that_got_another_owner_after_it_was_read_keeps_its_title(
    repository: PostgresSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_session(repository, owner="Alice", title="Trip")
    tables = session_tables(repository)
    read = tables.sessions.read

    def read_and_give_away(*key: Any, **owner: Any) -> Session | None:
        session = read(*key, **owner)
        repository.annotate_session("s", owner="Mallory", expected_owner="Alice")
        return session

    monkeypatch.setattr(tables.sessions, "read", read_and_give_away)
    with pytest.raises(SessionOwnerError, match="annotating session 's'"):
        open_session(repository, owner="Alice", title="mine", metadata={"of": "Alice"})
    monkeypatch.undo()
    assert stored(repository) == ("Mallory", "Trip", "null")


@pytest.mark.parametrize("agent_exists", [False, True])
def test_session_that_another_owner_has_created_anew_is_neither_restored_nor_written(
    repository: PostgresSessionRepository, connection: Connection, agent_exists: bool
) -> None:
    manager = PostgresSessionManager("s", repository, owner="Alice")
    opened = [manager, PostgresSessionManager("s", repository, owner="Alice")]
    repository.delete_session("s")
    open_session(repository, owner="Mallory")
    if agent_exists:
        build(repository, state={"of": "Mallory"})("a secret")
        repository.create_multi_agent("s", Team("default", {"of": "Mallory"}))
    before = contents(connection)

    agent = Agent(callback_handler=None, model=ScriptedModel([["ok"]]), messages=[{"role": "user", "content": []}])
    with pytest.raises(SessionOwnerError, match="does not belong to the given owner"):
        opened[0].initialize(agent)
    team = Team("default", {"of": "Alice"})
    with pytest.raises(SessionOwnerError, match="does not belong to the given owner"):
        opened[1].initialize_multi_agent(team)

    assert (agent.state.get(), len(agent.messages), team.state) == ({}, 1, {"of": "Alice"})
    assert contents(connection) == before


def test_agent_is_not_reset_to_what_is_stored_after_its_session_got_another_owner(
    repository: PostgresSessionRepository,
) -> None:
    manager = PostgresSessionManager("s", repository, owner="Alice")
    agent = Agent(session_manager=manager, callback_handler=None, model=ScriptedModel([["ok"]]))
    repository.annotate_session("s", owner="Mallory")
    build(repository)("a secret")
    with pytest.raises(SessionOwnerError):
        asyncio.run(manager.restore_snapshot(agent))
    assert agent.messages == []


# What a session keeps


def test_new_session_has_its_owner_title_and_metadata_exactly(repository: PostgresSessionRepository) -> None:
    manager = PostgresSessionManager("s", repository, owner="Alice", title="Trip", metadata=METADATA)
    assert stored(repository) == ("Alice", "Trip", dumps(METADATA))
    assert manager.session == repository.read_session("s")
    assert vars(repository.list_sessions().sessions[0]) == {
        **vars(manager.session),
        "created_at": datetime.fromisoformat(manager.session.created_at),
        "updated_at": datetime.fromisoformat(manager.session.updated_at),
        **{"agents": 0, "messages": 0, "multi_agents": 0, "metadata": METADATA},
    }


def test_manager_with_its_own_repository_has_an_owner_too(
    repository: PostgresSessionRepository, dsn: str, pool_options: Any
) -> None:
    given: dict[str, Any] = {"owner": "Alice", "title": "Trip", "metadata": {"a": 1}}
    with PostgresSessionManager.from_dsn("s", dsn, **given, **pool_options):
        assert stored(repository) == ("Alice", "Trip", '{"a": 1}')
    with pytest.raises(SessionOwnerError):
        PostgresSessionManager.from_dsn("s", dsn, owner="Bob", **pool_options)


def test_fork_copies_a_title_and_metadata_that_were_edited_with_sql(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    open_session(repository, owner="Alice")
    connection.execute("UPDATE strands_sessions SET title = repeat('a', 2000), metadata = '[1]'")
    assert repository.fork_session("s", "fork").title == "a" * 2000
    assert stored(repository, "fork") == stored(repository)


def test_session_without_any_is_strands_own(repository: PostgresSessionRepository) -> None:
    open_session(repository)
    assert type(repository.read_session("s")) is Session


def test_annotated_session_is_created_as_it_is(repository: PostgresSessionRepository) -> None:
    session = AnnotatedSession("s", SessionType.AGENT, owner="Alice", title="Trip", metadata={"a": 1})
    assert repository.create_session(session, title="Rome") is session
    assert stored(repository) == ("Alice", "Rome", '{"a": 1}')


def test_title_and_metadata_of_an_existing_session_are_replaced_if_given(repository: PostgresSessionRepository) -> None:
    open_session(repository, owner="Alice", title="Trip", metadata={"a": 1})
    open_session(repository, owner="Alice")
    assert stored(repository) == ("Alice", "Trip", '{"a": 1}')
    open_session(repository, title="Rome")
    assert stored(repository) == ("Alice", "Rome", '{"a": 1}')
    manager = PostgresSessionManager("s", repository, metadata={"a": True})
    assert stored(repository) == ("Alice", "Rome", '{"a": true}')
    assert manager.session == repository.read_session("s")


def test_annotating_changes_only_what_is_given_and_none_clears(repository: PostgresSessionRepository) -> None:
    open_session(repository, owner="Alice", title="Trip", metadata={"a": 1})
    repository.annotate_session("s", title="Rome")
    assert stored(repository) == ("Alice", "Rome", '{"a": 1}')
    repository.annotate_session("s", owner="Bob", metadata=METADATA)
    assert stored(repository) == ("Bob", "Rome", dumps(METADATA))
    repository.annotate_session("s", metadata=None)
    assert stored(repository) == ("Bob", "Rome", "null")
    repository.annotate_session("s", owner=None, title=None)
    assert type(repository.read_session("s")) is Session
    with pytest.raises(SessionNotFoundError):
        repository.annotate_session("missing", title="Rome")


def test_annotating_carries_the_lease(repository: PostgresSessionRepository, connection: Connection) -> None:
    open_session(repository)
    with repository.lease("s"):
        connection.execute("UPDATE strands_leases SET term = gen_random_uuid()")
        with pytest.raises(LeaseLostError):
            repository.annotate_session("s", title="Rome")
    assert type(repository.read_session("s")) is Session


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"owner": ""}, "owner must have 1 to 255 characters"),
        ({"owner": "a" * 256}, "owner must have 1 to 255 characters"),
        ({"owner": 7}, "owner must be a string, not int"),
        ({"owner": "a\0"}, "owner must not contain NUL"),
        ({"title": "a" * 1_001}, "title must have 0 to 1,000 characters, not 1,001"),
        ({"title": "\ud800"}, "title must not contain NUL or a lone surrogate"),
        ({"metadata": ["a"]}, "metadata must be a dict, not list"),
        ({"metadata": {1: "a", "1": "b"}}, "metadata: "),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name_before_any_connection(options: dict[str, Any], problem: str) -> None:
    with PostgresSessionRepository("host=/nowhere") as repository:
        for call in (
            lambda: PostgresSessionManager("s", repository, **options),
            lambda: repository.annotate_session("s", **options),
            lambda: repository.create_session(Session("s", SessionType.AGENT), **options),
        ):
            with pytest.raises(ValueError, match=problem):
                call()


def test_fork_carries_owner_title_and_metadata(repository: PostgresSessionRepository) -> None:
    open_session(repository, owner="Alice", title="Trip", metadata=METADATA)
    assert repository.fork_session("s", "fork").title == "Trip"
    assert stored(repository, "fork") == ("Alice", "Trip", dumps(METADATA))


# Lists


def test_sessions_are_listed_by_owner_and_by_what_their_metadata_contain(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    for number, (owner, metadata) in enumerate(
        [("Alice", {"tier": "gold", "n": 1}), ("Bob", {"tier": "gold"}), ("Alice", {"tier": "tin"}), (None, None)]
    ):
        open_session(repository, f"s{number}", owner=owner, metadata=metadata)
        connection.execute("UPDATE strands_sessions SET updated_at = now() - interval '1 day' WHERE updated_at = now()")
        connection.execute("UPDATE strands_sessions SET updated_at = updated_at - interval '1 hour'")

    def listed(**options: Any) -> list[str]:
        return [each.session_id for each in repository.list_sessions(**options).sessions]

    assert listed(owner="Alice") == ["s2", "s0"]
    assert listed(metadata={"tier": "gold"}) == ["s1", "s0"]
    assert listed(owner="Alice", metadata={"tier": "gold"}) == ["s0"]
    assert listed(owner="Alice", prefix="s2") == ["s2"]
    assert listed(owner="Carol") == []
    first = repository.list_sessions(owner="Alice", limit=1)
    assert [each.session_id for each in first.sessions] == ["s2"]
    assert listed(owner="Alice", before=first.next) == ["s0"]


# A subclass of the repository


class Forgetful(PostgresSessionRepository):
    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        return super().read_session(session_id)

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        return super().create_session(session)


def test_repository_that_forgets_the_owner_cannot_open_a_session_of_another(dsn: str, pool_options: Any) -> None:
    with Forgetful(dsn, **pool_options) as repository:
        open_session(repository, "mine", owner="Alice", title="Trip")
        open_session(repository, "strange", owner="Mallory")
        open_session(repository, "mine", owner="Alice")
        assert stored(repository, "mine")[:2] == ("Alice", "Trip")
        with pytest.raises(SessionOwnerError):
            open_session(repository, "strange", owner="Alice")


# What it costs


def test_opening_with_an_owner_costs_no_statement_more_and_a_changed_title_one(dsn: str) -> None:
    wire = Wire()
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "configure": wire.configure}
    given: dict[str, Any] = {"owner": "Alice", "title": "Trip", "metadata": METADATA}
    with PostgresSessionRepository(dsn, kwargs={"prepare_threshold": None}, **options) as repository:
        repository.read_session("s")
        new = wire.during(lambda: open_session(repository, **given))
        assert (new.changes, new.completed) == ([[], ["INSERT sessions"]], 2)
        assert wire.during(lambda: open_session(repository, **given))[1:] == ONE
        renamed = wire.during(lambda: open_session(repository, **given | {"title": "Rome", "metadata": {}}))
        assert ("title = CASE" in renamed.sent[1], renamed.completed) == (True, 2)
        repository.create_agent("s", SessionAgent("a", {}, {}))
        calls: list[Callable[[], object]] = [
            lambda: repository.annotate_session("s", title="Paris"),
            lambda: repository.list_sessions(owner="Alice", metadata={}),
            lambda: repository.delete_agent("s", "a", owner="Alice"),
            lambda: repository.delete_session("s", owner="Alice"),
        ]
        for call in calls:
            assert wire.during(call)[1:] == ONE


# With a payload codec


def test_title_goes_through_the_codec_and_owner_and_metadata_do_not(
    dsn: str, connection: Connection, pool_options: Any
) -> None:
    codec = ScramblingCodec()
    with PostgresSessionRepository(dsn, payload_codec=codec, **pool_options) as repository:
        open_session(repository, owner="Alice", title="Trip", metadata={"a": 1})
        open_session(repository, owner="Alice", title="Trip")
        repository.fork_session("s", "fork")
        assert stored(repository) == stored(repository, "fork") == ("Alice", "Trip", '{"a": 1}')
        assert {each.title for each in repository.list_sessions(owner="Alice", metadata={"a": 1}).sessions} == {"Trip"}
    column = one(connection, "SELECT title FROM strands_sessions WHERE session_id = 's'")
    assert list(json.loads(column)) == ["scrambled"]
    assert one(connection, "SELECT owner || metadata::text FROM strands_sessions WHERE session_id = 's'") == (
        'Alice{"a": 1}'
    )


class BytesCodec:
    """Encodes titles as bytes, and leaves what was stored without it."""

    def encode(self, document: Any, context: Any) -> Any:
        return document.encode()

    def decode(self, document: Any, context: Any) -> Any:
        return document.decode() if isinstance(document, bytes) else document


def test_titles_from_before_the_codec_are_given_to_it(repository: PostgresSessionRepository, dsn: str) -> None:
    for title in ("Trip to Rome", "5 trips", "bytes of memory", '"quoted', ""):
        repository.create_session(Session(f"s-{title}", SessionType.AGENT), title=title)
    repository.create_session(Session("list", SessionType.AGENT), title="[1]")
    with PostgresSessionRepository(dsn, payload_codec=BytesCodec(), kwargs={"prepare_threshold": None}) as coded:
        open_session(coded, "coded", title="Rome")
        assert stored(coded, "coded")[1] == "Rome"
        for title in ("Trip to Rome", "5 trips", "bytes of memory", '"quoted', ""):
            assert stored(coded, f"s-{title}")[1] == title
        with pytest.raises(PayloadCodecError, match=r"title in session 'list'.* list instead of a string"):
            coded.read_session("list")


# A session that was deleted


@pytest.mark.parametrize("leased", [False, True])
def test_write_to_a_deleted_session_is_not_found_even_if_its_lease_vanished_with_it(
    repository: PostgresSessionRepository, dsn: str, pool_options: Any, connection: Connection, leased: bool
) -> None:
    agent = build(repository)
    lease = repository.lease("s")
    if leased:
        lease.__enter__()
    with PostgresSessionRepository(dsn, **pool_options) as other:
        other.delete_session("s")
    assert one(connection, "SELECT count(*) FROM strands_leases") == 0

    writes: list[Callable[[], object]] = [
        lambda: agent("hello"),
        lambda: repository.create_agent("s", SessionAgent("b", {}, {})),
        lambda: repository.update_agent("s", SessionAgent("default", {}, {})),
        lambda: repository.create_message("s", "default", message(0, "hello")),
        lambda: repository.update_message("s", "default", message(0, "hello")),
        lambda: repository.annotate_session("s", title="Rome"),
        lambda: repository.delete_session("s"),
    ]
    for write in writes:
        with pytest.raises(SessionNotFoundError):
            write()
    if leased:
        with pytest.raises(LeaseLostError):
            repository.create_session(Session("s", SessionType.AGENT))
        lease.__exit__(None, None, None)
    assert one(connection, "SELECT count(*) FROM strands_sessions") == 0


def test_session_may_be_deleted_and_created_again_under_a_lease(repository: PostgresSessionRepository) -> None:
    with repository.lease("s"):
        open_session(repository)
        repository.delete_session("s")
        build(repository)("hello")
    assert repository.list_sessions().sessions[0].messages == 2


# Export and import


@pytest.mark.parametrize("raw", [False, True])
def test_exported_session_has_owner_title_and_metadata(dsn: str, pool_options: Any, raw: bool) -> None:
    with PostgresSessionRepository(dsn, payload_codec=ScramblingCodec(), **pool_options) as repository:
        open_session(repository, owner="Alice", title="Trip", metadata=METADATA)
        before = repository.list_sessions().sessions
        lines = list(export_session(repository, "s", raw=raw))
        assert import_session(repository, lines).unchanged == 1
        repository.annotate_session("s", title="Rome")
        with pytest.raises(SessionExistsError, match="strands-psycopg delete"):
            import_session(repository, lines)
        repository.delete_session("s")
        import_session(repository, lines)
        assert repository.list_sessions().sessions == before


def test_strands_files_carry_owner_title_and_metadata(repository: PostgresSessionRepository, tmp_path: Path) -> None:
    open_session(repository, owner="Alice", title="Trip", metadata={"z": 1, "a": [float("nan")]})
    before = stored(repository)
    export_files(repository, "s", tmp_path)
    assert FileSessionManager("s", storage_dir=str(tmp_path)).read_session("s") is not None
    repository.delete_session("s")
    import_sessions(repository, FileSessions(tmp_path))
    assert stored(repository) == before


def test_imported_owner_that_cannot_be_stored_is_refused(repository: PostgresSessionRepository) -> None:
    open_session(repository, owner="Alice")
    lines = list(export_session(repository, "s"))
    lines[0] = lines[0].replace('"owner": "Alice"', '"owner": 7')
    with pytest.raises(BadFileError, match="owner must be a string"):
        import_session(repository, lines, session_id="copy")


# Commands and figures


def test_commands_show_owners_and_titles(
    repository: PostgresSessionRepository, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    open_session(repository, "mine", owner="Alice", title="A trip to Rome, Paris and London", metadata={"tier": "gold"})
    open_session(repository, "strange", owner="Mallory\x1b")
    build(repository, "mine")("hello")

    def run(*arguments: str) -> str:
        assert main([*arguments, "--dsn", dsn]) == 0
        return capsys.readouterr().out

    listed = run("sessions", "--owner", "Alice").splitlines()
    assert listed[0] == "session  owner  title                     agents  messages  multi-agents  last activity"
    assert listed[1].startswith("mine     Alice  A trip to Rome, Paris a…       1         2             0  ")
    assert len(listed) == 2
    assert "Mallory\\x1b" in run("sessions")
    assert run("sessions", "--metadata", '{"tier": "gold"}').count("\n") == 2
    (session,) = json.loads(run("sessions", "--json", "--owner", "Alice"))["sessions"]
    assert (session["owner"], session["metadata"]) == ("Alice", {"tier": "gold"})
    shown = run("show", "mine")
    assert 'owner Alice\ntitle A trip to Rome, Paris and London\nmetadata {"tier": "gold"}\n' in shown
    assert json.loads(run("show", "mine", "--json"))["session"]["owner"] == "Alice"
    assert "mine     Alice        A trip to Rome, Paris a…  " in run("stats")
    (first, _) = json.loads(run("stats", "--json"))["longest"]
    assert (first["owner"], first["title"]) == ("Alice", "A trip to Rome, Paris and London")


@pytest.mark.parametrize("text", ["[1]", "gold", '"gold"', '{"a":' * 100_000], ids=lambda text: text[:6])
def test_metadata_on_the_command_line_must_be_an_object(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sessions", "--metadata", text])
    assert "argument --metadata: must be a JSON object" in capsys.readouterr().err


def test_repository_that_creates_sessions_without_their_owner_is_noticed(dsn: str) -> None:
    class Forgetful(PostgresSessionRepository):
        def create_session(self, session: Session, **kwargs: Any) -> Session:
            return super().create_session(Session(session.session_id, session.session_type))

    with Forgetful(dsn) as repository, pytest.raises(SessionOwnerError):
        PostgresSessionManager("s", repository, owner="alice")
