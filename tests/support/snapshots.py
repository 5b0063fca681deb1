"""Snapshots of a conversation as it grows, and plain rows to compare with, by the server's own counters."""

import json
import random
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]


def snapshot(messages: list[dict[str, Any]]) -> bytes:
    """Build one as ``SnapshotSessionManager`` does: what changes each time stands before and after the messages."""
    data = {"messages": messages, "state": {"turn": len(messages)}, "system_prompt": "Be brief."}
    head = {"scope": "agent", "schema_version": "1.0", "created_at": f"2026-01-01T00:00:00.{len(messages):06}Z"}
    return json.dumps({**head, "data": data, "app_data": {}}).encode()


def conversation(turns: int, *, last: int | None = None) -> list[bytes]:
    """Return the snapshots of a conversation of about a kilobyte each turn, of words of their own.

    Args:
        turns: Its turns.
        last: Return only this many snapshots, the last ones.
    """
    rng = random.Random(5)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    messages: list[dict[str, Any]] = []
    snapshots = []
    for turn in range(turns):
        for role, words in (("user", 30), ("assistant", 125)):
            messages.append({"role": role, "content": [{"text": " ".join(rng.choices(vocabulary, k=words))}]})
        if last is None or turn >= turns - last:
            snapshots.append(snapshot(messages))
    return snapshots


PLAIN = 'CREATE TABLE plain (key text COLLATE "C" PRIMARY KEY, data bytea NOT NULL, updated_at timestamptz NOT NULL)'
PUT = """
    INSERT INTO plain VALUES (%s, %s, now())
    ON CONFLICT (key) DO UPDATE SET data = EXCLUDED.data, updated_at = EXCLUDED.updated_at
"""


def size(connection: Connection, *tables: str) -> int:
    """Return how many bytes tables take on the disk, with their indexes."""
    total = "SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest(%s::text[]) AS name"
    return int(connection.execute(total, [list(tables)]).fetchall()[0][0])


def written(connection: Connection) -> int:
    """Return how many bytes of WAL the server has written."""
    return int(connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").fetchall()[0][0])
