"""The memory stores of a database, whoever owns what is in them."""

from dataclasses import dataclass

from strands_psycopg.database import Database, iso_time

# Aggregated by owner first, since the table may be distributed by the owner.
_LIST = """
    SELECT m.store, pg_catalog.count(*) FILTER (WHERE m.owner <> ''), pg_catalog.sum(m.memories)::bigint,
        pg_catalog.sum(m.bytes)::bigint,
        {updated_at}
    FROM (
        SELECT owner, store, pg_catalog.count(*) AS memories,
            pg_catalog.sum(pg_catalog.octet_length(content)) AS bytes, pg_catalog.max(updated_at) AS updated_at
        FROM {memories} WHERE %(owner)s::text IS NULL OR owner = %(owner)s::text GROUP BY owner, store
    ) AS m
    GROUP BY m.store ORDER BY m.store
""".replace("{updated_at}", iso_time("pg_catalog.max(m.updated_at)"))


@dataclass(frozen=True)
class StoreSummary:
    """A memory store in a list.

    Attributes:
        name: Its name.
        owners: How many owners have memories in it; those of nobody in particular do not count as one.
        memories: How many memories it has.
        bytes: The size of their texts.
        updated_at: When a text was last added or edited, in UTC as ISO 8601.
    """

    name: str
    owners: int
    memories: int
    bytes: int
    updated_at: str


def list_stores(database: Database, owner: str | None = None) -> list[StoreSummary]:
    """Return the memory stores that are not empty, sorted by name.

    Args:
        database: Where the tables are.
        owner: Only this owner's memories; the empty string for those of nobody in particular.

    Raises:
        StrandsPsycopgError: As ``Database.fetch``.
    """
    statement = database.statement(_LIST)
    rows = database.fetch("listing memory stores", statement, {"owner": owner}, prepare=False).rows
    return [StoreSummary(*row) for row in rows]
