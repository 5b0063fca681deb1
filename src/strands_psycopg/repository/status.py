"""What an operator asks first: which server, which version of the tables, how much is in them."""

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import Cursor
from psycopg.rows import TupleRow

from strands_psycopg.database import Database
from strands_psycopg.errors import SchemaError
from strands_psycopg.migrator import Migrator

# Reading this much takes well under a second; of what is larger, the server's own estimate is given.
_COUNTED_BYTES = 64 * 2**20

_SERVER = """
    SELECT current_setting('server_version'), current_database(), current_user,
        (SELECT sum(numbackends) FROM pg_stat_database)::integer, current_setting('max_connections')::integer
"""

# As the planner estimates: the rows per page at the last ANALYZE, times the pages of today.
_SIZE = """
    SELECT pg_total_relation_size(c.oid),
        CASE WHEN pg_relation_size(c.oid) > %(counted)s AND c.reltuples > 0 AND c.relpages > 0
        THEN round(c.reltuples * (pg_relation_size(c.oid) / current_setting('block_size')::bigint) / c.relpages)::bigint
        END
    FROM pg_class AS c WHERE c.oid = to_regclass(%(table)s)
"""

_COUNT = {
    "sessions": "SELECT count(*) FROM {sessions}",
    "agents": "SELECT count(*) FROM {agents}",
    "messages": "SELECT count(*) FROM {messages}",
    "multi_agents": "SELECT count(*) FROM {multi_agents}",
    "leases": "SELECT count(*) FROM {leases}",
    "storage": "SELECT count(*) FROM {storage}",
    "chunks": "SELECT count(*) FROM {chunks}",
}


@dataclass(frozen=True)
class TableStatus:
    """How much is in a table.

    Attributes:
        name: With the prefix, without the schema.
        rows: How many there are.
        exact: Whether they were counted; those of a large table are estimated.
        bytes: On disk, with indexes and what is stored out of line.
    """

    name: str
    rows: int
    exact: bool
    bytes: int


@dataclass(frozen=True)
class PoolStatus:
    """How busy a pool of connections is.

    Attributes:
        min_size: How many connections it keeps at least.
        max_size: How many it makes at most.
        size: How many it has, the one included that this was asked on.
        available: How many of them are idle.
        waiting: How many callers wait for one.
    """

    min_size: int
    max_size: int
    size: int
    available: int
    waiting: int


@dataclass(frozen=True)
class Status:
    """A database as this package sees it.

    Attributes:
        server_version: As the server states it.
        host: What the connection was made to: a name, an address or the folder of a socket.
        port: Its port.
        database: The database's name.
        user: The role that asked.
        connections: How many connections the server has, of all its databases.
        max_connections: How many it takes at most.
        pool: This process's own connections.
        schema: Where the tables are looked for.
        table_prefix: What their names begin with.
        schema_version: The database's newest migration; 0 if it has none.
        package_version: The newest migration that this package brings.
        pending: The names of those that the database lacks, in order.
        problem: Why this package cannot use the tables, if migrating would not help.
        tables: Those that exist.
        missing: The names of those that do not.
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
    package_version: int
    pending: list[str]
    problem: str | None
    tables: list[TableStatus]
    missing: list[str]

    @property
    def ready(self) -> bool:
        """Whether agents can work with the database."""
        return not self.pending and not self.problem and not self.missing


def read_status(database: Database) -> Status:
    """Look at a database; takes no lock and needs no right but SELECT."""
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

    def look(cursor: Cursor[TupleRow]) -> Status:
        cursor.execute(_SERVER)
        server_version, name, user, connections, max_connections = cursor.fetchall()[0]
        tables = []
        for table, count in counts.items():
            full_name = f"{database.schema}.{names[table]}"
            cursor.execute(_SIZE, {"table": full_name, "counted": _COUNTED_BYTES})
            for size, estimate in cursor.fetchall():
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
            package_version=migrator.latest,
            pending=pending,
            problem=problem,
            tables=tables,
            missing=[each for each in names.values() if each not in existing],
        )

    return database.transact("reading the status", look)


def _pool(stats: Mapping[str, int]) -> PoolStatus:
    # Counts that are 0 may be missing.
    names = ("pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting")
    return PoolStatus(*(stats.get(name, 0) for name in names))
