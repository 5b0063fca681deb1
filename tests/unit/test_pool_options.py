import re
from typing import Any

import pytest
from psycopg_pool import ConnectionPool

from strands_psycopg import PostgresSessionRepository
from strands_psycopg.pool_options import PoolOptions

DSN = "postgresql://localhost/agents"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_sise": 5}, TypeError, "no argument or pool option 'max_sise'; did you mean max_size?"),
        ({"retry_timout": 5}, TypeError, "'retry_timout'; did you mean retry_timeout?"),
        ({"xyzzy": 5}, TypeError, "'xyzzy'; see psycopg_pool.ConnectionPool"),
        ({"open": True}, TypeError, "open is not an option, since the pool opens at first use"),
        ({"max_size": "10"}, TypeError, "the pool option max_size must be an integer, not str"),
        ({"min_size": True}, TypeError, "the pool option min_size must be an integer, not bool"),
        ({"max_size": 0}, ValueError, "the pool option max_size must be 1 or more, not 0"),
        ({"min_size": 5, "max_size": 2}, ValueError, "the pool option max_size must be at least min_size, 5, not 2"),
        ({"num_workers": 0}, ValueError, "the pool option num_workers must be 1 or more, not 0"),
        ({"timeout": "5"}, TypeError, "the pool option timeout must be a number of seconds, not str"),
        ({"max_idle": -1}, ValueError, "the pool option max_idle must be 0 or more seconds, not -1"),
        ({"timeout": float("nan")}, ValueError, "the pool option timeout must be 0 or more seconds, not nan"),
        ({"configure": 5}, TypeError, "the pool option configure must be callable, not int"),
        ({"kwargs": "x"}, TypeError, "the pool option kwargs must be a dict of connection settings, not str"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        PostgresSessionRepository(DSN, **options)


def test_every_option_has_a_type() -> None:
    parameters = ConnectionPool.__init__.__annotations__.keys() - {"conninfo", "open", "return"}

    assert parameters == PoolOptions.__annotations__.keys()


def test_none_is_the_default_of_options_that_allow_it() -> None:
    with PostgresSessionRepository(DSN, max_size=None, configure=None, kwargs=None, name=None):
        pass
