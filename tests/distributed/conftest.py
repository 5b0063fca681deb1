"""Tests on a Citus cluster, which are skipped without one, and which of its nodes carry out what a repository does."""

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from strands_psycopg import PostgresSessionRepository

_NODE = re.compile(r"on server \S*@(\S+) connectionId")


@pytest.fixture(autouse=True)
def _cluster(distributed_dsn: str | None) -> None:
    if distributed_dsn is None:
        pytest.skip("needs --dsn, an empty database of a Citus cluster")


@pytest.fixture
def nodes() -> list[str]:
    """The node of each command that the coordinator has sent for ``logging_repository``; none if it was itself."""
    return []


@pytest.fixture
def logging_repository(dsn: str, nodes: list[str]) -> Iterator[PostgresSessionRepository]:
    """A repository with one connection."""

    def configure(connection: psycopg.Connection[Any]) -> None:
        connection.add_notice_handler(lambda notice: nodes.extend(_NODE.findall(notice.message_detail or "")))

    options = make_conninfo(dsn, options="-c citus.log_remote_commands=on -c client_min_messages=notice")
    with PostgresSessionRepository(options, min_size=1, max_size=1, configure=configure) as repository:
        yield repository
