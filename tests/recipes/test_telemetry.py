from support import processes

_SCRIPT = """
import sys
from opentelemetry import metrics
from recipes.telemetry import to_console, with_statements

to_console()
with_statements()

from strands_psycopg import PostgresSessionRepository
from support.agents import build

with PostgresSessionRepository(sys.argv[1]) as repository, repository.lease("s"):
    build(repository)("hello")
    metrics.get_meter_provider().force_flush()
"""


def test_console_shows_what_a_turn_does_in_the_database(dsn: str) -> None:
    status, printed, errors = processes.run_younger(_SCRIPT, dsn)

    assert status == 0, errors
    names = ["lease.wait", "session.restore", "session.write", "invoke_agent Strands Agents"]
    assert [name for name in names if f'"name": "{name}"' not in printed] == []
    assert '"db.system": "postgresql"' in printed  # of the statements
    assert '"name": "strands_psycopg.write.duration"' in printed
