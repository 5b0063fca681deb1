"""A server that crashes and comes back: turns that are under way wait for it and go on."""

from collections.abc import AsyncIterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
from strands.types.content import Messages
from strands.types.streaming import StreamEvent

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.embedded import Server
from strands_psycopg.scripted_model import ScriptedModel
from support.agents import build, dump
from support.load import Load, stored, transcript
from support.retries import Retries
from support.scale import scale
from support.waiting import wait_until


def test_all_turns_of_four_processes_survive_crashes(own_server: Server, own_dsn: str) -> None:
    crashes, next_crash = 0, 10
    with Load(own_dsn, scale(40, 1000)) as load:
        for acknowledged in load:
            if acknowledged >= next_crash:
                own_server.crash()
                own_server.start()
                crashes += 1
                next_crash = acknowledged + scale(15, 80)

    print(f"{load.acknowledged} turns, {crashes} crashes, {load.retries} retries")
    assert crashes >= 2
    assert load.retries >= crashes
    with psycopg.connect(own_dsn, autocommit=True) as look, PostgresSessionRepository(own_dsn) as repository:
        for session_id in load.sessions:
            assert stored(look, session_id) == transcript(load.turns_each)
            build(repository, session_id)("and now?")
            assert stored(look, session_id) == [*transcript(load.turns_each), "user: and now?", "assistant: ok"]


def test_turn_that_was_under_way_waits_and_goes_on(own_server: Server, own_dsn: str, retries: Retries) -> None:
    restart: list[Future[None]] = []

    class CrashingModel(ScriptedModel):
        async def stream(self, messages: Messages, *arguments: Any, **kwargs: Any) -> AsyncIterable[StreamEvent]:
            own_server.crash()
            restart.append(executor.submit(start_after_first_retry))
            async for event in super().stream(messages, *arguments, **kwargs):
                yield event

    def start_after_first_retry() -> None:
        wait_until(retries)
        own_server.start()

    with PostgresSessionRepository(own_dsn) as repository, ThreadPoolExecutor() as executor:
        agent = build(repository, model=CrashingModel([["answer"]]))
        agent("ask")
        restart[0].result()

        with psycopg.connect(own_dsn) as look:
            assert stored(look, "s") == ["user: ask", "assistant: answer"]
        assert dump(build(repository)) == dump(agent)
    assert {retry.operation for retry in retries()} == {"storing message 1 of agent 'default' in session 's'"}
