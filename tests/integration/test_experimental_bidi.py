"""Bidirectional agents by the module in which they were before strands-agents 1.57, then with events of their own."""

import asyncio
from typing import Any

import pytest
from strands.types.content import Message

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository

agents = pytest.importorskip("strands.experimental.bidi.agent.agent", reason="strands-agents has them elsewhere now")


class SilentModel(agents.BidiModel):  # type: ignore[misc,name-defined,unused-ignore]
    config: dict[str, Any] = {"model_id": "silent"}  # noqa: RUF012

    def get_config(self) -> Any:
        return self.config

    def update_config(self, **config: Any) -> None: ...

    async def start(self, *arguments: Any, **kwargs: Any) -> None: ...

    async def stop(self) -> None: ...

    async def send(self, content: Any) -> None: ...

    async def receive(self) -> Any:
        await asyncio.Event().wait()
        yield


def build(repository: PostgresSessionRepository) -> Any:
    manager = PostgresSessionManager("s", repository)
    return agents.BidiAgent(model=SilentModel(), session_manager=manager, agent_id="voice")


def test_messages_and_state_are_stored_and_restored(repository: PostgresSessionRepository) -> None:
    messages: list[Message] = [
        {"role": "user", "content": [{"text": "hi"}]},
        {"role": "assistant", "content": [{"text": "Hello"}]},
    ]

    async def talk(agent: Any) -> None:
        await agent.start()
        await agent._append_messages(*messages)
        agent.state.set("mood", "good")
        await agent.stop()

    agent = build(repository)
    asyncio.run(talk(agent))
    restored = build(repository)

    assert restored.messages == agent.messages
    assert len(restored.messages) == 2
    assert restored.state.get() == {"mood": "good"}
    asyncio.run(talk(restored))
    assert len(repository.list_messages("s", "voice")) == 4
