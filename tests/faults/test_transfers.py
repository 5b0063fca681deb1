"""Imports that lose their connection: the session is there once and whole, or not at all."""

from typing import Any

import psycopg
import pytest

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.transfer import (
    SessionLines,
    export_session,
    import_session,
    import_sessions,
    importing,
)
from support import transfers
from support.positions import each_position
from support.proxy import Proxy
from support.retries import Retries

Connection = psycopg.Connection[Any]


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_session_is_stored_once_whatever_is_lost(
    lost: str, own_dsn: str, look: Connection, retries: Retries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_MAX_BATCH_ROWS", 5)
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        transfers.fill(repository)
        lines = list(export_session(repository, "s"))
        for position in each_position(retries):
            session_id = f"faulty {position}"
            lose = proxy.lose_requests if lost == "request" else proxy.lose_answers
            lose(after=position)
            assert import_session(repository, lines, session_id=session_id) == transfers.FILLED
            assert transfers.rows(look, session_id) == transfers.rows(look)
    # It begins, makes the session, copies two agents with all that belongs to them and two multi-agents, and commits.
    assert position >= 6


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_session_is_exported_once_whatever_is_lost(lost: str, own_dsn: str, retries: Retries) -> None:
    with Proxy(own_dsn) as proxy, PostgresSessionRepository(proxy.dsn) as repository:
        transfers.fill(repository)
        lines = list(export_session(repository, "s"))
        for position in each_position(retries):
            lose = proxy.lose_requests if lost == "request" else proxy.lose_answers
            lose(after=position)
            assert list(export_session(repository, "s")) == lines
    # It begins, reads the session, agents, multi-agents, variants and checkpoints, and commits; then it reads messages.
    assert position >= 8


def test_session_whose_backend_is_terminated_again_and_again_is_stored_once(
    own_dsn: str, look: Connection, retries: Retries, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate(_: int) -> None:
        if next(batches, None) is not None:
            look.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND state = 'idle in transaction'"
            )

    monkeypatch.setattr(importing, "_MAX_BATCH_ROWS", 5)
    batches = iter(range(6))
    with PostgresSessionRepository(own_dsn) as repository:
        transfers.fill(repository)
        lines = SessionLines(export_session(repository, "s"), session_id="faulty")
        assert import_sessions(repository, lines, progress=terminate) == transfers.FILLED
    assert len(retries()) == 6
    assert transfers.rows(look, "faulty") == transfers.rows(look)
