"""The table of vectors: whether the database has it, and how statements refer to pgvector's types and operators."""

from typing import NamedTuple

from psycopg import sql
from typing_extensions import LiteralString

from strands_psycopg.database import Database
from strands_psycopg.errors import SchemaError

# In statements, ``public.`` stands for the schema of the extension, and ``public.halfvec`` for the type of the column:
# before pgvector 0.7, it is ``vector``.
_EXTENSION_SCHEMA = b"public."
_COLUMN_TYPE = b"public.halfvec"

_LOOK_UP = """
    SELECT n.nspname, t.typname, e.extversion, a.atttypmod
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS s ON s.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'embedding'
    JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    JOIN pg_catalog.pg_extension AS e ON e.extname = 'vector'
    JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
    WHERE s.nspname = %(schema)s AND c.relname = %(table)s
"""

# In the transaction that has stored the memory. Both casts are explicit, since Citus calls the function of an implicit
# one with too few arguments.
ADD_VECTOR = """
    INSERT INTO {memory_vectors} (owner, store, memory_id, embedding)
    VALUES (%(owner)s, %(store)s, %(memory_id)s, %(embedding)s::public.vector::public.halfvec)
    ON CONFLICT (owner, store, memory_id) DO NOTHING
"""


class Vectors(NamedTuple):
    """The table of vectors of a database.

    Attributes:
        extension_schema: The schema of pgvector.
        column_type: The type of the column: ``halfvec`` or ``vector``.
        scans_iteratively: Whether an index scan goes on until enough rows pass the filter, as since pgvector 0.8.
        dimensions: The number of dimensions of the vectors.
    """

    extension_schema: str
    column_type: str
    scans_iteratively: bool
    dimensions: int


def compose(database: Database, vectors: Vectors | None, template: LiteralString) -> bytes:
    """Compose a statement; if it needs vectors, ``public.`` and ``public.halfvec`` in it stand for what is there."""
    statement = database.statement(template)
    if vectors is None:
        return statement
    name = sql.Identifier(vectors.extension_schema).as_bytes(None).replace(b"%", b"%%")
    statement = statement.replace(_COLUMN_TYPE, _EXTENSION_SCHEMA + vectors.column_type.encode())
    return statement.replace(_EXTENSION_SCHEMA, name + b".")


def find_vectors(database: Database) -> Vectors | None:
    """Return what a database has for vectors; None if it has no table of them."""
    names = {"schema": database.schema, "table": f"{database.table_prefix}memory_vectors"}
    rows = database.fetch("looking for the table of vectors", database.statement(_LOOK_UP), names).rows
    if not rows:
        return None
    [(schema, column_type, version, dimensions)] = rows
    return Vectors(schema, column_type, tuple(map(int, version.split(".")[:2])) >= (0, 8), dimensions)


def check_vectors(vectors: Vectors | None, dimensions: int) -> Vectors:
    """Return what a database has for vectors if it can store those of a store.

    Raises:
        SchemaError: It has none, or their number of dimensions is another.
    """
    if vectors is None:
        raise SchemaError(
            f"vectors of {dimensions} dimensions need the extension 'vector' (pgvector) and a table of their own; call "
            "ensure_schema() of the memory store, with a role that may run CREATE EXTENSION unless the extension exists"
        )
    if vectors.dimensions != dimensions:
        raise SchemaError(
            f"the vectors of this database have {vectors.dimensions} dimensions, not {dimensions}; use an embed of "
            "that many dimensions, or another table_prefix="
        )
    return vectors
