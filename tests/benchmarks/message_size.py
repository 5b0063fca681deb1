"""What messages cost on the disk and in WAL, here and at the peers: bytes of each message, by table and index.

Each contender stores sessions of a hundred messages by turns of agents, in a database of its own. Run it with
``PYTHONPATH=tests python -m benchmarks.message_size --peer session_manager=PYTHON``; it starts a server of its own.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from benchmarks.processes import Process
from strands_psycopg.embedded import postgres

_PEERS = ("session_manager", "session_sql", "limit")

# A work of turns warms up with eight of them; each turn stores two messages.
_TURNS, _WARM_UP = 50, 8

_SIZES = """
    SELECT c.relname, c.relkind, pg_relation_size(c.oid) + CASE c.relkind
        WHEN 'r' THEN pg_relation_size(c.oid, 'fsm') + pg_relation_size(c.oid, 'vm')
            + coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0)
        ELSE 0 END AS size
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'public' AND c.relkind IN ('r', 'i')
    ORDER BY size DESC
"""

_WRITTEN = "SELECT wal_bytes::bigint, wal_fpi FROM pg_stat_wal"


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=f"one of {_PEERS}")
    parser.add_argument("--messages", type=int, default=100_000)
    arguments = parser.parse_args()
    pythons = {"ours": sys.executable, **dict(peer.split("=", 1) for peer in arguments.peer)}
    with postgres() as dsn, tempfile.TemporaryDirectory() as folder:
        _pause_checkpoints(dsn)
        for contender, python in pythons.items():
            _measure(contender, python, dsn, Path(folder), arguments.messages)


def _pause_checkpoints(dsn: str) -> None:
    """Have no checkpoint begin by the clock: after each, the pages that change are written to the WAL in full."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET checkpoint_timeout = '1d'")
        connection.execute("SELECT pg_reload_conf()")


def _measure(contender: str, python: str, dsn: str, folder: Path, messages: int) -> None:
    # What is written does not depend on who waits for the disk.
    options = "-c synchronous_commit=off"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{contender}"'.encode())
    own_dsn = make_conninfo(dsn, dbname=contender, options=options)
    with Process(python, contender, own_dsn, folder / contender) as process:
        process.do("turns", {"count": 1})
        before = _written(own_dsn)
        for _ in range(messages // (2 * _TURNS)):
            process.do("turns", {"count": _TURNS - _WARM_UP})
    wal, full_pages = (after - start for after, start in zip(_written(own_dsn), before, strict=True))
    with psycopg.connect(own_dsn, autocommit=True) as connection:
        connection.execute("VACUUM")
        relations: list[tuple[Any, ...]] = connection.execute(_SIZES).fetchall()
    total = sum(size for _, _, size in relations)
    print(f"{contender}: {total / messages:.0f} bytes on the disk and {wal / messages:.0f} of WAL for each message")
    print(f"  {full_pages:,} full pages in the WAL")
    for name, kind, size in relations:
        if size >= total / 100:
            print(f"  {size / messages:6.0f} {'table' if kind == 'r' else 'index'} {name}")
    sys.stdout.flush()


def _written(dsn: str) -> list[int]:
    # Only when a backend is idle for a while or ends are its counts told, so the position of the WAL is asked instead.
    with psycopg.connect(dsn, autocommit=True) as connection:
        position = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchall()
        return [position[0][0], connection.execute(_WRITTEN).fetchall()[0][1]]


if __name__ == "__main__":
    main()
