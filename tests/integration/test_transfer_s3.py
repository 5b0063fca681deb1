from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from strands import Agent
from strands.session import S3SessionManager
from strands.types.session import Session, SessionType

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.errors import BadFileError, TransferError
from strands_psycopg.scripted_model import ScriptedModel
from strands_psycopg.transfer import IncompleteTransferError, S3Sessions, TransferResult, import_sessions, session_ids
from strands_psycopg.transfer.sources import ImportIssues
from support import agents, transfers

BUCKET = "conversations"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Yield a client for the S3 mock of moto."""
    from moto import mock_aws  # takes half a second, which most test processes are spared

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client


class Objects(S3SessionManager):
    """Strands' S3 repository, without a session of its own."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.client, self.bucket, self.prefix = client, BUCKET, prefix


def write_by_strands(client: Any, prefix: str, session_id: str = "s", *, messages: int = 12) -> None:
    objects = Objects(client, prefix)
    objects.create_session(Session(session_id, SessionType.AGENT))
    objects.create_agent(session_id, transfers.agent("a"))
    for index in range(messages):
        objects.create_message(session_id, "a", transfers.message(index, {"z": index, "a": None}))


def key(prefix: str, name: str) -> str:
    return f"{prefix}/session_s/{name}".lstrip("/")


def texts(repository: PostgresSessionRepository) -> list[Any]:
    return [each.message["content"][0]["text"] for each in repository.list_messages("s", "a")]


@pytest.mark.parametrize("prefix", ["", "tenant/one", "/tenant/"])
def test_imported_session_equals_what_strands_reads(
    repository: PostgresSessionRepository, client: Any, prefix: str
) -> None:
    transfers.fill(Objects(client, prefix), documents=transfers.BY_STRANDS)
    write_by_strands(client, f"{prefix.strip('/')}-other", messages=1)
    result = import_sessions(repository, S3Sessions(BUCKET, prefix))
    assert result == TransferResult(sessions=1, agents=2, messages=2 * len(transfers.BY_STRANDS), multi_agents=2)
    assert transfers.restored(repository) == transfers.restored(Objects(client, prefix))
    assert import_sessions(repository, S3Sessions(BUCKET, prefix)) == TransferResult(unchanged=1)


def test_conversation_continues(repository: PostgresSessionRepository, client: Any) -> None:
    manager = S3SessionManager("s", BUCKET)
    agent = Agent(model=ScriptedModel([["one"]]), session_manager=manager, callback_handler=None)
    agent("first")
    import_sessions(repository, S3Sessions(BUCKET))
    moved = agents.build(repository)
    assert agents.dump(moved) == agents.dump(agent)
    moved("second")
    assert [message["content"][0]["text"] for message in moved.messages] == ["first", "one", "second", "ok"]


def test_many_objects_keep_their_order(repository: PostgresSessionRepository, client: Any) -> None:
    class Paging:
        """Lists 12 objects at a time, where S3 lists 1,000."""

        def get_object(self, **request: str) -> Any:
            return client.get_object(**request)

        def get_paginator(self, operation_name: str, /) -> Any:
            paginator = client.get_paginator(operation_name)
            return SimpleNamespace(paginate=partial(paginator.paginate, PaginationConfig={"PageSize": 12}))

    write_by_strands(client, "p", messages=30)
    assert import_sessions(repository, S3Sessions(BUCKET, "p", client=Paging())).messages == 30
    assert texts(repository) == [f"text {index}" for index in range(30)]


def test_gaps_are_closed_and_bad_objects_named(repository: PostgresSessionRepository, client: Any) -> None:
    write_by_strands(client, "p")
    messages = "agents/agent_a/messages"
    client.delete_object(Bucket=BUCKET, Key=key("p", f"{messages}/message_7.json"))
    client.put_object(Bucket=BUCKET, Key=key("p", f"{messages}/message_9.json"), Body=b'{"message":')
    bad = f"s3://{BUCKET}/p/session_s/{messages}/message_9.json"
    with pytest.raises(IncompleteTransferError) as caught:
        import_sessions(repository, S3Sessions(BUCKET, "p"))
    failure = caught.value.failures["s"]
    assert isinstance(failure, BadFileError)
    assert failure.file == bad
    assert list(session_ids(repository)) == []
    result = import_sessions(repository, S3Sessions(BUCKET, "p"), skip_bad=True)
    assert (result.messages, result.gaps_closed, len(result.skipped)) == (10, 1, 1)
    assert result.skipped[0].startswith(f"{bad} is not JSON")
    assert texts(repository) == [f"text {index}" for index in range(12) if index not in (7, 9)]


@pytest.mark.parametrize("name", ["session.json", "agents/agent_a/agent.json"])
def test_missing_object_is_named(repository: PostgresSessionRepository, client: Any, name: str) -> None:
    write_by_strands(client, "")
    client.delete_object(Bucket=BUCKET, Key=key("", name))
    with pytest.raises(IncompleteTransferError, match=f"s3://{BUCKET}/session_s/{name} is missing"):
        import_sessions(repository, S3Sessions(BUCKET))


def test_bucket_that_cannot_be_read_is_named(repository: PostgresSessionRepository, client: Any) -> None:
    with pytest.raises(TransferError, match="s3://nowhere/x/ cannot be read: NoSuchBucket"):
        import_sessions(repository, S3Sessions("nowhere", "x"))


def test_objects_are_fetched_ahead_but_not_all_at_once(client: Any) -> None:
    write_by_strands(client, "p", messages=40)
    ahead: list[int] = []
    fetched = 0

    class Counting:
        def get_object(self, **request: str) -> Any:
            nonlocal fetched
            fetched += "message_" in request["Key"]
            return client.get_object(**request)

        def get_paginator(self, operation_name: str, /) -> Any:
            return client.get_paginator(operation_name)

    source = S3Sessions(BUCKET, "p", client=Counting())
    for session in source.sessions():
        for number, _ in enumerate(session.rows(ImportIssues(skip_bad=False))):
            ahead.append(fetched - number)
    assert fetched == 40
    assert max(ahead) <= 22
