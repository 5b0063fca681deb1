"""Brings a database's tables to the version of this package, forward only."""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from psycopg import Cursor, sql
from psycopg.rows import TupleRow

from strands_psycopg.database import Database
from strands_psycopg.errors import SchemaError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

logger = logging.getLogger(__name__)

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_DEFAULT_PREFIX = re.compile(r"\bstrands_(?=\w)")
_COMMENT = re.compile(r"--[^\n]*")
# Up to a semicolon that is not quoted.
_STATEMENT = re.compile(r"(?:[^;']|'[^']*')+")

# Not to_regclass and its kin, which after the wait for a lock may answer as of before.
_FIND = """
SELECT count(*) > 0, coalesce(bool_or(relname = %(ledger)s), false), coalesce(bool_or(relname = %(sessions)s), false)
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

_READ_LEDGER = "SELECT version, name, checksum FROM {migrations} ORDER BY version"

_RECORD = "INSERT INTO {migrations} (version, name, checksum, applied_at) VALUES (%s, %s, %s, now())"


@dataclass(frozen=True)
class Migration:
    """One numbered SQL file.

    Attributes:
        version: Its number, from 1 up.
        name: The rest of the file name.
        text: The file's text, with default names.
    """

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hexadecimal; line ends do not count."""
        return hashlib.sha256("\n".join(self.text.splitlines()).encode()).hexdigest()

    def statements(self, table_prefix: str) -> list[str]:
        """Give the statements one by one, with ``strands_`` replaced by the prefix."""
        text = _DEFAULT_PREFIX.sub(table_prefix, _COMMENT.sub("", self.text))
        return [statement.strip() for statement in _STATEMENT.findall(text) if statement.strip()]


def packaged_migrations() -> list[Migration]:
    """Read the SQL files that came with this package, in order."""
    return read_migrations(resources.files("strands_psycopg") / "sql")


def read_migrations(folder: "Traversable") -> list[Migration]:
    """Read a folder of SQL files, in order.

    Raises:
        SchemaError: There is none, or a name is not ``NNNN_name.sql``, or a number is missing or given twice.
    """
    migrations = []
    for file in folder.iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise SchemaError(f"migration file {file.name!r} is not named NNNN_name.sql; rename or remove it")
        migrations.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    migrations.sort(key=lambda migration: migration.version)
    versions = [migration.version for migration in migrations]
    if not versions or versions != list(range(1, len(versions) + 1)):
        raise SchemaError(f"migration files must be numbered from 1 without a gap or twin, not {versions}")
    return migrations


class Migrator:
    """Compares a database with the packaged migrations and applies what is missing.

    Args:
        database: Where the tables are, or will be.
        migrations: Other files than the packaged ones.
    """

    def __init__(self, database: Database, migrations: Sequence[Migration] | None = None) -> None:
        self._database = database
        self._migrations = packaged_migrations() if migrations is None else list(migrations)
        self._schema = sql.Identifier(database.schema).as_string(None)
        self._ledger = database.statement("{migrations}").decode()
        self._sessions = database.statement("{sessions}").decode()
        self._create_ledger = database.statement(_CREATE_LEDGER)
        self._read_ledger = database.statement(_READ_LEDGER)
        self._record = database.statement(_RECORD)

    @property
    def latest(self) -> int:
        """The version that a database has after ``apply``."""
        return len(self._migrations)

    def version(self) -> int:
        """Give the version of the database's newest migration, whichever package applied it; 0 if there is none."""
        return self._database.transact("looking at the schema", self._version)

    def pending(self) -> list[Migration]:
        """Give the migrations that the database lacks; takes no lock and needs no right but SELECT.

        Raises:
            SchemaError: The database is newer than this package, was migrated with other files, or has tables of
                these names without a ledger.
        """
        return self._database.transact("looking at the schema", self._pending)

    def apply(self) -> list[Migration]:
        """Apply what is pending in one transaction, and give what was applied.

        Any number of processes may do this at once: the first applies, the others wait and find nothing pending.
        If nothing is pending, nothing is locked and no right to create is needed.

        Raises:
            SchemaError: As ``pending``; or the database's encoding is not UTF-8.
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
        """Give SQL that does what ``apply`` would, for an operator to run.

        Args:
            migrations: What is pending; on an empty database, which is the default, all.
        """
        migrations = self._migrations if migrations is None else migrations
        statements = self._preamble()
        if migrations and migrations[0].version == 1:
            if self._database.schema != "public":
                statements += [_lock(self._database.schema), f"CREATE SCHEMA IF NOT EXISTS {self._schema}"]
            statements.append(self._create_ledger.decode().strip())
        for migration in migrations:
            statements += migration.statements(self._database.table_prefix)
            values = f"{migration.version}, '{migration.name}', '{migration.checksum}', now()"
            statements.append(f"INSERT INTO {self._ledger} (version, name, checksum, applied_at) VALUES ({values})")
        return "BEGIN;\n\n" + ";\n\n".join(statements) + ";\n\nCOMMIT;\n"

    def _version(self, cursor: Cursor[TupleRow]) -> int:
        _, has_ledger, _ = self._find(cursor)
        return max((row[0] for row in cursor.execute(self._read_ledger).fetchall()), default=0) if has_ledger else 0

    def _pending(self, cursor: Cursor[TupleRow]) -> list[Migration]:
        _, has_ledger, has_tables = self._find(cursor)
        if has_ledger:
            cursor.execute(self._read_ledger)
            return self._compare(cursor.fetchall())
        if has_tables:
            raise SchemaError(
                f"{self._sessions} exists without {self._ledger}, the ledger of migrations: these tables are not "
                "this package's; choose another schema= or table_prefix="
            )
        return self._migrations

    def _find(self, cursor: Cursor[TupleRow]) -> TupleRow:
        prefix = self._database.table_prefix
        names = {"ledger": f"{prefix}migrations", "sessions": f"{prefix}sessions", "schema": self._database.schema}
        cursor.execute(_FIND, names)
        return cursor.fetchall()[0]

    def _compare(self, ledger: list[TupleRow]) -> list[Migration]:
        packaged = {migration.version: migration for migration in self._migrations}
        for version, name, checksum in ledger:
            migration = packaged.pop(version, None)
            if migration is None:
                raise SchemaError(
                    f"the database is at version {version} ({name}), newer than this package, which knows up to "
                    f"{len(self._migrations)}; upgrade strands-psycopg"
                )
            if checksum != migration.checksum:
                raise SchemaError(
                    f"migration {version} ({name}) was applied from a file that differs from this package's; "
                    "install the release that the database was migrated with, or restore the file"
                )
        return list(packaged.values())

    def _apply(self, cursor: Cursor[TupleRow]) -> list[Migration]:
        for statement in self._preamble():
            cursor.execute(statement.encode())
        migrations = self._pending(cursor)
        if not migrations:
            return []
        cursor.execute("SELECT current_setting('server_encoding')")
        encoding = cursor.fetchall()[0][0]
        if encoding != "UTF8":
            raise SchemaError(f"the database's encoding is {encoding}, which cannot hold every text; create it as UTF8")
        # "IF NOT EXISTS" would need the right to create even where the schema exists.
        if not self._find(cursor)[0]:
            # Migrators of other prefixes may be creating it too, and do not wait for this one's lock.
            cursor.execute(_lock(self._database.schema).encode())
        has_schema, has_ledger, _ = self._find(cursor)
        if not has_schema:
            cursor.execute(f"CREATE SCHEMA {self._schema}".encode())
        if not has_ledger:
            cursor.execute(self._create_ledger)
        for migration in migrations:
            for statement in migration.statements(self._database.table_prefix):
                cursor.execute(statement.encode())
            cursor.execute(self._record, [migration.version, migration.name, migration.checksum])
        return migrations

    def _preamble(self) -> list[str]:
        return [
            # Others would read the ledger as it was before the lock was waited for.
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
            _lock(f"{self._database.schema}.{self._database.table_prefix}"),
            f"SET LOCAL search_path = {self._schema}",
        ]


def _lock(name: str) -> str:
    number = int.from_bytes(hashlib.sha256(f"strands-psycopg {name}".encode()).digest()[:8], "big", signed=True)
    return f"SELECT pg_advisory_xact_lock({number})"
