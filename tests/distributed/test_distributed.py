"""The package on a Citus cluster, with distributed tables; beside this, ``nox -s citus`` runs the conformance tests."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import PostgresSessionRepository, PostgresStorage, SchemaError
from strands_psycopg.migrator import Migration, Migrator, packaged_migrations
from strands_psycopg.repository import status
from strands_psycopg.repository.retention import PurgeResult
from strands_psycopg.transfer import export_session, import_session
from support import agents
from support.multi_agents import Team
from support.storage import has_storage

pytestmark = pytest.mark.citus

Connection = psycopg.Connection[Any]

_WORKER = "SELECT node_name, node_port FROM citus_get_active_worker_nodes() LIMIT 1"


def saying(text: str, index: int) -> SessionMessage:
    return SessionMessage({"role": "user", "content": [{"text": text}]}, index)


def of_owner(repository: PostgresSessionRepository) -> PostgresStorage:
    return PostgresStorage(repository, prefix="p", owner="alice", guard_overwrites=True)


METHODS: dict[str, Callable[[PostgresSessionRepository], object]] = {
    "create_session": lambda repository: repository.create_session(Session("new", SessionType.AGENT)),
    "read_session": lambda repository: repository.read_session("s"),
    "create_agent": lambda repository: repository.create_agent("s", SessionAgent("new", {}, {})),
    "read_agent": lambda repository: repository.read_agent("s", "a"),
    "update_agent": lambda repository: repository.update_agent("s", SessionAgent("a", {"a": 1}, {})),
    "create_message": lambda repository: repository.create_message("s", "a", saying("new", 2)),
    "read_message": lambda repository: repository.read_message("s", "a", 1),
    "update_message": lambda repository: repository.update_message("s", "a", saying("other", 1)),
    "list_messages": lambda repository: repository.list_messages("s", "a"),
    "create_multi_agent": lambda repository: repository.create_multi_agent("s", Team("new", {"a": 1})),
    "read_multi_agent": lambda repository: repository.read_multi_agent("s", "t"),
    "update_multi_agent": lambda repository: repository.update_multi_agent("s", Team("t", {"a": 1})),
    "list_agents": lambda repository: repository.list_agents("s"),
    "delete_agent": lambda repository: repository.delete_agent("s", "a"),
    "delete_session": lambda repository: repository.delete_session("s"),
    "annotate_session": lambda repository: repository.annotate_session("s", title="Rome", metadata={"a": 1}),
    "read_session of an owner": lambda repository: repository.read_session("s", owner="alice"),
    "delete_agent of an owner": lambda repository: repository.delete_agent("s", "a", owner="alice"),
    "delete_session of an owner": lambda repository: repository.delete_session("s", owner="alice"),
    "lease": lambda repository: repository.lease("s", owner="alice").__enter__().__exit__(None, None, None),
    "storage.write": lambda repository: asyncio.run(repository.storage("s").write("k", b"new")),
    "storage.write in chunks": lambda repository: asyncio.run(repository.storage("s").write("l", b"n" * 10_000)),
    "storage.read": lambda repository: asyncio.run(repository.storage("s").read("l")),
    "storage.list": lambda repository: asyncio.run(repository.storage("s").list()),
    "storage.search": lambda repository: asyncio.run(repository.storage("s").search("small")),
    "storage.delete": lambda repository: asyncio.run(repository.storage("s").delete("k")),
    "storage.delete of chunks": lambda repository: asyncio.run(repository.storage("s").delete("l")),
    "storage.purge": lambda repository: repository.storage("s").purge(idle_for=0.000001),
    "PostgresStorage.write": lambda repository: asyncio.run(of_owner(repository).write("k", b"new")),
    "PostgresStorage.write in chunks": lambda repository: asyncio.run(of_owner(repository).write("l", b"n" * 10_000)),
    "PostgresStorage.read": lambda repository: asyncio.run(of_owner(repository).read("l")),
    "PostgresStorage.list": lambda repository: asyncio.run(of_owner(repository).list()),
    "PostgresStorage.search": lambda repository: asyncio.run(of_owner(repository).search("small")),
    "PostgresStorage.delete": lambda repository: asyncio.run(of_owner(repository).delete("k")),
    "PostgresStorage.delete of chunks": lambda repository: asyncio.run(of_owner(repository).delete("l")),
    "PostgresStorage.purge": lambda repository: of_owner(repository).purge(idle_for=0.000001),
    "restore": lambda repository: repository._tables.conversations.read("s", "a"),
}


def fill(repository: PostgresSessionRepository) -> None:
    repository.create_session(Session("s", SessionType.AGENT), owner="alice")
    repository.create_agent("s", SessionAgent("a", {}, {}))
    for index in range(2):
        repository.create_message("s", "a", saying("hello\0", index))
    repository.create_multi_agent("s", Team("t", {}))
    if has_storage:
        for storage in (repository.storage("s"), of_owner(repository)):
            asyncio.run(storage.write("k", b"small"))
            asyncio.run(storage.write("l", b"l" * 10_000))


@pytest.mark.parametrize("leased", [False, True], ids=["without a lease", "under a lease"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "lease"])
def test_method_is_carried_out_by_the_node_of_the_session(
    logging_repository: PostgresSessionRepository, nodes: list[str], method: str, leased: bool
) -> None:
    if "torage" in method and not has_storage:
        pytest.skip("needs a newer Strands")
    fill(logging_repository)
    with logging_repository.lease("s") if leased and method != "create_session" else logging_repository.lease("other"):
        nodes.clear()
        METHODS[method](logging_repository)
        assert len(set(nodes)) <= 1


def test_lease_is_taken_and_released_on_the_node_of_the_session(
    logging_repository: PostgresSessionRepository, nodes: list[str]
) -> None:
    fill(logging_repository)
    nodes.clear()
    METHODS["lease"](logging_repository)
    assert len(set(nodes)) == 1


def test_fork_export_import_checkpoints_lists_and_deletion(repository: PostgresSessionRepository) -> None:
    agent = agents.build(repository, "s", [*agents.LOOK_UP, ["ok"], ["ok"]], tools=[agents.look_up])
    agent("ask")
    agent.messages[0]["content"] = [{"text": "edited"}]
    snapshot_id, then = agents.save_checkpoint(agent), agents.dump(agent)
    agent("go on")
    agents.restore_checkpoint(agent, snapshot_id)
    assert agents.dump(agent) == then
    count = len(repository.list_messages("s", "default"))

    assert repository.fork_session("s", "fork").messages == count
    assert repository.fork_session("s", "start", until=1).messages == 1
    assert repository.fork_session("s", "then", snapshot_id=snapshot_id).messages < count
    import_session(repository, list(export_session(repository, "s")), session_id="copy")
    assert agents.dump(agents.build(repository, "copy")) == agents.dump(agents.build(repository, "s"))

    everything = ["copy", "fork", "s", "start", "then"]
    page = repository.list_sessions(limit=2)
    following = repository.list_sessions(limit=10, before=page.next)
    assert sorted(each.session_id for each in page.sessions + following.sessions) == everything
    assert [each.session_id for each in repository.list_sessions(prefix="st").sessions] == ["start"]
    for session_id in everything:
        repository.delete_session(session_id)
    assert repository.list_sessions().sessions == []


def test_redaction_reaches_all_agents(repository: PostgresSessionRepository) -> None:
    agents.build(repository, "s", model=agents.GuardedModel([["no"]], "[redacted]"))("secret")
    assert agents.build(repository, "s").messages[0]["content"] == [{"text": "[redacted]"}]


def test_purge_deletes_idle_sessions_but_not_a_leased_one(
    repository: PostgresSessionRepository, connection: Connection
) -> None:
    for number in range(5):
        repository.create_session(Session(f"s{number}", SessionType.AGENT))
        repository.create_agent(f"s{number}", SessionAgent("a", {}, {}))
        repository.create_message(f"s{number}", "a", saying("hello", 0))
    connection.execute("UPDATE strands_sessions SET updated_at = '2020-01-01'")
    with repository.lease("s0"):
        assert repository.purge_sessions(idle_for=timedelta(days=1)) == PurgeResult(4, 4, 4, 0)
        # As a purge does that has listed the session before it was leased.
        selection: dict[str, object] = {"idle": 60.0, "owner": None, "metadata": None}
        assert repository._tables.retention._delete(["s0"], selection) == PurgeResult()
        assert repository.read_session("s0") is not None
    assert repository.purge_sessions(idle_for=timedelta(days=1)) == PurgeResult(1, 1, 1, 0)


def test_status_is_that_of_the_shards(
    repository: PostgresSessionRepository, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(repository)
    tables = {each.name: each for each in repository.status().tables}
    messages = tables["strands_messages"]
    assert (messages.rows, messages.exact) == (2, True)
    shell = connection.execute("SELECT pg_total_relation_size('strands_messages')").fetchone()
    assert shell is not None
    assert messages.bytes > shell[0]

    connection.execute("ANALYZE strands_messages")
    monkeypatch.setattr(status, "_MAX_COUNTED_BYTES", 0)
    [estimated] = [each for each in repository.status().tables if each.name == "strands_messages"]
    assert (estimated.rows, estimated.exact) == (2, False)


def test_ensure_schema_is_for_the_coordinator(
    repository: PostgresSessionRepository, connection: Connection, dsn: str
) -> None:
    repository.ensure_schema()
    worker = connection.execute(_WORKER).fetchone()
    assert worker is not None
    with PostgresSessionRepository(make_conninfo(dsn, host=worker[0], port=worker[1])) as other:
        # Nothing is pending.
        other.ensure_schema()
    with (
        PostgresSessionRepository(make_conninfo(dsn, host=worker[0], port=worker[1]), table_prefix="other_") as other,
        pytest.raises(SchemaError, match="coordinator"),
    ):
        other.ensure_schema()


def test_upgrade_keeps_the_data_of_all_nodes(repository: PostgresSessionRepository, connection: Connection) -> None:
    for number in range(5):
        repository.create_session(Session(f"s{number}", SessionType.AGENT))
    added = Migration(
        len(packaged_migrations()) + 1,
        "labels",
        """
        ALTER TABLE strands_sessions ADD COLUMN label text NOT NULL DEFAULT 'old';
        ALTER TABLE strands_sessions ADD CONSTRAINT strands_sessions_label CHECK (label <> '');
        CREATE TABLE strands_labels (session_id text COLLATE "C" PRIMARY KEY REFERENCES strands_sessions);
        """,
    )
    assert Migrator(repository._database, [*packaged_migrations(), added]).apply() == [added]
    labelled = [(f"s{number}", "old") for number in range(5)]
    assert connection.execute("SELECT session_id, label FROM strands_sessions ORDER BY 1").fetchall() == labelled
    connection.execute(
        "SELECT create_distributed_table('strands_labels', 'session_id', colocate_with => 'strands_sessions')"
    )
