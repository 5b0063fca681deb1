import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool
from strands.types.session import SessionAgent, SessionMessage

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.cli import main
from strands_psycopg.errors import BadFileError, TransferError
from strands_psycopg.transfer import (
    IncompleteTransferError,
    PostgresqlSessionManagerTables,
    TransferResult,
    import_sessions,
    postgresql_session_manager,
    session_ids,
)
from support import transfers

# As strands-postgresql-session-manager creates them: 0.1 with JSON, 0.2 with JSONB and the constraint on messages.
_TABLES = """
CREATE TABLE sessions (
    session_id VARCHAR(255) PRIMARY KEY,
    session_type VARCHAR(50) NOT NULL,
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL
);
CREATE TABLE agents (
    session_id VARCHAR(255) NOT NULL REFERENCES sessions ON DELETE CASCADE,
    agent_id VARCHAR(255) NOT NULL,
    state {json},
    conversation_manager_state {json},
    _internal_state {json},
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (session_id, agent_id)
);
CREATE TABLE messages (
    session_id VARCHAR(255) NOT NULL REFERENCES sessions ON DELETE CASCADE,
    agent_id VARCHAR(255) NOT NULL,
    message_id INTEGER NOT NULL,
    message {json},
    redact_message {json},
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (session_id, agent_id, message_id)
);
"""
_MULTI_AGENTS = """
ALTER TABLE messages ADD FOREIGN KEY (session_id, agent_id) REFERENCES agents ON DELETE CASCADE;
CREATE TABLE multi_agents (
    session_id VARCHAR(255) NOT NULL REFERENCES sessions ON DELETE CASCADE,
    multi_agent_id VARCHAR(255) NOT NULL,
    state {json},
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (session_id, multi_agent_id)
);
"""

TIMES = ("2025-01-02 03:04:05.000006", "2025-02-03 04:05:06.7")
UTC = ("2025-01-02T03:04:05.000006+00:00", "2025-02-03T04:05:06.700000+00:00")

WINDOW = {"conversation_manager_state": {"removed_message_count": 3}}


class SourceTables:
    """The other package's tables, in a schema that is not in the search path."""

    def __init__(self, dsn: str, version: str) -> None:
        self.dsn = dsn
        self.version = version
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute("SET search_path = sales; CREATE SCHEMA sales")
        script = _TABLES + (_MULTI_AGENTS if version == "0.2" else "")
        self.connection.execute(script.replace("{json}", "JSON" if version == "0.1" else "JSONB").encode())

    def insert(self, table: str, **values: object) -> None:
        values |= {"created_at": TIMES[0], "updated_at": TIMES[1]}
        documents = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()}
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, documents)),
            sql.SQL(", ").join(sql.Placeholder() * len(documents)),
        )
        self.connection.execute(statement, list(documents.values()))

    def fill(self, session_id: str = "s", *, messages: int = 5) -> None:
        """Store a session as the package does; it writes JSON's null for a missing document."""
        self.insert("sessions", session_id=session_id, session_type="AGENT")
        self.insert(
            "agents",
            session_id=session_id,
            agent_id="a",
            state={"z": 1, "a": {"__bytes_encoded__": True, "data": "aGk="}},
            conversation_manager_state={"removed_message_count": 3},
            _internal_state="null",
        )
        for index in range(messages):
            self.insert(
                "messages",
                session_id=session_id,
                agent_id="a",
                message_id=index,
                message=transfers.message(index, {"z": 1, "a": b"hi"}).to_dict()["message"],
                redact_message={"role": "user", "content": [{"text": "[redacted]"}]} if index == 1 else "null",
            )
        if self.version == "0.2":
            self.insert("multi_agents", session_id=session_id, multi_agent_id="graph", state={"z": 1, "a": 2})

    def sessions(self) -> PostgresqlSessionManagerTables:
        return PostgresqlSessionManagerTables(self.dsn, schema="sales")


@pytest.fixture(params=["0.1", "0.2"])
def tables(request: pytest.FixtureRequest, empty_dsn: str) -> Iterator[SourceTables]:
    tables = SourceTables(empty_dsn, request.param)
    with tables.connection:
        yield tables


def texts(repository: PostgresSessionRepository, session_id: str = "s", agent_id: str = "a") -> list[Any]:
    found = repository.list_messages(session_id, agent_id)
    assert [each.message_id for each in found] == list(range(len(found)))
    return [each.message["content"][0]["text"] for each in found]


def test_everything_is_imported(repository: PostgresSessionRepository, tables: SourceTables) -> None:
    tables.fill()
    with tables.sessions() as source:
        result = import_sessions(repository, source)
        again = import_sessions(repository, source)
    graphs = int(tables.version == "0.2")
    assert result == TransferResult(sessions=1, agents=1, messages=5, multi_agents=graphs)
    assert again == TransferResult(unchanged=1)
    session, agent = repository.read_session("s"), repository.read_agent("s", "a")
    assert session is not None
    assert (session.created_at, session.updated_at) == UTC
    # In 0.2, JSONB has lost the order of keys.
    data = {"__bytes_encoded__": True, "data": "aGk="}
    data = data if tables.version == "0.1" else dict(reversed(data.items()))
    state = {"z": 1, "a": data} if tables.version == "0.1" else {"a": data, "z": 1}
    assert agent is not None
    # Older versions of Strands leave bytes in an agent's state encoded.
    assert repr(agent.state) == repr(SessionAgent.from_dict({"agent_id": "a", "state": state, **WINDOW}).state)
    assert (agent.conversation_manager_state, agent._internal_state) == ({"removed_message_count": 3}, {})
    assert (agent.created_at, agent.updated_at) == UTC
    redaction: Any = {"role": "user", "content": [{"text": "[redacted]"}]}
    messages = repository.list_messages("s", "a")
    assert messages == [
        SessionMessage(
            transfers.message(index, {"z": 1, "a": b"hi"}).message, index, redaction if index == 1 else None, *UTC
        )
        for index in range(5)
    ]
    keys = [list(each.message["content"][1]["json"]) for each in messages]  # type: ignore[typeddict-item]
    assert keys == [["z", "a"] if tables.version == "0.1" else ["a", "z"]] * 5
    assert repository.read_multi_agent("s", "graph") == ({"a": 2, "z": 1} if graphs else None)


def test_many_sessions_and_messages_are_read_page_by_page(
    repository: PostgresSessionRepository, tables: SourceTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_session_manager, "_IDS_PAGE", 2)
    monkeypatch.setattr(postgresql_session_manager, "_MESSAGES_PAGE", 2)
    ids = ["a", "B", "c", "é", "d e"]
    for number, session_id in enumerate(ids):
        tables.fill(session_id, messages=number)
    with tables.sessions() as source:
        assert import_sessions(repository, source).messages == 0 + 1 + 2 + 3 + 4
    assert list(session_ids(repository)) == sorted(ids)
    assert texts(repository, "d e") == ["text 0", "text 1", "text 2", "text 3"]


def test_gaps_are_closed_and_bad_rows_named(repository: PostgresSessionRepository, tables: SourceTables) -> None:
    tables.fill(messages=7)
    tables.connection.execute("DELETE FROM messages WHERE message_id IN (0, 4)")
    tables.connection.execute("UPDATE messages SET message = NULL WHERE message_id = 2")
    name = "row 's', 'a', 2 of the table sales.messages"
    with tables.sessions() as source:
        with pytest.raises(IncompleteTransferError, match=f"{name} cannot be read: message must be") as caught:
            import_sessions(repository, source)
        failure = caught.value.failures["s"]
        assert isinstance(failure, BadFileError)
        assert failure.file == name
        assert list(session_ids(repository)) == []
        result = import_sessions(repository, source, skip_bad=True)
    assert (result.messages, result.gaps_closed, len(result.skipped)) == (4, 2, 1)
    assert texts(repository) == ["text 1", "text 3", "text 5", "text 6"]
    # The window began with message 5, the fourth of those that there were.
    agent = repository.read_agent("s", "a")
    assert agent is not None
    assert agent.conversation_manager_state == {"removed_message_count": 2}


def test_messages_without_an_agent_are_not_lost_silently(repository: PostgresSessionRepository, empty_dsn: str) -> None:
    tables = SourceTables(empty_dsn, "0.1")
    with tables.connection, tables.sessions() as source:
        tables.fill()
        tables.connection.execute("DELETE FROM agents")
        with pytest.raises(
            IncompleteTransferError, match=r"row 's', 'a' of the table sales\.agents is missing, although"
        ):
            import_sessions(repository, source)
        result = import_sessions(repository, source, skip_bad=True)
    assert (result.sessions, result.agents, result.messages, len(result.skipped)) == (1, 0, 0, 1)


def test_tables_may_be_in_the_same_database(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables = SourceTables(dsn, "0.2")
    with tables.connection:
        tables.fill()
    assert (
        main(["import", "--tables-of", "strands-postgresql-session-manager", "--tables-schema", "sales", "--dsn", dsn])
        == 0
    )
    assert capsys.readouterr() == ("imported 1 session, 1 agent, 5 messages, 1 multi-agent\n", "")
    assert (
        main(
            [
                "import",
                "--tables-of",
                "strands-postgresql-session-manager",
                "--tables-dsn",
                dsn,
                "--tables-schema",
                "sales",
                "--dsn",
                dsn,
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.endswith("1 session unchanged\n")


def test_callers_pool_is_a_source_and_stays_open(repository: PostgresSessionRepository, tables: SourceTables) -> None:
    tables.fill()
    with ConnectionPool(tables.dsn, min_size=1, kwargs={"prepare_threshold": None}) as pool:
        with PostgresqlSessionManagerTables(pool, schema="sales") as source:
            assert import_sessions(repository, source).messages == 5
        with pool.connection() as connection:
            connection.execute("SELECT 1")


def test_missing_tables_are_named(repository: PostgresSessionRepository, tables: SourceTables) -> None:
    with (
        PostgresqlSessionManagerTables(tables.dsn, schema="elsewhere") as source,
        pytest.raises(TransferError, match="the schema 'elsewhere' has no tables sessions, agents and messages"),
    ):
        import_sessions(repository, source)
