"""A function on AWS Lambda, to copy; or in whatever else freezes a process between two calls.

While the process stands still, its connections may die: the server restarts, an administrator ends them, a gateway on
the way forgets them. The next call finds out: what was closed is noticed before it is used, what is silent after
``response_timeout``, and the statement is repeated on a new connection, once in effect.

Set DATABASE_URL, and let ``strands-psycopg migrate`` make the tables at deploy. With more than some hundred processes
put a pooler in between (see connections.py).
"""

import os
from pkgutil import resolve_name
from typing import Any

from strands import Agent

from strands_psycopg import PostgresSessionManager, PostgresSessionRepository

# Once for each process, and not in the handler. Nothing connects before the first call.
repository = PostgresSessionRepository(
    os.environ["DATABASE_URL"],
    min_size=0,  # no connection is made that no call has asked for
    max_size=1,  # a process has one call at a time, and there may be a thousand processes
    response_timeout=5,  # seconds; a healthy server answers in milliseconds
    retry_timeout=15,  # seconds; well below the function's own timeout
)
new_model = resolve_name(os.environ.get("MODEL", "strands.models:BedrockModel"))


def handler(event: dict[str, str], context: object) -> dict[str, Any]:
    """Take a turn of the session."""
    # A call that runs into the function's timeout is killed: then its session is free after ttl.
    with repository.lease(event["session_id"], wait=10, ttl=20):
        manager = PostgresSessionManager(event["session_id"], repository)
        agent = Agent(model=new_model(), session_manager=manager, callback_handler=None)
        return {"answer": str(agent(event["prompt"]))}
