"""Upgrades of a database's tables to the version of this package; forward only.

The migration of vectors is optional: it is applied only if a memory store asks for it, since it needs an extension.
Optional migrations have versions from 1001 on, which do not count for the version of a database.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

from psycopg import Cursor, errors, sql
from psycopg.rows import TupleRow

from strands_psycopg.database import Database
from strands_psycopg.errors import SchemaError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

logger = logging.getLogger(__name__)

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_DEFAULT_PREFIX = re.compile(r"\bstrands_(?=\w)")
_COMMENT = re.compile(r"--[^\n]*")
# Up to a semicolon outside quotes.
_STATEMENT = re.compile(r"(?:[^;']|'[^']*')+")

# Not to_regclass or to_regnamespace, which after a wait for a lock may return what was true before it.
_INSPECT = """
SELECT pg_catalog.count(*) > 0, coalesce(pg_catalog.bool_or(relname = %(ledger)s), false),
    coalesce(pg_catalog.bool_or(relname = %(sessions)s), false)
FROM pg_catalog.pg_namespace AS n
LEFT JOIN pg_catalog.pg_class AS c ON relnamespace = n.oid AND relname IN (%(ledger)s, %(sessions)s)
WHERE nspname = %(schema)s
"""

_CREATE_LEDGER = """
CREATE TABLE {migrations} (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL
)
"""

# Two statements, since the table is Citus' own.
_HAS_CITUS = "SELECT pg_catalog.to_regclass('pg_catalog.pg_dist_local_group') IS NOT NULL"
_IS_WORKER = "SELECT groupid <> 0 FROM pg_catalog.pg_dist_local_group"

_READ_LEDGER = "SELECT version, name, checksum FROM {migrations} ORDER BY version"

_RECORD = "INSERT INTO {migrations} (version, name, checksum, applied_at) VALUES (%s, %s, %s, pg_catalog.now())"


# The versions of optional migrations. Those that this package does not know are ignored.
_OPTIONAL = range(1001, 2000)

_CREATE_EXTENSION = "CREATE EXTENSION"

# What the file of vectors says, and what takes its place.
_DEFAULT_DIMENSIONS = "halfvec(1536)"
_DEFAULT_EXTENSION_SCHEMA = "public.halfvec"

# For a pgvector without half precision. A vector of single precision may be longer than a page.
_SINGLE_PRECISION = {"halfvec": "vector", "STORAGE PLAIN": "STORAGE EXTERNAL"}

_EXTENSION = """
SELECT n.nspname, e.extversion
FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'vector'
"""

_AVAILABLE_EXTENSION = """
SELECT NULL, a.default_version FROM pg_catalog.pg_available_extensions AS a WHERE a.name = 'vector'
"""


@dataclass(frozen=True)
class Migration:
    """One numbered SQL file.

    Attributes:
        version: The file's number, from 1 up.
        name: The rest of the file's name; that of vectors is followed by their dimensions.
        text: The file's text, with the default names of the tables.
        replacements: What else of its statements is replaced, and by what.
    """

    version: int
    name: str
    text: str
    replacements: Mapping[str, str] = field(default_factory=dict)

    @property
    def checksum(self) -> str:
        """The SHA-256 of the text in hexadecimal, independent of its line ends."""
        return hashlib.sha256("\n".join(self.text.splitlines()).encode()).hexdigest()

    def statements(self, table_prefix: str) -> list[str]:
        """Return the file's statements, with ``strands_`` replaced by ``table_prefix``."""
        text = _DEFAULT_PREFIX.sub(table_prefix, _COMMENT.sub("", self.text))
        for default, replacement in self.replacements.items():
            text = text.replace(default, replacement)
        return [statement.strip() for statement in _STATEMENT.findall(text) if statement.strip()]


def packaged_migrations() -> list[Migration]:
    """Return the SQL files of this package, in order."""
    return read_migrations(resources.files("strands_psycopg") / "sql")


def optional_migrations() -> list[Migration]:
    """Return the SQL files of optional migrations, in order."""
    return _read_files(resources.files("strands_psycopg") / "sql" / "optional")


def read_migrations(folder: "Traversable") -> list[Migration]:
    """Return the SQL files of a folder, in order.

    Raises:
        SchemaError: There is none, or a file is not named ``NNNN_name.sql``, or a number is missing or used twice.
    """
    migrations = _read_files(folder)
    versions = [migration.version for migration in migrations]
    if not versions or versions != list(range(1, len(versions) + 1)):
        raise SchemaError(f"migration files must be numbered from 1 without gaps or duplicates, not {versions}")
    return migrations


def _read_files(folder: "Traversable") -> list[Migration]:
    migrations = []
    for file in folder.iterdir():
        if file.name == "optional":
            continue
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise SchemaError(f"migration file {file.name!r} is not named NNNN_name.sql; rename or remove it")
        migrations.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(migrations, key=lambda migration: migration.version)


class Migrator:
    """Compares a database with the packaged migrations and applies the pending ones.

    Args:
        database: The database that has, or will have, the tables.
        migrations: Migrations to use instead of the packaged ones.
        vector_dimensions: The number of dimensions of the vectors that the database must be able to store; None if it
            need not have any.
    """

    def __init__(
        self,
        database: Database,
        migrations: Sequence[Migration] | None = None,
        *,
        vector_dimensions: int | None = None,
    ) -> None:
        self._database = database
        self._vector_dimensions = vector_dimensions
        self._migrations = packaged_migrations() if migrations is None else list(migrations)
        self._schema = sql.Identifier(database.schema).as_string(None)
        self._ledger = database.statement("{migrations}").decode()
        self._sessions = database.statement("{sessions}").decode()
        self._create_ledger = database.statement(_CREATE_LEDGER)
        self._read_ledger = database.statement(_READ_LEDGER)
        self._record = database.statement(_RECORD)

    @property
    def latest(self) -> int:
        """The version of a database after ``apply``."""
        return len(self._migrations)

    def version(self) -> int:
        """Return the version of the newest migration applied, by any version of this package; 0 if there is none."""
        return self._database.transact("inspecting the schema", self._version)

    def pending(self) -> list[Migration]:
        """Return the migrations that the database lacks; takes no lock and needs no privilege but SELECT.

        Raises:
            SchemaError: The database is newer than this package, was migrated with other files, or has tables with
                these names but no ledger; or it has no vectors and cannot have any, or has vectors of other dimensions.
        """
        return self._database.transact("inspecting the schema", self._pending)

    def apply(self) -> list[Migration]:
        """Apply the pending migrations in one transaction, and return them.

        Any number of processes may call this at once: one applies the migrations, the others wait and then find none
        pending. If none is pending, no lock is taken and no CREATE privilege is needed.

        Raises:
            SchemaError: As for ``pending``; or the database's encoding is not UTF-8, or this is a worker of a Citus
                cluster, or its role may not create the extension that vectors need.
        """
        if not self.pending():
            return []
        applied = self._database.transact("migrating the schema", self._apply, response_timeout=float("inf"))
        for migration in applied:
            logger.info(
                "schema=<%s>, version=<%d>, name=<%s> | migrated",
                self._database.schema,
                migration.version,
                migration.name,
            )
        return applied

    def script(self, migrations: Sequence[Migration] | None = None) -> str:
        """Return SQL that does the same as ``apply``, for an operator to run.

        Args:
            migrations: The pending migrations; by default all, as for an empty database.
        """
        if migrations is None:
            migrations = [*self._migrations, *self._vectors()]
        statements = self._opening_statements()
        if migrations and migrations[0].version == 1:
            if self._database.schema != "public":
                statements += [_lock_statement(self._database.schema), f"CREATE SCHEMA IF NOT EXISTS {self._schema}"]
            statements.append(self._create_ledger.decode().strip())
        for migration in migrations:
            statements += migration.statements(self._database.table_prefix)
            values = f"{migration.version}, '{migration.name}', '{migration.checksum}', pg_catalog.now()"
            statements.append(f"INSERT INTO {self._ledger} (version, name, checksum, applied_at) VALUES ({values})")
        return "BEGIN;\n\n" + ";\n\n".join(statements) + ";\n\nCOMMIT;\n"

    def _version(self, cursor: Cursor[TupleRow]) -> int:
        _, has_ledger, _ = self._inspect(cursor)
        ledger = cursor.execute(self._read_ledger).fetchall() if has_ledger else []
        return max((version for version, *_ in ledger if version not in _OPTIONAL), default=0)

    def _pending(self, cursor: Cursor[TupleRow]) -> list[Migration]:
        _, has_ledger, has_tables = self._inspect(cursor)
        if has_ledger:
            ledger = cursor.execute(self._read_ledger).fetchall()
            pending = self._without_applied([row for row in ledger if row[0] not in _OPTIONAL])
            return pending + self._pending_vectors(cursor, [row for row in ledger if row[0] in _OPTIONAL])
        if has_tables:
            raise SchemaError(
                f"{self._sessions} exists without {self._ledger}, the ledger of migrations: these tables do not "
                "belong to this package; choose another schema= or table_prefix="
            )
        return [*self._migrations, *self._pending_vectors(cursor, [])]

    def _pending_vectors(self, cursor: Cursor[TupleRow], ledger: list[TupleRow]) -> list[Migration]:
        """Return the migration of vectors if they are asked for and not in the ledger of optional migrations."""
        if self._vector_dimensions is None:
            return []
        extension = cursor.execute(_EXTENSION).fetchone() or cursor.execute(_AVAILABLE_EXTENSION).fetchone()
        [migration] = self._vectors(*(extension or ()))
        for version, name, checksum in ledger:
            if version == migration.version:
                if name != migration.name:
                    raise SchemaError(
                        f"the vectors of this database have {name.rpartition('_')[2]} dimensions, not "
                        f"{self._vector_dimensions}; use an embed of that many dimensions, or another table_prefix="
                    )
                _check_checksum(migration, checksum)
                return []
        if extension is None:
            raise SchemaError(
                f"vectors of {self._vector_dimensions} dimensions need the extension 'vector' (pgvector), which the "
                "server does not have; install it there, or use a memory store without embed="
            )
        return [migration]

    def _vectors(self, schema: str | None = None, extension_version: str | None = None) -> list[Migration]:
        """Return the migration of vectors, if they are asked for.

        Args:
            schema: The schema of the extension; None if it is to be created.
            extension_version: The version of the extension; None if it is unknown, and taken for a new one.
        """
        if self._vector_dimensions is None:
            return []
        [file] = optional_migrations()
        replacements = {_DEFAULT_DIMENSIONS: f"halfvec({self._vector_dimensions})"}
        if schema is not None:
            replacements[_DEFAULT_EXTENSION_SCHEMA] = f"{sql.Identifier(schema).as_string(None)}.halfvec"
            replacements[f"{_CREATE_EXTENSION} IF NOT EXISTS vector WITH SCHEMA public;"] = ""
        if extension_version is not None and not _has_halfvec(extension_version):
            replacements |= _SINGLE_PRECISION
        return [Migration(file.version, f"{file.name}_{self._vector_dimensions}", file.text, replacements)]

    def _inspect(self, cursor: Cursor[TupleRow]) -> TupleRow:
        """Return whether the schema, the ledger and the table of sessions exist."""
        prefix = self._database.table_prefix
        names = {"ledger": f"{prefix}migrations", "sessions": f"{prefix}sessions", "schema": self._database.schema}
        cursor.execute(_INSPECT, names)
        return cursor.fetchall()[0]

    def _without_applied(self, ledger: list[TupleRow]) -> list[Migration]:
        pending = {migration.version: migration for migration in self._migrations}
        for version, name, checksum in ledger:
            migration = pending.pop(version, None)
            if migration is None:
                raise SchemaError(
                    f"the database is at version {version} ({name}), newer than this package, whose migrations go up "
                    f"to {len(self._migrations)}; upgrade strands-psycopg"
                )
            _check_checksum(migration, checksum)
        return list(pending.values())

    def _apply(self, cursor: Cursor[TupleRow]) -> list[Migration]:
        for statement in self._opening_statements():
            cursor.execute(statement.encode())
        migrations = self._pending(cursor)
        if not migrations:
            return []
        cursor.execute("SELECT pg_catalog.current_setting('server_encoding')")
        encoding = cursor.fetchall()[0][0]
        if encoding != "UTF8":
            raise SchemaError(
                f"the database's encoding is {encoding}, which cannot store all text; create the database with UTF8"
            )
        if cursor.execute(_HAS_CITUS).fetchall()[0][0] and cursor.execute(_IS_WORKER).fetchall()[0][0]:
            raise SchemaError(
                "this is a worker of a Citus cluster; call ensure_schema() or run 'strands-psycopg migrate' on the "
                "coordinator, and distribute the tables that it creates"
            )
        # "IF NOT EXISTS" would need the CREATE privilege even if the schema exists.
        if not self._inspect(cursor)[0]:
            # Migrators for other prefixes may create the schema at the same time, and do not wait for this one's lock.
            cursor.execute(_lock_statement(self._database.schema).encode())
        has_schema, has_ledger, _ = self._inspect(cursor)
        if not has_schema:
            cursor.execute(f"CREATE SCHEMA {self._schema}".encode())
        if not has_ledger:
            cursor.execute(self._create_ledger)
        for migration in migrations:
            for statement in migration.statements(self._database.table_prefix):
                if statement.startswith(_CREATE_EXTENSION):
                    self._create_extension(cursor, statement)
                else:
                    cursor.execute(statement.encode())
            cursor.execute(self._record, [migration.version, migration.name, migration.checksum])
        return migrations

    def _create_extension(self, cursor: Cursor[TupleRow], statement: str) -> None:
        # Migrators for other schemas and prefixes may create it at the same time.
        cursor.execute(_lock_statement("extension vector").encode())
        try:
            cursor.execute(statement.encode())
        except errors.InsufficientPrivilege:
            raise SchemaError(
                f"vectors of {self._vector_dimensions} dimensions need the extension 'vector' (pgvector), which this "
                "role may not create; have a superuser, or the administrator that your provider names, run 'CREATE "
                "EXTENSION vector' in this database once"
            ) from None

    def _opening_statements(self) -> list[str]:
        return [
            # Other isolation levels would show the ledger as it was before the wait for the lock.
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
            _lock_statement(f"{self._database.schema}.{self._database.table_prefix}"),
            f"SET LOCAL search_path = {self._schema}",
        ]


def _has_halfvec(extension_version: str) -> bool:
    """Return whether a version of pgvector has vectors of half precision."""
    major, minor, *_ = map(int, extension_version.split("."))
    return (major, minor) >= (0, 7)


def _check_checksum(migration: Migration, checksum: str) -> None:
    if checksum != migration.checksum:
        raise SchemaError(
            f"migration {migration.version} ({migration.name}) was applied from a file that differs from this "
            "package's; install the release that the database was migrated with, or restore the file"
        )


def _lock_statement(name: str) -> str:
    number = int.from_bytes(hashlib.sha256(f"strands-psycopg {name}".encode()).digest()[:8], "big", signed=True)
    return f"SELECT pg_catalog.pg_advisory_xact_lock({number})"
