"""Tests on a Citus cluster, which are skipped without one, and which of its nodes carry out what a repository does."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository
from support.distribution import distribute_vectors
from support.memories import DIMENSIONS, embed_trigrams, has_pgvector

# The node of a table's shard with a value of its distribution column.
_NODE_OF = """
    SELECT p.nodename, p.nodeport FROM pg_dist_shard_placement AS p
    WHERE p.shardid = get_shard_id_for_distribution_column(%s::regclass, %s::text)
"""

_END_CONNECTIONS = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s"

Build: TypeAlias = Callable[..., PostgresMemoryStore]
Node: TypeAlias = tuple[str, int]

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


@pytest.fixture
def node_of(connection: psycopg.Connection[Any]) -> Callable[[str, str], Node]:
    """Returns host and port of the node that has a table's rows with a value of its distribution column."""

    def node_of(table: str, value: str) -> Node:
        [node] = connection.execute(_NODE_OF, [table, value]).fetchall()
        return node[0], node[1]

    return node_of


@pytest.fixture
def lost(dsn: str) -> Callable[[Node], AbstractContextManager[None]]:
    """Makes a node end all connections to the database, and refuse new ones within the block."""

    @contextmanager
    def lost(node: Node) -> Iterator[None]:
        with psycopg.connect(dsn) as connection:
            name = connection.info.dbname
        alter = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}").format
        other = make_conninfo(dsn, host=node[0], port=node[1], dbname="postgres")
        with psycopg.connect(other, autocommit=True) as connection:
            connection.execute(alter(sql.Identifier(name), sql.SQL("false")))
            try:
                connection.execute(_END_CONNECTIONS, [name])
                yield
            finally:
                connection.execute(alter(sql.Identifier(name), sql.SQL("true")))

    return lost


@pytest.fixture(params=["words", "vectors"])
def build(request: pytest.FixtureRequest, connection: psycopg.Connection[Any], dsn: str) -> Iterator[Build]:
    """Builds a store of an owner on a repository."""
    options: dict[str, Any] = {}
    if request.param == "vectors":
        if not has_pgvector(dsn):
            pytest.skip("the cluster does not have pgvector")
        options = {"embed": embed_trigrams, "dimensions": DIMENSIONS}
        with PostgresMemoryStore("notes", dsn, **options) as store:
            store.ensure_schema()
        distribute_vectors(dsn)

    def build(repository: PostgresSessionRepository, owner: str = "alice") -> PostgresMemoryStore:
        return PostgresMemoryStore("notes", repository, owner=owner, **options)

    yield build
    if request.param == "vectors":
        connection.execute("DROP TABLE strands_memory_vectors")
        connection.execute("DELETE FROM strands_migrations WHERE version > 1000")
