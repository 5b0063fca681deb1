"""Documents on their way: each passes the payload codec once, nothing is stored in plain, and what fails is named."""

import asyncio
import copy
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager, SummarizingConversationManager
from strands.session import FileSessionManager
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import (
    DatabaseError,
    PayloadCodecError,
    PayloadContext,
    PostgresSessionManager,
    PostgresSessionRepository,
    PostgresStorage,
    PostgresStorageError,
)
from strands_psycopg.cli import main
from strands_psycopg.repository import session_tables
from strands_psycopg.repository.window import Window
from strands_psycopg.scripted_model import ScriptedModel
from strands_psycopg.transfer import (
    FileSessions,
    IncompleteTransferError,
    SessionLines,
    export_files,
    export_session,
    import_session,
    import_sessions,
)
from support.agents import (
    LOOK_UP,
    GuardedModel,
    Replies,
    build,
    dump,
    look_up,
    manager_of,
    restore_checkpoint,
    save_checkpoint,
)
from support.multi_agents import Team
from support.payloads import ScramblingCodec
from support.storage import needs_storage
from support.tables import Connection, one
from support.transfers import FILLED, age, fill, restored, rows

MARKER = "4111 1111 1111 1111"

SAID: Any = {"role": "user", "content": [{"text": MARKER}]}
GONE: Any = {"role": "user", "content": [{"text": "[gone]"}]}


@pytest.fixture
def codec() -> ScramblingCodec:
    return ScramblingCodec()


@pytest.fixture
def scrambled(dsn: str, pool_options: dict[str, Any], codec: ScramblingCodec) -> Iterator[PostgresSessionRepository]:
    """A repository whose documents pass the codec."""
    with PostgresSessionRepository(dsn, payload_codec=codec, **pool_options) as repository:
        yield repository


def rows_with(connection: Connection, text: str) -> list[str]:
    """Return all rows of all tables that hold a text, in whatever column, bytes included."""
    tables = connection.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
    ).fetchall()
    assert len(tables) > 6
    found = []
    for (table,) in tables:
        query = sql.SQL("SELECT t::text FROM {} AS t WHERE t::text LIKE ANY(%s)").format(sql.Identifier(table))
        patterns = [f"%{text}%", f"%{text.encode().hex()}%"]
        found += [f"{table}: {row}" for (row,) in connection.execute(query, [patterns])]
    return found


def stored_documents(connection: Connection, session_id: str) -> Counter[PayloadContext]:
    """Return the documents that the tables have of a session."""
    found = connection.execute(
        """
        SELECT agent_id, 'message', message_id::text FROM strands_messages WHERE session_id = %(session_id)s
        UNION ALL SELECT agent_id, 'redaction', message_id::text FROM strands_messages
            WHERE session_id = %(session_id)s AND redact_message IS NOT NULL
        UNION ALL SELECT agent_id, 'variant', variant_id::text FROM strands_message_variants
            WHERE session_id = %(session_id)s
        UNION ALL SELECT agent_id, kind, NULL FROM strands_agents,
            unnest(ARRAY['state', 'conversation_manager_state', 'internal_state']) AS kind
            WHERE session_id = %(session_id)s
        UNION ALL SELECT agent_id, 'checkpoint', snapshot_id::text FROM strands_checkpoints
            WHERE session_id = %(session_id)s
        UNION ALL SELECT multi_agent_id, 'multi_agent', NULL FROM strands_multi_agents
            WHERE session_id = %(session_id)s
        UNION ALL SELECT NULL, 'storage', key FROM strands_session_storage WHERE session_id = %(session_id)s
        """,
        {"session_id": session_id},
    ).fetchall()
    return Counter(
        PayloadContext(session_id, agent_id, kind, int(index) if index and index.isdigit() else index)
        for agent_id, kind, index in found
    )


@tool
def leak(text: str) -> str:
    """Return a text, many times over."""
    return f"{MARKER} {text} " * 300


LEAK: Replies = [[f"I call it with {MARKER}", {"name": "leak", "input": {"text": MARKER}}], [f"It says {MARKER}"]]


# what is stored and what comes back


@pytest.mark.parametrize(
    "manager",
    [
        lambda: SlidingWindowConversationManager(window_size=4),
        lambda: SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2),
    ],
)
def test_nothing_is_stored_in_plain(
    scrambled: PostgresSessionRepository, connection: Connection, tmp_path: Path, manager: Callable[[], Any]
) -> None:
    options: dict[str, Any] = {"tools": [leak], "conversation_manager": manager(), "state": {"card": MARKER}}
    agent = build(scrambled, replies=LEAK, system_prompt=f"Never say {MARKER}", **options)
    for number in range(4):
        agent.model = ScriptedModel(LEAK)
        agent(f"{number}: {MARKER}")
    agent.conversation_manager.reduce_context(agent)
    agent.messages[-1]["content"].append({"text": f"edited {MARKER}"})
    manager_of(agent).sync_agent(agent)
    snapshot_id = save_checkpoint(agent)
    agent.model = GuardedModel([["no"]], f"[{MARKER} is gone]")
    agent(f"guarded {MARKER}")
    scrambled.create_multi_agent("s", Team("team", {"task": MARKER}))
    scrambled.fork_session("s", "fork")
    scrambled.fork_session("s", "rewound", agent_id="default", snapshot_id=snapshot_id)
    scrambled.fork_session("s", "truncated", agent_id="default", until=3)
    import_session(scrambled, export_session(scrambled, "s"), session_id="imported")
    export_files(scrambled, "truncated", tmp_path)
    scrambled.delete_session("truncated")
    import_sessions(scrambled, FileSessions(tmp_path))

    assert one(connection, "SELECT count(*) FROM strands_message_variants") > 0
    assert rows_with(connection, MARKER) == []
    for session_id in ("s", "fork", "imported"):
        restored = build(scrambled, session_id, tools=[leak], conversation_manager=manager())
        assert dump(restored) == dump(agent)
    lines = list(export_session(scrambled, "fork"))
    assert sum(line.count(MARKER) for line in lines) > 10


@needs_storage
def test_nothing_of_a_storage_is_stored_in_plain(
    scrambled: PostgresSessionRepository, codec: ScramblingCodec, connection: Connection
) -> None:
    async def use(storage: PostgresStorage) -> list[Any]:
        for key, value in values.items():
            await storage.write(key, value)
        found: list[Any] = [
            await storage.namespace("deep").read("small"),
            await storage.read("large"),
            await storage.read("no"),
        ]
        return [*found, await storage.search("1111"), await storage.list()]

    values = {"deep/small": MARKER.encode(), "large": f"{MARKER} ".encode() * 10_000}
    scrambled.create_session(Session("s", SessionType.AGENT))
    keys: dict[PayloadContext, int] = {}
    for storage, session_id, scope in (
        (scrambled.storage("s"), "s", ""),
        (PostgresStorage(scrambled), None, ""),
        (PostgresStorage(scrambled, prefix="deep"), None, "deep//"),
        (PostgresStorage(scrambled, owner="alice", prefix="p"), None, "alice//p//"),
    ):
        assert asyncio.run(use(storage)) == [values["deep/small"], values["large"], None, [], list(values)]
        keys |= {PayloadContext(session_id, None, "storage", scope + key): 1 for key in values}
    assert rows_with(connection, MARKER) == []
    assert (codec.encoded, codec.decoded) == (keys, keys)


@needs_storage
def test_search_finds_the_words_that_a_codec_leaves(dsn: str, pool_options: dict[str, Any]) -> None:
    class Scrubbing:
        def encode(self, document: Any, context: PayloadContext) -> Any:
            return document.replace(MARKER.encode(), b"[card]")

        def decode(self, document: Any, context: PayloadContext) -> Any:
            return document

    async def use() -> list[Any]:
        await storage.write("note", f"The card is {MARKER}".encode())
        assert await storage.search("1111") == []
        return [hit.data for hit in await storage.search("card")]

    with PostgresSessionRepository(dsn, payload_codec=Scrubbing(), **pool_options) as repository:
        storage = PostgresStorage(repository)
        assert asyncio.run(use()) == [b"The card is [card]"]


def test_strands_own_manager_stores_by_way_of_the_codec(
    scrambled: PostgresSessionRepository, connection: Connection
) -> None:
    agent = Agent(
        model=GuardedModel([[MARKER]], f"[{MARKER} is gone]"),
        session_manager=RepositorySessionManager("s", scrambled),
        state={"card": MARKER},
        callback_handler=None,
    )
    agent(MARKER)

    assert rows_with(connection, MARKER) == []
    again = Agent(
        model=ScriptedModel([["ok"]]), session_manager=RepositorySessionManager("s", scrambled), callback_handler=None
    )
    assert json.dumps(again.messages) == json.dumps(agent.messages)
    assert again.state.get("card") == MARKER


# how often


def test_each_document_is_encoded_once(
    scrambled: PostgresSessionRepository, codec: ScramblingCodec, connection: Connection
) -> None:
    agent = build(scrambled, replies=LOOK_UP, tools=[look_up])
    # The documents of a new agent.
    assert codec.encoded == stored_documents(connection, "s")
    codec.clear()
    agent("How is the weather in Köln?")

    # The tool changes the state, and each turn that of the conversation manager at most once.
    messages = {context: 1 for context in stored_documents(connection, "s") if context.kind == "message"}
    assert {context: count for context, count in codec.encoded.items() if context.kind == "message"} == messages
    assert len(messages) == 4
    assert codec.decoded == {}

    codec.clear()
    save_checkpoint(agent)
    assert [context.kind for context in codec.encoded.elements()] == ["checkpoint"]
    codec.clear()
    build(scrambled, tools=[look_up])
    assert codec.encoded == {}
    assert codec.decoded == {c: 1 for c in stored_documents(connection, "s") if c.kind != "checkpoint"}


def test_each_document_of_a_transfer_and_a_fork_passes_once(
    scrambled: PostgresSessionRepository, codec: ScramblingCodec, connection: Connection
) -> None:
    fill(scrambled)
    codec.clear()
    lines = list(export_session(scrambled, "s"))
    assert codec.decoded == stored_documents(connection, "s")
    assert codec.encoded == {}

    codec.clear()
    assert import_session(scrambled, lines, session_id="imported") == FILLED
    assert codec.encoded == stored_documents(connection, "imported")

    codec.clear()
    scrambled.fork_session("s", "fork")
    assert codec.decoded == stored_documents(connection, "s")
    assert codec.encoded == stored_documents(connection, "fork")


def test_restore_reads_no_more_messages_than_the_agent_holds(
    scrambled: PostgresSessionRepository, codec: ScramblingCodec
) -> None:
    def manager() -> SlidingWindowConversationManager:
        return SlidingWindowConversationManager(window_size=4)

    agent = build(scrambled, conversation_manager=manager())
    for number in range(6):
        agent(f"{number}")
    tables = session_tables(scrambled)
    read = tables.conversations.read("s", "default")
    assert read is not None
    assert read.stored.window is None
    found = tables.database.fetch(
        "counting", tables.conversations._read, {"session_id": "s", "agent_id": "default", "owner": None}
    ).rows
    assert len(found) == 1 + 4
    # Strands' own update of an agent, and an import.
    stored = scrambled.read_agent("s", "default")
    assert stored is not None
    scrambled.update_agent("s", stored)
    import_session(scrambled, export_session(scrambled, "s"), session_id="imported")
    for session_id in ("s", "imported"):
        key = {"session_id": session_id, "agent_id": "default", "owner": None}
        assert len(tables.database.fetch("counting", tables.conversations._read, key).rows) == 1 + 4
        assert dump(build(scrambled, session_id, conversation_manager=manager())) == dump(agent)


# redactions, forks, transfers


def test_redaction_reaches_the_message_of_every_agent(scrambled: PostgresSessionRepository) -> None:
    message: Any = {"role": "user", "content": [{"text": MARKER}], "tracking_id": "t"}
    other: Any = {"role": "user", "content": [{"text": "hello"}], "tracking_id": "u"}
    redacted: Any = {**message, "content": [{"text": "[gone]"}]}
    scrambled.create_session(Session("s", SessionType.AGENT))
    for agent_id in ("a", "b"):
        scrambled.create_agent("s", SessionAgent(agent_id, {}, {}))
        # More than a page.
        for index in range(205):
            content = message if index in (0, 203) else other
            scrambled.create_message("s", agent_id, SessionMessage(copy.deepcopy(content), index))
    update = SessionMessage(message, 0, redacted)
    scrambled.update_message("s", "a", update)

    for agent_id in ("a", "b"):
        log = scrambled.list_messages("s", agent_id)
        assert [each.message_id for each in log if each.redact_message == redacted] == [0, 203]
        assert all(each.message in (redacted, other) for each in log)
    assert update.updated_at == scrambled.list_messages("s", "a")[0].updated_at


def test_redaction_that_a_trigger_suppresses_is_told_as_that(
    scrambled: PostgresSessionRepository, connection: Connection
) -> None:
    scrambled.create_session(Session("s", SessionType.AGENT))
    scrambled.create_agent("s", SessionAgent("a", {}, {}))
    scrambled.create_message("s", "a", SessionMessage(SAID, 0))
    connection.execute("CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    connection.execute(
        "CREATE TRIGGER suppress BEFORE UPDATE ON strands_messages FOR EACH ROW EXECUTE FUNCTION suppress()"
    )

    with pytest.raises(DatabaseError, match="look for a trigger or rule"):
        scrambled.update_message("s", "a", SessionMessage(SAID, 0, GONE))


def test_redaction_reaches_a_message_that_takes_the_place_of_another_meanwhile(
    dsn: str, pool_options: dict[str, Any]
) -> None:
    class ReplacingCodec(ScramblingCodec):
        def encode(self, document: Any, context: PayloadContext) -> Any:
            if context.kind == "redaction" and not self.encoded[context]:
                replaced.delete_agent("s", "a")
                replaced.create_agent("s", SessionAgent("a", {}, {}))
                replaced.create_message("s", "a", SessionMessage(SAID, 0))
            return super().encode(document, context)

    with PostgresSessionRepository(dsn, payload_codec=ReplacingCodec(), **pool_options) as replaced:
        replaced.create_session(Session("s", SessionType.AGENT))
        replaced.create_agent("s", SessionAgent("a", {}, {}))
        replaced.create_message("s", "a", SessionMessage(SAID, 0))
        replaced.update_message("s", "a", SessionMessage(SAID, 0, GONE))

        assert [each.redact_message for each in replaced.list_messages("s", "a")] == [GONE]


@pytest.mark.skipif(
    "tracking_id" not in Message.__annotations__, reason="strands-agents before 1.48 has no tracking id"
)
def test_redacted_message_stays_redacted_when_it_is_replaced(
    scrambled: PostgresSessionRepository, connection: Connection
) -> None:
    agent = build(scrambled, model=GuardedModel([["no"]], "[gone]"))
    agent(MARKER)
    agent.messages[0]["content"].append({"text": "more"})
    manager_of(agent).replace_message(agent.messages[0], agent)

    first = scrambled.list_messages("s", "default")[0]
    assert first.redact_message is not None
    assert first.message == first.redact_message
    assert dump(build(scrambled)) == dump(agent)


def test_truncated_fork_begins_with_a_prompt(scrambled: PostgresSessionRepository) -> None:
    agent = build(
        scrambled, replies=[], tools=[look_up], conversation_manager=SlidingWindowConversationManager(window_size=6)
    )
    for number in range(5):
        agent.model = ScriptedModel(LOOK_UP)
        agent(f"How is the weather in Köln? {number}")
    scrambled.fork_session("s", "fork", until=15)
    fork = build(scrambled, "fork", conversation_manager=SlidingWindowConversationManager(window_size=6))

    log = [each.to_message() for each in scrambled.list_messages("s", "default")]
    assert json.dumps(fork.messages) == json.dumps(log[8:15])


def test_checkpoint_comes_back(scrambled: PostgresSessionRepository) -> None:
    agent = build(scrambled, replies=[["one"], ["two"]])
    agent("1")
    then = dump(agent)
    snapshot_id = save_checkpoint(agent)
    agent("2")
    restore_checkpoint(agent, snapshot_id)
    assert dump(agent) == then


def plain_line(line: str, session_id: str) -> str:
    """Return a line of an export as if it were of the session ``x``, and without a value's search vector."""
    return re.sub('"search_vector": (null|"[^"]*"), ', "", line).replace(f'"context/{session_id}/', '"context/x/')


def test_transfers_between_codecs_and_none(
    scrambled: PostgresSessionRepository, repository: PostgresSessionRepository, connection: Connection
) -> None:
    fill(repository)
    age(connection)
    plain = restored(repository)
    lines = list(export_session(repository, "s"))
    import_session(scrambled, lines, session_id="scrambled")
    again = list(export_session(scrambled, "scrambled"))
    # The words of a value are those that the codec leaves, and keys have the id of their session.
    assert [plain_line(line, "scrambled") for line in again[1:]] == [plain_line(line, "s") for line in lines[1:]]
    # It is unchanged, though what is stored differs at each import.
    assert import_session(scrambled, lines, session_id="scrambled").unchanged == 1
    import_session(repository, again, session_id="plain again")
    assert rows(connection, "plain again") == rows(connection, "s")
    assert restored(repository) == plain


def test_raw_export_has_the_rows_as_they_are_and_comes_back_as_them(
    scrambled: PostgresSessionRepository,
    repository: PostgresSessionRepository,
    codec: ScramblingCodec,
    connection: Connection,
) -> None:
    fill(scrambled)
    age(connection)
    before = rows(connection)
    text = restored(scrambled)
    codec.clear()
    lines = list(export_session(scrambled, "s", raw=True))
    assert json.loads(lines[0])["raw"] is True
    assert json.loads(lines[2])["message"].keys() == {"scrambled"}
    assert import_session(scrambled, lines).unchanged == 1
    scrambled.delete_session("s")
    assert import_sessions(scrambled, SessionLines(lines)) == FILLED
    assert codec.encoded == codec.decoded == {}
    assert {table: len(each) for table, each in rows(connection).items()} == {
        table: len(each) for table, each in before.items()
    }
    assert restored(scrambled) == text
    scrambled.delete_session("s")
    # Whether the target has the codec makes no difference.
    import_session(repository, lines)
    assert restored(scrambled) == text


def test_raw_documents_may_be_any_json(dsn: str, pool_options: dict[str, Any]) -> None:
    class AsText:
        def encode(self, document: Any, context: PayloadContext) -> Any:
            return json.dumps(document)

        def decode(self, document: Any, context: PayloadContext) -> Any:
            return json.loads(document)

    with PostgresSessionRepository(dsn, payload_codec=AsText(), **pool_options) as repository:
        agent = build(repository, replies=[["ok"]])
        agent("hello")
        save_checkpoint(agent)
        lines = list(export_session(repository, "s", raw=True))
        assert isinstance(json.loads(lines[2])["message"], str)
        repository.delete_session("s")
        import_session(repository, lines)
        assert dump(build(repository)) == dump(agent)


def test_variant_that_is_redacted_during_an_export_is_exported_as_redacted(
    scrambled: PostgresSessionRepository,
) -> None:
    agent = build(scrambled, replies=[["one"]])
    agent(MARKER)
    agent.messages[0]["content"][0]["note"] = "edited"  # type: ignore[typeddict-unknown-key]
    manager_of(agent).sync_agent(agent)
    lines = export_session(scrambled, "s")
    redacted: Any = {**agent.messages[0], "content": [{"text": "[gone]"}]}
    manager_of(agent).redact_latest_message(redacted, agent)
    agent.messages[0] = redacted
    manager_of(agent).sync_agent(agent)
    assert MARKER not in "".join(lines)


# failures


class FailingCodec(ScramblingCodec):
    """Fails where a test says so.

    Attributes:
        failing: For each method, the kind or the session whose documents it fails for; "" is all.
        instead: What it does then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failing: dict[str, str] = {}
        self.instead: Callable[[Any], Any] = refuse

    def encode(self, document: Any, context: PayloadContext) -> Any:
        return self.instead(document) if self._fails("encode", context) else super().encode(document, context)

    def decode(self, document: Any, context: PayloadContext) -> Any:
        decoded = super().decode(document, context)
        return self.instead(decoded) if self._fails("decode", context) else decoded

    def _fails(self, method: str, context: PayloadContext) -> bool:
        what = self.failing.get(method)
        return what is not None and what in ("", context.kind, context.session_id)


def refuse(document: Any) -> Any:
    raise KeyError(repr(document))


@pytest.fixture
def failing() -> FailingCodec:
    return FailingCodec()


@pytest.fixture
def doubtful(dsn: str, pool_options: dict[str, Any], failing: FailingCodec) -> Iterator[PostgresSessionRepository]:
    with PostgresSessionRepository(dsn, payload_codec=failing, **pool_options) as repository:
        yield repository


def table_texts(connection: Connection) -> list[str]:
    names = ("sessions", "agents", "messages", "message_variants", "checkpoints", "multi_agents")
    query = sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1")
    return [row for name in names for (row,) in connection.execute(query.format(sql.Identifier(f"strands_{name}")))]


WRITES: dict[str, tuple[str, Callable[[PostgresSessionRepository], object]]] = {
    "create_agent": ("state", lambda repository: repository.create_agent("s", SessionAgent("new", {"a": MARKER}, {}))),
    "update_agent": (
        "internal_state",
        lambda repository: repository.update_agent("s", SessionAgent("a", {"a": MARKER}, {})),
    ),
    "create_message": (
        "message",
        lambda repository: repository.create_message("s", "a", SessionMessage(saying(MARKER), 7)),
    ),
    "update_message": (
        "message",
        lambda repository: repository.update_message("s", "a", SessionMessage(saying(MARKER), 0)),
    ),
    "redact": (
        "redaction",
        lambda repository: repository.update_message("s", "a", SessionMessage(saying("x"), 0, saying(MARKER))),
    ),
    "create_multi_agent": ("multi_agent", lambda repository: repository.create_multi_agent("s", Team("n", {"": 0}))),
    "update_multi_agent": ("multi_agent", lambda repository: repository.update_multi_agent("s", Team("graph", {}))),
    "fork": ("checkpoint", lambda repository: repository.fork_session("s", "fork")),
    "import": (
        "variant",
        lambda repository: import_session(repository, export_session(repository, "s"), session_id="imported"),
    ),
    "save": (
        "checkpoint",
        lambda repository: session_tables(repository).checkpoints.save(
            *("s", "a", uuid4(), {}, Window((), None)),
            message_count=7,
            keep=None,
            window_variant_ids=[],
            expected=session_tables(repository).agents.read("s", "a").write_id,  # type: ignore[union-attr]
        ),
    ),
}


def saying(text: str) -> Any:
    return {"role": "user", "content": [{"text": text}]}


def nothing(_: Any) -> Any:
    return None


@pytest.mark.parametrize("write", WRITES)
def test_write_that_cannot_be_encoded_stores_nothing(
    doubtful: PostgresSessionRepository, failing: FailingCodec, connection: Connection, write: str
) -> None:
    fill(doubtful)
    before = table_texts(connection)
    kind, call = WRITES[write]
    failing.failing = {"encode": kind}
    instead: list[Callable[[Any], Any]] = [refuse, nothing, lambda _: {1: 1, "1": 2}, lambda _: object()]
    for failing.instead in instead:
        with pytest.raises(PayloadCodecError, match=r"payload_codec: encode .*; nothing was stored") as failure:
            call(doubtful)

        assert table_texts(connection) == before
        error = failure.value
        assert (error.kind, error.session_id) == (kind, {"fork": "fork", "import": "imported"}.get(write, "s"))
        assert error.agent_id is not None
        assert repr(error.agent_id) in str(error)
        assert repr(error.session_id) in str(error)
        assert MARKER not in str(error)
        assert (error.__cause__ is None) == (failing.instead is nothing)
    failing.failing = {}
    call(doubtful)


READS: list[Callable[[PostgresSessionRepository], object]] = [
    lambda repository: repository.read_agent("s", "a"),
    lambda repository: repository.read_message("s", "a", 0),
    lambda repository: repository.list_messages("s", "a"),
    lambda repository: repository.read_multi_agent("s", "graph"),
    lambda repository: repository.fork_session("s", "fork"),
    lambda repository: list(export_session(repository, "s")),
    lambda repository: session_tables(repository).conversations.read("s", "a"),
    build,
]


@pytest.mark.parametrize(
    ("instead", "reason"), [(refuse, "raised KeyError"), (nothing, "returned NoneType instead of a dict")]
)
def test_read_that_cannot_be_decoded_is_named(
    doubtful: PostgresSessionRepository,
    failing: FailingCodec,
    connection: Connection,
    instead: Callable[[Any], Any],
    reason: str,
) -> None:
    fill(doubtful)
    build(doubtful)("hello")
    before = table_texts(connection)
    failing.failing = {"decode": ""}
    failing.instead = instead
    for read in READS:
        with pytest.raises(PayloadCodecError, match=f"payload_codec: decode {reason}"):
            read(doubtful)
        assert table_texts(connection) == before


def test_manager_whose_write_could_not_be_encoded_refuses_later_ones(
    doubtful: PostgresSessionRepository, failing: FailingCodec, connection: Connection
) -> None:
    agent = build(doubtful, replies=[["one"], ["two"], ["three"]])
    agent("1")
    before = table_texts(connection)
    failing.failing = {"encode": "message"}
    with pytest.raises(PayloadCodecError) as first:
        agent("2")
    assert (first.value.agent_id, first.value.kind, first.value.index) == ("default", "message", 2)
    failing.failing = {}
    with pytest.raises(PayloadCodecError) as second:
        agent("3")
    assert second.value is first.value
    assert table_texts(connection) == before
    build(doubtful)("4")


def test_import_of_several_sessions_names_those_that_could_not_be_encoded(
    doubtful: PostgresSessionRepository, failing: FailingCodec, repository: PostgresSessionRepository, tmp_path: Path
) -> None:
    for session_id in ("one", "two", "three"):
        Agent(
            model=ScriptedModel([["ok"]]),
            session_manager=FileSessionManager(session_id, storage_dir=str(tmp_path)),
            callback_handler=None,
        )("hello")
    failing.failing = {"encode": "two"}
    with pytest.raises(IncompleteTransferError) as failure:
        import_sessions(doubtful, FileSessions(tmp_path))
    assert failure.value.result.sessions == 2
    assert isinstance(failure.value.failures["two"], PayloadCodecError)
    assert repository.read_session("two") is None


@needs_storage
@pytest.mark.parametrize("failed", ["encode", "decode"])
@pytest.mark.parametrize("instead", [refuse, lambda _: "text"])
def test_storage_whose_value_cannot_be_encoded_stores_nothing(
    doubtful: PostgresSessionRepository, failing: FailingCodec, failed: str, instead: Callable[[Any], Any]
) -> None:
    async def use() -> None:
        await storage.write("key", b"one")
        failing.failing = {failed: ""}
        with pytest.raises(PostgresStorageError) as failure:
            await (storage.write("key", b"two") if failed == "encode" else storage.read("key"))
        assert isinstance(failure.value.__cause__, PayloadCodecError)
        assert failure.value.__cause__.index == "key"
        failing.failing = {}
        assert await storage.read("key") == b"one"
        await storage.write("key", b"three")

    failing.instead = instead
    storage = PostgresStorage(doubtful, guard_overwrites=True)
    asyncio.run(use())


@pytest.mark.parametrize("codec", [object(), ScramblingCodec, "module:codec"])
def test_what_is_no_codec_is_refused_at_once(codec: Any) -> None:
    with pytest.raises(TypeError, match="payload_codec must be an object"):
        PostgresSessionRepository("postgresql://nowhere", payload_codec=codec)


def test_codec_gets_copies(dsn: str, pool_options: dict[str, Any]) -> None:
    class Editing:
        def encode(self, document: Any, context: PayloadContext) -> Any:
            if context.kind == "message":
                document["content"][0]["text"] = "[scrubbed]"
            document["seen"] = True
            return document

        def decode(self, document: Any, context: PayloadContext) -> Any:
            document.pop("seen")
            return document

    with PostgresSessionRepository(dsn, payload_codec=Editing(), **pool_options) as repository:
        agent = build(repository, replies=[["ok"]], state={"a": 1})
        agent("hello")
        assert [each["content"] for each in agent.messages] == [[{"text": "hello"}], [{"text": "ok"}]]
        assert agent.state.get() == {"a": 1}
        restored = build(repository)
        assert [each["content"] for each in restored.messages] == [[{"text": "[scrubbed]"}]] * 2


# off the loop


def test_loop_goes_on_while_a_document_is_encoded(dsn: str, pool_options: dict[str, Any]) -> None:
    class Waiting(ScramblingCodec):
        """Waits in each call until the loop has ticked."""

        def __init__(self) -> None:
            super().__init__()
            self.loop: asyncio.AbstractEventLoop | None = None
            self.held = 0

        def encode(self, document: Any, context: PayloadContext) -> Any:
            if self.loop is not None:
                ticked = threading.Event()
                self.loop.call_soon_threadsafe(ticked.set)
                assert ticked.wait(30), "the loop stood still"
                self.held += 1
            return super().encode(document, context)

    codec = Waiting()

    async def turn() -> None:
        codec.clear()
        codec.loop = asyncio.get_running_loop()
        await agent.invoke_async("How is the weather in Köln?")
        await manager_of(agent).save_snapshot(agent)
        assert threading.get_ident() not in codec.threads

    with PostgresSessionRepository(dsn, payload_codec=codec, **pool_options) as repository:
        agent = build(repository, replies=LOOK_UP, tools=[look_up])
        asyncio.run(turn())
        codec.loop = None
        assert codec.held >= 6
        assert dump(build(repository, tools=[look_up])) == dump(agent)


# overridden methods


def overriding(*names: str) -> type[PostgresSessionRepository]:
    def method(name: str) -> Callable[..., Any]:
        def call(self: PostgresSessionRepository, *arguments: Any, **kwargs: Any) -> Any:
            heard.append(name)
            return getattr(PostgresSessionRepository, name)(self, *arguments, **kwargs)

        return call

    heard: list[str] = []
    return type("Mine", (PostgresSessionRepository,), {**{name: method(name) for name in names}, "heard": heard})


UNCALLED = [
    *("create_agent", "read_agent", "update_agent", "create_message", "read_message", "update_message"),
    *("list_messages", "create_multi_agent", "read_multi_agent", "update_multi_agent"),
]


@pytest.mark.parametrize("name", UNCALLED)
def test_repository_whose_override_would_not_be_called_is_refused(
    dsn: str, pool_options: dict[str, Any], connection: Connection, name: str
) -> None:
    with overriding("read_session", name)(dsn, **pool_options) as repository:
        with pytest.raises(TypeError, match=rf"Mine overrides {name}, .*payload_codec"):
            PostgresSessionManager("s", repository)
        assert one(connection, "SELECT count(*) FROM strands_sessions") == 0


def test_all_overridden_methods_are_named(dsn: str, pool_options: dict[str, Any]) -> None:
    with overriding("list_messages", "create_message")(dsn, **pool_options) as repository:

        class Mixed(type(repository)):  # type: ignore[misc]
            pass

        with pytest.raises(TypeError, match="Mixed overrides create_message, list_messages, which"):
            PostgresSessionManager("s", Mixed(dsn))


def test_method_that_is_replaced_on_the_object_is_refused(repository: PostgresSessionRepository) -> None:
    repository.create_message = print  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError, match="create_message"):
        PostgresSessionManager("s", repository)


def test_overrides_that_are_called_are_heard(dsn: str, pool_options: dict[str, Any]) -> None:
    called = ("read_session", "create_session", "close", "lease", "fork_session", "delete_session")
    with overriding(*called)(dsn, **pool_options) as repository:
        build(repository)("hello")
        assert vars(type(repository))["heard"] == ["read_session", "create_session"]


def test_strands_own_manager_calls_every_override(dsn: str, pool_options: dict[str, Any]) -> None:
    with overriding("create_message", "list_messages", "update_agent")(dsn, **pool_options) as repository:
        for _ in range(2):
            Agent(
                model=ScriptedModel([["ok"]]),
                session_manager=RepositorySessionManager("s", repository),
                callback_handler=None,
            )("hello")
        heard = Counter(vars(type(repository))["heard"])
        assert (heard["create_message"], heard["list_messages"]) == (4, 1)


# the command line


CODEC_MODULE = """
from support.payloads import ScramblingCodec

codec = ScramblingCodec()
ScramblingCodec = ScramblingCodec
broken = 1
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"codec_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(CODEC_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def test_commands_that_read_documents_take_the_codec(
    scrambled: PostgresSessionRepository,
    connection: Connection,
    dsn: str,
    module: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> str:
        assert main([*arguments, "--dsn", dsn, "--payload-codec", f"{module}:codec"]) == 0
        return capsys.readouterr().out

    agent = build(scrambled, replies=[[f"It is {MARKER}"]])
    agent("hello")
    assert MARKER in run("show", "s")
    assert MARKER in run("export", "s")
    raw = run("export", "s", "--raw", "--to", "raw.jsonl") + Path("raw.jsonl").read_text()
    assert MARKER not in raw
    run("export", "s", "--to", "plain.jsonl")
    run("fork", "s", "fork")
    scrambled.delete_session("s")
    run("import", "--from", "plain.jsonl")
    scrambled.delete_session("s")
    run("import", "--from", "raw.jsonl")
    assert rows_with(connection, MARKER) == []
    for session_id in ("s", "fork"):
        assert dump(build(scrambled, session_id)) == dump(agent)


@pytest.mark.parametrize("name", ["{}", "{}:", "nothing_here:codec", "{}:nothing", "{}:broken", "{}:ScramblingCodec"])
def test_codec_that_cannot_be_used_is_wrong_usage(
    dsn: str, module: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "s", "--dsn", dsn, "--payload-codec", name.format(module)]) == 2
    assert "--payload-codec" in capsys.readouterr().err


def test_raw_files_are_refused(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "s", "--raw", "--files", "directory", "--dsn", dsn])
    assert "--raw cannot be used with --files" in capsys.readouterr().err
