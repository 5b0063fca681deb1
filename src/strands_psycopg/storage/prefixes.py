"""The storages of a database that belong to no session, whoever owns them."""

from dataclasses import dataclass

from strands_psycopg.database import Database, iso_time
from strands_psycopg.storage.value_reader import CURRENT

# Aggregated by scope first, since the table may be distributed by it. A scope with an owner begins with that and //.
_LIST = """
    SELECT v.prefix, pg_catalog.count(v.owner), pg_catalog.sum(v.number)::bigint, pg_catalog.sum(v.bytes)::bigint,
        {updated_at}
    FROM (
        SELECT CASE WHEN s.owner IS NULL THEN s.scope
                ELSE pg_catalog.substr(s.scope, pg_catalog.length(s.owner) + 3) END AS prefix,
            s.owner, pg_catalog.count(*) AS number, pg_catalog.sum(s.size) AS bytes,
            pg_catalog.max(s.updated_at) AS updated_at
        FROM {storage} AS s WHERE (%(owner)s::text IS NULL OR s.owner = %(owner)s::text) AND {current}
        GROUP BY s.scope, s.owner
    ) AS v
    GROUP BY v.prefix ORDER BY v.prefix
""".replace("{current}", CURRENT).replace("{updated_at}", iso_time("pg_catalog.max(v.updated_at)"))


@dataclass(frozen=True)
class StorageSummary:
    """The storages with one prefix in a list.

    Attributes:
        prefix: The prefix; empty if they have none.
        owners: How many owners have values in one.
        values: How many values they have that have not expired.
        bytes: The size of these values, as they are stored.
        updated_at: When one of them was last written, in UTC as ISO 8601.
    """

    prefix: str
    owners: int
    values: int
    bytes: int
    updated_at: str


def list_storages(database: Database, owner: str | None = None) -> list[StorageSummary]:
    """Return the storages that are not empty, sorted by prefix, without those of sessions.

    Args:
        database: Where the tables are.
        owner: Only this owner's.

    Raises:
        StrandsPsycopgError: As ``Database.fetch``.
    """
    statement = database.statement(_LIST)
    rows = database.fetch("listing storages", statement, {"owner": owner}, prepare=False).rows
    return [StorageSummary(*row) for row in rows]
