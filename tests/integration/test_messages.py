"""Rows of messages, beyond what any repository must do."""

import gc
from collections.abc import Iterator

import pytest
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import PostgresSessionRepository


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_listing_leaves_the_garbage_collector_as_it_was(
    repository: PostgresSessionRepository, collector: None, enabled: bool
) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", SessionAgent("a", {}, {}))
    repository.create_message("s", "a", SessionMessage({"role": "user", "content": []}, 0))
    if not enabled:
        gc.disable()

    repository.list_messages("s", "a")

    assert gc.isenabled() is enabled


def test_a_document_that_cannot_be_read_leaves_the_garbage_collector_as_it_was(
    repository: PostgresSessionRepository, collector: None
) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", SessionAgent("a", {}, {}))
    repository.create_message("s", "a", SessionMessage({"role": "user", "content": []}, 0))
    statement = repository._database.statement("UPDATE {messages} SET message_exact = 'no JSON' RETURNING 1")
    repository._database.fetch("spoiling a message", statement, {})

    with pytest.raises(ValueError, match="Expecting value"):
        repository.list_messages("s", "a")

    assert gc.isenabled()
