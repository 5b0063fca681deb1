"""An agent behind HTTP, to copy: any of the processes serves any session, and one process many at a time.

    DATABASE_URL=postgresql://localhost/agents uvicorn web_worker:app --workers 2

``strands-psycopg migrate`` makes the tables once, at deploy: a worker that did it would not start while the database
is away. The session is in the path here; let the caller's login decide which ones it may name.

POST /sessions/ID/turns takes {"prompt": "..."} and streams server-sent events: ``text`` for each chunk of the answer,
then ``done`` when all of the turn is stored, or ``error``. What fails before the first chunk is an HTTP status; those
with Retry-After may be sent again. A client that was cut off asks GET /sessions/ID what is stored.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pkgutil import resolve_name
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from strands import Agent
from strands.types.exceptions import EventLoopException
from strands.types.session import encode_bytes_values

from strands_psycopg import (
    DatabaseUnavailableError,
    LeaseLostError,
    PostgresSessionManager,
    PostgresSessionRepository,
    SessionBusyError,
    SessionConflictError,
    SessionNotFoundError,
)
from strands_psycopg.lease import Lease

logger = logging.getLogger(__name__)

WAIT = float(os.environ.get("LEASE_WAIT", "10"))  # seconds for which a request waits for the turn before it
TTL = float(os.environ.get("LEASE_TTL", "30"))  # seconds after which the sessions of a killed worker are free
TIMEOUT = float(os.environ.get("DATABASE_TIMEOUT", "10"))  # seconds for which a database that is away is waited for

# Nothing connects here, so this module may be imported before a fork: each process opens a pool of its own.
repository = PostgresSessionRepository(os.environ["DATABASE_URL"], max_size=10, retry_timeout=TIMEOUT)
new_model = resolve_name(os.environ.get("MODEL", "strands.models:BedrockModel"))
turns: set["asyncio.Task[None]"] = set()


def build(session_id: str) -> Agent:
    """Restore the session's agent, or begin the session; waits for the database."""
    manager = PostgresSessionManager(session_id, repository)
    return Agent(model=new_model(), session_manager=manager, callback_handler=None)


async def take_turn(lease: Lease, prompt: str, events: "asyncio.Queue[tuple[str, Any]]") -> None:
    """Take a turn to its end, whether or not its client is still there."""
    try:
        async with lease:
            agent = await asyncio.to_thread(build, lease.session_id)
            async for event in agent.stream_async(prompt):
                if "data" in event:
                    events.put_nowait(("text", event["data"]))
        events.put_nowait(("done", None))
    except Exception as error:
        events.put_nowait(("error", refusal(error)))


def refusal(error: Exception) -> HTTPException:
    """Return what a client is told."""
    again = {"Retry-After": "1"}
    # So Strands wraps what fails once the model has answered.
    match error.__cause__ if isinstance(error, EventLoopException) else error:
        case SessionBusyError():
            return HTTPException(409, "another turn of this session is being taken", again)
        case SessionConflictError() | LeaseLostError():
            return HTTPException(409, "another turn of this session came between", again)
        case DatabaseUnavailableError():
            return HTTPException(503, "the database is away", again)
        case SessionNotFoundError():
            return HTTPException(404, "there is no such session")
    logger.error("the turn failed", exc_info=error)
    return HTTPException(500, "the turn failed")


async def post_turn(request: Request) -> Response:
    """Take a turn and stream the answer."""
    try:
        prompt = str((await request.json())["prompt"])
        lease = repository.lease(request.path_params["session_id"], wait=WAIT, ttl=TTL)
    except (ValueError, LookupError, TypeError) as error:
        raise HTTPException(400, 'give {"prompt": "..."} and a session id of 1 to 255 characters') from error
    events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    # A task of its own: a client that leaves does not leave half a turn behind.
    turn = asyncio.create_task(take_turn(lease, prompt, events))
    turns.add(turn)
    turn.add_done_callback(turns.discard)
    first = await events.get()
    if first[0] == "error":
        raise first[1]
    return StreamingResponse(server_sent(first, events), media_type="text/event-stream")


async def server_sent(event: tuple[str, Any], events: "asyncio.Queue[tuple[str, Any]]") -> AsyncIterator[str]:
    """Return this event and those after it as server-sent events."""
    while True:
        name, data = event
        if isinstance(data, HTTPException):
            data = {"status": data.status_code, "detail": data.detail}
        yield f"event: {name}\ndata: {json.dumps(data)}\n\n"
        if name != "text":
            return
        event = await events.get()


async def get_session(request: Request) -> Response:
    """Return the messages that are stored."""
    try:
        messages = await asyncio.to_thread(repository.list_messages, request.path_params["session_id"], "default")
    except Exception as error:
        raise refusal(error) from error
    documents = json.dumps([encode_bytes_values(each.to_message()) for each in messages])
    return Response(documents, media_type="application/json")


async def get_health(request: Request) -> Response:
    """Return whether this worker reaches its tables, with one look at an index."""
    try:
        await asyncio.wait_for(asyncio.to_thread(repository.read_session, "health"), 5)
    except Exception as error:
        raise HTTPException(503, "the database is away, or its tables are missing") from error
    return JSONResponse({"turns": len(turns)})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Wait until the turns of clients that have left end too, and close the pool; in this process, after its fork."""
    yield
    if turns:
        logger.warning("turns=<%d> | waiting for turns whose clients have left", len(turns))
        await asyncio.wait(turns, timeout=20)
    await asyncio.to_thread(repository.close)


routes = [
    Route("/sessions/{session_id}/turns", post_turn, methods=["POST"]),
    Route("/sessions/{session_id}", get_session),
    Route("/health", get_health),
]
app = Starlette(routes=routes, lifespan=lifespan)
