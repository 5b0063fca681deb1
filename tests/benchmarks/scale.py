"""How listing, showing, forking and purging do on a large database: ``python tests/benchmarks/scale.py [--dsn DSN]``.

It fills a fresh schema with sessions of a hundred messages each, on an embedded server unless a DSN is given, and drops
it at the end.
"""

import argparse
import resource
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import psycopg
from strands.types.session import SessionMessage

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.embedded import postgres

_SCHEMA = "scale"

_SESSIONS = """
    INSERT INTO scale.strands_sessions
    SELECT 'tenant-' || n %% 10 || '/' || lpad(n::text, 9, '0'), 'AGENT', gen_random_uuid(),
        now() - interval '90 days', now() - n * interval '1 day' / (%(sessions)s / 60.0)
    FROM generate_series(1, %(sessions)s) AS n
"""

_AGENTS = """
    INSERT INTO scale.strands_agents
    SELECT session_id, 'default', '{}', NULL, '{"__name__": "NullConversationManager", "removed_message_count": 0}',
        NULL, '{}', NULL, write_id, created_at, updated_at
    FROM scale.strands_sessions
"""

_MESSAGES = """
    INSERT INTO scale.strands_messages
    SELECT session_id, agent_id, n, jsonb_build_object('role', CASE WHEN n %% 2 = 0 THEN 'user' ELSE 'assistant' END,
            'content', jsonb_build_array(jsonb_build_object('text', repeat('All work and no play. ', 12)))),
        NULL, NULL, NULL, write_id, created_at, updated_at
    FROM scale.strands_agents, generate_series(0, %(messages)s - 1) AS n
"""


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=100, help="of each session")
    arguments = parser.parse_args()
    source = nullcontext(arguments.dsn) if arguments.dsn else postgres()
    with source as dsn, PostgresSessionRepository(dsn, schema=_SCHEMA) as repository:
        repository.ensure_schema()
        try:
            with _measured(f"filled with {arguments.sessions:,} sessions of {arguments.messages} messages"):
                _fill(dsn, vars(arguments))
            _list(repository)
            _fork(repository)
            _purge(repository, arguments.sessions)
        finally:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("DROP SCHEMA scale CASCADE")


def _fill(dsn: str, counts: dict[str, Any]) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in (_SESSIONS, _AGENTS, _MESSAGES):
            connection.execute(statement.encode(), counts)
        connection.execute("VACUUM ANALYZE")


def _list(repository: PostgresSessionRepository) -> None:
    # A connection is made before the first page.
    repository.read_session("none")
    for label, prefix in (("all", None), ("prefix of a tenth", "tenant-3/"), ("prefix of one", "tenant-3/000000003")):
        times = []
        sessions = 0
        before = None
        while True:
            started = time.perf_counter()
            page = repository.list_sessions(before=before, prefix=prefix)
            times.append(time.perf_counter() - started)
            sessions += len(page.sessions)
            before = page.next
            if before is None:
                break
        print(
            f"{label}: {len(times)} pages of up to 100, {sessions:,} sessions, "
            f"median {statistics.median(times) * 1000:.1f} ms, slowest {max(times) * 1000:.1f} ms"
        )


def _fork(repository: PostgresSessionRepository) -> None:
    session_id = repository.list_sessions(limit=1).sessions[0].session_id
    with _measured("forked a session"):
        fork = repository.fork_session(session_id, "fork", until=51)
    print(f"  {fork.messages} messages")


def _purge(repository: PostgresSessionRepository, sessions: int) -> None:
    """Purge half, while an agent writes to a session that stays, and another one wakes sessions up that would go."""
    with _measured("counted what to purge"):
        print(" ", repository.purge_sessions(idle_for=30 * 86_400, dry_run=True))
    stop = threading.Event()
    slowest = {"busy agent": 0.0, "waking agents": 0.0}
    counts = dict.fromkeys(slowest, 0)

    def write(label: str, session_id: str, index: int) -> None:
        message = SessionMessage({"role": "user", "content": [{"text": "hello"}]}, index)
        started = time.perf_counter()
        try:
            repository.create_message(session_id, "default", message)
        except Exception as error:
            print(" ", label, session_id, type(error).__name__)
        slowest[label] = max(slowest[label], time.perf_counter() - started)
        counts[label] += 1

    def busy() -> None:
        index = 51
        while not stop.is_set():
            write("busy agent", "fork", index)
            index += 1

    def waking() -> None:
        # Among the last that go, far from each other.
        for number in range(sessions // 2 + 100, sessions, max(sessions // 100, 1)):
            if stop.wait(0.05):
                return
            write("waking agents", f"tenant-{number % 10}/{number:09}", 100)

    threads = [threading.Thread(target=target) for target in (busy, waking)]
    before = _peak()
    for thread in threads:
        thread.start()
    with _measured("purged"):
        batches = list(repository._tables.retention.purge(idle_for=30 * 86_400, batch_size=1000, dry_run=False))
    stop.set()
    for thread in threads:
        thread.join()
    print(f"  {sum(batch.sessions for batch in batches):,} sessions in {len(batches)} batches")
    print(f"  peak memory {before:.0f} MB before, {_peak():.0f} MB after")
    for label, duration in slowest.items():
        print(f"  {label}: {counts[label]:,} writes, slowest {duration * 1000:.0f} ms")


@contextmanager
def _measured(label: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{label} in {time.perf_counter() - started:.2f} s", flush=True)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
