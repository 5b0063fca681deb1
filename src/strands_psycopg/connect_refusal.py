"""Why a connection attempt failed: at each host, and with which SQLSTATE, which libpq does not return."""

import os
import re
import select
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

# A line of libpq's trace, whose fields are those of the message: severity, severity in English, SQLSTATE, text.
_ERROR_RESPONSE = re.compile(rb'\tErrorResponse\t S "[^"]*"(?: V "[^"]*")? C "([0-9A-Z]{5})"')

# In bytes; a connection attempt takes about one kilobyte.
_MAX_TRACE = 1_000_000

# The failures of psycopg's attempts, of which there is one for each address of each host.
_ATTEMPT = re.compile(r"^- (host: .*?, port: .*?), hostaddr: ", re.MULTILINE)


def failures_by_host(error: psycopg.Error) -> list[str]:
    """Return the text of a failed connection attempt for each host, with those of all its addresses."""
    _, *attempts = _ATTEMPT.split(str(error))
    failures: dict[str, str] = {}
    for host, failure in zip(attempts[::2], attempts[1::2], strict=True):
        failures[host] = failures.get(host, "") + failure
    return [*failures.values()] or [str(error)]


def read_sqlstate(dsn: str, settings: Mapping[str, Any], *, timeout: float) -> str | None:
    """Connect once more, and return the SQLSTATE with which the server refuses it.

    Args:
        dsn: A DSN.
        settings: Settings that override those of the DSN; those that libpq does not have are left out.
        timeout: After how many seconds to give up.

    Returns:
        The SQLSTATE. None if the server says nothing or accepts the connection; on systems other than Linux; and before
        libpq 18 if authentication fails, which its trace does not show.
    """
    if not hasattr(os, "memfd_create"):
        return None
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    given = {name: value for name, value in settings.items() if name in known}
    # In memory, since it has the password if the server asks for that in plain text.
    trace = os.memfd_create("trace")
    try:
        with suppress(psycopg.Error, OSError):
            _connect(pq.PGconn.connect_start(make_conninfo(dsn, **given).encode()), trace, time.monotonic() + timeout)
        found: list[bytes] = _ERROR_RESPONSE.findall(os.pread(trace, _MAX_TRACE, 0))
    finally:
        os.close(trace)
    return found[-1].decode() if found else None


def _connect(connection: pq.abc.PGconn, trace: int, deadline: float) -> None:
    """Connect until the server has accepted or refused it, or time is up; write what is sent and received."""
    connection.trace(trace)
    try:
        while (status := connection.connect_poll()) in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
            poll = select.poll()
            poll.register(connection.socket, select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT)
            if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                return
    finally:
        connection.untrace()
        connection.finish()
