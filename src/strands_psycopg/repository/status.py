"""The status of a database for its operator: server, version of the tables, their sizes."""

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import Database
from strands_psycopg.errors import SchemaError
from strands_psycopg.migrator import Migrator

# Counting the rows of a table of this size takes well under a second; for larger ones the server's estimate is used.
_MAX_COUNTED_BYTES = 64 * 2**20

_SERVER = """
    SELECT pg_catalog.current_setting('server_version'), pg_catalog.current_database(), current_user,
        (SELECT pg_catalog.sum(numbackends) FROM pg_catalog.pg_stat_database)::integer,
        pg_catalog.current_setting('max_connections')::integer,
        pg_catalog.to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL
"""

# The planner's estimate: the rows per page at the last ANALYZE, times the current number of pages.
_SIZE = """
    SELECT pg_catalog.pg_total_relation_size(c.oid),
        CASE WHEN pg_catalog.pg_relation_size(c.oid) > %(counted)s
            AND c.reltuples::float8 > 0::float8 AND c.relpages > 0
        THEN pg_catalog.round(
            c.reltuples::float8 / c.relpages::float8
            * (pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint)::float8
        )::bigint
        END
    FROM pg_catalog.pg_class AS c WHERE c.oid = pg_catalog.to_regclass(%(table)s)::oid
"""

# The same for a table that is distributed by Citus; the estimate is that of the last ANALYZE.
_SIZE_OF_SHARDS = """
    SELECT t.size, CASE WHEN t.size > %(counted)s THEN (
        SELECT NULLIF(pg_catalog.sum(s.result::float8), 0::float8)::bigint FROM pg_catalog.run_command_on_shards(
            t.shards, 'SELECT greatest(reltuples, 0) FROM pg_catalog.pg_class WHERE oid = ''%%s''::pg_catalog.regclass'
        ) AS s
        WHERE s.success
    ) END
    FROM (
        SELECT p.logicalrelid AS shards, pg_catalog.citus_total_relation_size(p.logicalrelid) AS size
        FROM pg_catalog.pg_dist_partition AS p WHERE p.logicalrelid::oid = pg_catalog.to_regclass(%(table)s)::oid
    ) AS t
"""

_COUNT = {
    "sessions": "SELECT pg_catalog.count(*) FROM {sessions}",
    "agents": "SELECT pg_catalog.count(*) FROM {agents}",
    "messages": "SELECT pg_catalog.count(*) FROM {messages}",
    "message_variants": "SELECT pg_catalog.count(*) FROM {message_variants}",
    "checkpoints": "SELECT pg_catalog.count(*) FROM {checkpoints}",
    "multi_agents": "SELECT pg_catalog.count(*) FROM {multi_agents}",
    "leases": "SELECT pg_catalog.count(*) FROM {leases}",
    "storage": "SELECT pg_catalog.count(*) FROM {storage}",
    "chunks": "SELECT pg_catalog.count(*) FROM {chunks}",
    "session_storage": "SELECT pg_catalog.count(*) FROM {session_storage}",
    "session_chunks": "SELECT pg_catalog.count(*) FROM {session_chunks}",
    "memories": "SELECT pg_catalog.count(*) FROM {memories}",
    "memory_vectors": "SELECT pg_catalog.count(*) FROM {memory_vectors}",
}

# Only there if a memory store has asked for it.
_OPTIONAL = {"memory_vectors"}


@dataclass(frozen=True)
class TableStatus:
    """The size of a table.

    Attributes:
        name: Its name with the prefix, without the schema.
        rows: The number of rows.
        exact: Whether the rows were counted; for a large table their number is estimated.
        bytes: The size on disk, including indexes and TOAST.
    """

    name: str
    rows: int
    exact: bool
    bytes: int


@dataclass(frozen=True)
class PoolStatus:
    """The usage of a connection pool.

    Attributes:
        min_size: The minimum number of connections.
        max_size: The maximum number of connections.
        size: The current number of connections, including the one that read the status.
        available: The number of idle connections.
        waiting: The number of callers that wait for a connection.
    """

    min_size: int
    max_size: int
    size: int
    available: int
    waiting: int


@dataclass(frozen=True)
class Status:
    """The status of a database and its tables.

    Attributes:
        server_version: The server's version.
        host: The host of the connection: a name, an address or the directory of a socket.
        port: The port of the connection.
        database: The name of the database.
        user: The role of the connection.
        connections: The number of connections to the server, to all of its databases.
        max_connections: The server's ``max_connections``.
        pool: The connection pool of this process.
        schema: The schema of the tables.
        table_prefix: The prefix of their names.
        schema_version: The newest migration of the database; 0 if it has none.
        latest_version: The newest migration of this package, which is that of up-to-date tables.
        pending: The names of the migrations that the database lacks, in order.
        problem: Why this package cannot use the tables, if migrating would not help; otherwise None.
        tables: The tables that exist.
        missing: The names of the tables that do not exist.
    """

    server_version: str
    host: str
    port: int
    database: str
    user: str
    connections: int
    max_connections: int
    pool: PoolStatus
    schema: str
    table_prefix: str
    schema_version: int
    latest_version: int
    pending: list[str]
    problem: str | None
    tables: list[TableStatus]
    missing: list[str]

    @property
    def ready(self) -> bool:
        """Whether sessions can be stored: no migration is pending, no table missing."""
        return not self.pending and not self.problem and not self.missing


def read_status(database: Database) -> Status:
    """Read the status of a database; needs no privilege but SELECT."""
    migrator = Migrator(database)
    pending: list[str] = []
    problem = None
    try:
        pending = [migration.name for migration in migrator.pending()]
    except SchemaError as error:
        problem = str(error)
    schema_version = migrator.version()
    names = {table: database.table_prefix + table for table in _COUNT}
    counts = {table: database.statement(count) for table, count in _COUNT.items()}

    def read(cursor: Cursor[TupleRow]) -> Status:
        cursor.execute(_SERVER)
        server_version, name, user, connections, max_connections, has_citus = cursor.fetchall()[0]
        tables = []
        for table, count in counts.items():
            full_name = f"{database.schema}.{names[table]}"
            parameters = {"table": full_name, "counted": _MAX_COUNTED_BYTES}
            sizes = cursor.execute(_SIZE_OF_SHARDS, parameters).fetchall() if has_citus else []
            for size, estimate in sizes or cursor.execute(_SIZE, parameters).fetchall():
                rows = estimate if estimate is not None else cursor.execute(count).fetchall()[0][0]
                tables.append(TableStatus(names[table], rows, estimate is None, size))
        existing = {table.name for table in tables}
        return Status(
            server_version=server_version,
            host=cursor.connection.info.host,
            port=cursor.connection.info.port,
            database=name,
            user=user,
            connections=connections,
            max_connections=max_connections,
            pool=_pool(database.pool_stats()),
            schema=database.schema,
            table_prefix=database.table_prefix,
            schema_version=schema_version,
            latest_version=migrator.latest,
            pending=pending,
            problem=problem,
            tables=tables,
            missing=[each for table, each in names.items() if each not in existing and table not in _OPTIONAL],
        )

    return database.transact("reading the status", read)


def _pool(stats: Mapping[str, int]) -> PoolStatus:
    # ConnectionPool.get_stats() may leave out counts that are 0.
    names = ("pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting")
    return PoolStatus(*(stats.get(name, 0) for name in names))
