"""Backends that an administrator, or the kernel, ends one by one: every write is repeated on another connection."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from strands.types.session import SessionMessage

from strands_psycopg import PostgresSessionRepository
from support.agents import build
from support.load import Load, ask, stored, transcript
from support.retries import Retries
from support.scale import scale
from support.waiting import wait_until

Connection = psycopg.Connection[Any]

TERMINATE_ONE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'strands-psycopg' ORDER BY random() LIMIT 1
"""
WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def test_all_turns_of_four_processes_survive_random_terminations(own_dsn: str, look: Connection) -> None:
    finished, terminated = threading.Event(), []

    def terminate() -> None:
        with psycopg.connect(own_dsn, autocommit=True) as connection:
            while not finished.wait(random.uniform(0, 0.04)):
                terminated.extend(connection.execute(TERMINATE_ONE).fetchall())

    with Load(own_dsn, scale(32, 1000)) as load, ThreadPoolExecutor() as executor:
        terminator = executor.submit(terminate)
        try:
            for _ in load:
                pass
        finally:
            finished.set()
        terminator.result()

    print(f"{load.acknowledged} turns, {len(terminated)} backends terminated, {load.retries} retries")
    assert load.retries > 0
    for session_id in load.sessions:
        assert stored(look, session_id) == transcript(load.turns_each)
    with PostgresSessionRepository(own_dsn) as repository:
        build(repository, load.sessions[0])("and now?")
    assert stored(look, load.sessions[0]) == [*transcript(load.turns_each), "user: and now?", "assistant: ok"]


def test_statement_under_way_is_repeated_and_stores_one_row(own_dsn: str, look: Connection, retries: Retries) -> None:
    with PostgresSessionRepository(own_dsn) as repository, ThreadPoolExecutor() as executor:
        build(repository)(ask(0))
        with psycopg.connect(own_dsn) as locker:
            locker.execute("SELECT FROM strands_agents FOR UPDATE")
            message = SessionMessage({"role": "user", "content": [{"text": "more"}]}, 2)
            append = executor.submit(repository.create_message, "s", "default", message)
            wait_until(lambda: look.execute(WAITING).fetchall())
            for (pid,) in look.execute(WAITING).fetchall():
                look.execute("SELECT pg_terminate_backend(%s)", [pid])
            wait_until(retries)
        append.result()

    assert stored(look, "s") == ["user: ask 0", "assistant: ok", "user: more"]
    assert [retry.error for retry in retries()] == [
        "terminating connection due to administrator command (SQLSTATE 57P01)"
    ]
