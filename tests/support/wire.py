"""What goes over a connection, as libpq's own trace shows."""

import re
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import Trace

Connection = psycopg.Connection[Any]


class Exchange(NamedTuple):
    """What went over a connection.

    Attributes:
        sent: The texts of the statements, where the driver sent them; it does not for a prepared one.
        completed: How many statements the server has completed.
        states: The state in which the server waited after each round trip: "I" is idle, so all that was done is
            committed; "T" is inside a transaction.
    """

    sent: list[str]
    completed: int
    states: list[str]

    @property
    def changes(self) -> list[list[str]]:
        """What each statement writes, such as "INSERT messages"; that the session is active left out."""
        changes = (
            re.findall(r'(INSERT|UPDATE|DELETE)(?: INTO| FROM)? "public"."strands_(\w+)"', text) for text in self.sent
        )
        return [[" ".join(change) for change in each if change != ("UPDATE", "sessions")] for each in changes]


ONE = (1, ["I"])  # statement completed, and one round trip, at whose end it was committed


class Wire:
    """The only connection of a pool."""

    def __init__(self) -> None:
        self._connections: list[Connection] = []

    def configure(self, connection: Connection) -> None:
        """Take the connection; for the pool to call."""
        self._connections.append(connection)

    def during(self, call: Callable[[], object]) -> Exchange:
        """Return what goes over the connection during a call."""
        (connection,) = self._connections
        with tempfile.TemporaryFile() as file:
            connection.pgconn.trace(file.fileno())
            connection.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
            try:
                call()
            finally:
                connection.pgconn.untrace()
            file.seek(0)
            trace = file.read().decode()
        messages = re.findall(r"^([BF])\t\d+\t(\w+)\t ?(.*?)\n(?=[BF]\t\d|\Z)", trace, re.MULTILINE | re.DOTALL)
        return Exchange(
            [content for side, kind, content in messages if side == "F" and kind in ("Parse", "Query")],
            sum(kind == "CommandComplete" for side, kind, _ in messages if side == "B"),
            [content for side, kind, content in messages if side == "B" and kind == "ReadyForQuery"],
        )
