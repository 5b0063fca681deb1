"""An agent behind HTTP, to copy: any of the processes serves any session, and one process many at a time.

    DATABASE_URL=postgresql://localhost/agents uvicorn web_worker:app --workers 2

``strands-psycopg migrate`` creates the tables once, at deploy: a worker that did it would not start while the database
is away. The path names the session, percent-encoded, and the login names its owner: replace ``get_owner`` by what your
login does. Sessions of other owners do not exist for a client.

POST /sessions/ID/turns takes {"prompt": "..."}, and the id of an agent as "agent" if there are several. It streams
server-sent events: ``text`` for each chunk of the answer, and at last ``done`` when all of the turn is stored, or
``error``. A stream that ends with neither was cut off. What fails before the first chunk is an HTTP status; those with
Retry-After may be sent again. A client that was cut off asks GET /sessions/ID what is stored, of another agent than
"default" with ?agent=ID.
"""

import asyncio
import json
import logging
import os
import re
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
from strands.types.session import SessionMessage, encode_bytes_values

from strands_psycopg import (
    DatabaseUnavailableError,
    LeaseLostError,
    PostgresSessionManager,
    PostgresSessionRepository,
    SessionBusyError,
    SessionConflictError,
    SessionNotFoundError,
    SessionOwnerError,
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


def get_owner(request: Request) -> str:
    """Return who has logged in: here, what the proxy in front of this worker has checked and passes on."""
    owner = request.headers.get("X-Forwarded-User")
    if not owner:
        raise HTTPException(401, "log in first")
    return owner


def build(session_id: str, agent_id: str = "default", owner: str | None = None) -> Agent:
    """Restore the session's agent, or begin the session; waits for the database."""
    manager = PostgresSessionManager(session_id, repository, owner=owner)
    return Agent(model=new_model(), agent_id=agent_id, session_manager=manager, callback_handler=None)


async def take_turn(
    lease: Lease, agent_id: str, owner: str, prompt: str, events: "asyncio.Queue[tuple[str, Any]]"
) -> None:
    """Take a turn to its end, whether or not its client is still there."""
    try:
        async with lease:
            agent = await asyncio.to_thread(build, lease.session_id, agent_id, owner)
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
        case SessionNotFoundError() | SessionOwnerError():
            return HTTPException(404, "there is no such session")
    logger.error("the turn failed", exc_info=error)
    return HTTPException(500, "the turn failed")


def check_agent_id(agent_id: object) -> str:
    """Return the id if an agent can have it."""
    if not isinstance(agent_id, str) or not re.fullmatch(r"[\w.-]{1,255}", agent_id):
        raise HTTPException(400, "an agent's id must be 1 to 255 letters, digits, dots, hyphens and underscores")
    return agent_id


async def post_turn(request: Request) -> Response:
    """Take a turn and stream the answer."""
    owner = get_owner(request)
    match await read_json(request):
        case {"prompt": str(prompt), **options} if prompt.strip():
            agent_id = check_agent_id(options.get("agent", "default"))
        case _:
            raise HTTPException(400, 'the body must be {"prompt": "..."}, with some text')
    try:
        lease = repository.lease(request.path_params["session_id"], wait=WAIT, ttl=TTL, owner=owner)
    except ValueError as error:  # an id that cannot be stored
        raise HTTPException(400, str(error)) from error
    events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    # A task of its own: a client that leaves does not leave half a turn behind.
    turn = asyncio.create_task(take_turn(lease, agent_id, owner, prompt, events))
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


async def read_json(request: Request) -> Any:
    """Return the body."""
    try:
        return await request.json()
    except ValueError as error:
        raise HTTPException(400, "the body must be JSON") from error


async def get_session(request: Request) -> Response:
    """Return the messages that are stored."""
    owner, session_id = get_owner(request), request.path_params["session_id"]
    agent_id = check_agent_id(request.query_params.get("agent", "default"))
    try:
        messages = await asyncio.to_thread(read_messages, session_id, agent_id, owner)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    except Exception as error:
        raise refusal(error) from error
    documents = json.dumps([encode_bytes_values(each.to_message()) for each in messages])
    return Response(documents, media_type="application/json")


def read_messages(session_id: str, agent_id: str, owner: str) -> list[SessionMessage]:
    """Return the messages of an agent of the owner's session; waits for the database."""
    repository.read_session(session_id, owner=owner)
    return repository.list_messages(session_id, agent_id)


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
    # As paths, since an id may contain a slash.
    Route("/sessions/{session_id:path}/turns", post_turn, methods=["POST"]),
    Route("/sessions/{session_id:path}", get_session),
    Route("/health", get_health),
]
app = Starlette(routes=routes, lifespan=lifespan)
