"""What a database holds, read from its catalogs."""

import re

import psycopg

from strands_psycopg.migrator import packaged_migrations

# Every table, without its prefix.
TABLES = sorted(
    ["migrations"]
    + [name for each in packaged_migrations() for name in re.findall(r"^CREATE TABLE strands_(\w+)", each.text, re.M)]
)

# Every view, without its prefix.
VIEWS = sorted(
    name for each in packaged_migrations() for name in re.findall(r"^CREATE VIEW strands_(\w+)", each.text, re.M)
)

_OBJECTS = """
    SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%(schema)s)
    UNION ALL SELECT conname FROM pg_constraint WHERE connamespace = to_regnamespace(%(schema)s)
    UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s)
    ORDER BY 1
"""

_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1"

_VIEWS = "SELECT viewname FROM pg_views WHERE schemaname = %s ORDER BY 1"

_READ_BY_VIEWS = """
    SELECT DISTINCT v.relname, t.relnamespace::regnamespace::text, t.relname
    FROM pg_rewrite AS r
    JOIN pg_class AS v ON v.oid = r.ev_class
    JOIN pg_depend AS d ON d.objid = r.oid AND d.classid = 'pg_rewrite'::regclass
        AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> v.oid
    JOIN pg_class AS t ON t.oid = d.refobjid
    WHERE v.relkind = 'v' AND v.relnamespace = to_regnamespace(%(schema)s)
    ORDER BY 1, 2, 3
"""

_LAYOUT = """
    SELECT attrelid::regclass::text, attnum::text, attname, format_type(atttypid, atttypmod),
           attnotnull::text || attcollation::regcollation::text
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = to_regnamespace(%(schema)s) AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT conrelid::regclass::text, '', conname, pg_get_constraintdef(oid), ''
    FROM pg_constraint WHERE connamespace = to_regnamespace(%(schema)s)
    UNION ALL
    SELECT tablename, '', indexname, indexdef, '' FROM pg_indexes WHERE schemaname = %(schema)s
    UNION ALL
    SELECT viewname, '', '', definition, coalesce(reloptions::text, '') || coalesce(obj_description(c.oid), '')
    FROM pg_views JOIN pg_class AS c ON c.relname = viewname AND c.relnamespace = to_regnamespace(schemaname)
    WHERE schemaname = %(schema)s
    ORDER BY 1, 2, 3, 4
"""


def objects(dsn: str, schema: str = "public") -> list[str]:
    """Return the names of all tables, indexes, constraints and functions of a schema."""
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute(_OBJECTS, {"schema": f'"{schema}"'})]


def tables(dsn: str, schema: str = "public") -> list[str]:
    """Return the names of all tables of a schema."""
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute(_TABLES, [schema])]


def views(dsn: str, schema: str = "public") -> list[str]:
    """Return the names of all views of a schema."""
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute(_VIEWS, [schema])]


def read_by_views(dsn: str, schema: str) -> list[tuple[str, str, str]]:
    """Return the tables and views that the views of a schema read: view, schema, name."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(_READ_BY_VIEWS, {"schema": f'"{schema}"'}).fetchall()


def layout(dsn: str) -> list[tuple[str, ...]]:
    """Return all columns, constraints, indexes and views of the schema ``public``, with their definitions."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(_LAYOUT, {"schema": "public"}).fetchall()
