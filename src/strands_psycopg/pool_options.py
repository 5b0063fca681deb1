"""The options of a connection pool that is built from a DSN."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypedDict

from psycopg import Connection
from psycopg_pool import ConnectionPool

# Arguments of ``ConnectionPool`` that callers may not pass: the pool opens at first use, with the DSN.
_RESERVED = {"self", "conninfo", "open"}
_KNOWN = inspect.signature(ConnectionPool.__init__).parameters.keys() - _RESERVED

# Arguments beside the pool options, one of which may have been meant.
_OTHER_ARGUMENTS = ("schema", "table_prefix", "retry_timeout", "response_timeout", "payload_codec")

_WHOLE_NUMBERS = {"min_size": 0, "max_size": 1, "max_waiting": 0, "num_workers": 1}
_SECONDS = ("timeout", "max_lifetime", "max_idle", "reconnect_timeout")
_CALLABLES = ("configure", "check", "reset", "reconnect_failed")


class PoolOptions(TypedDict, total=False):
    """Arguments of ``psycopg_pool.ConnectionPool``, whose documentation describes them."""

    connection_class: type[Connection[Any]]
    kwargs: dict[str, Any] | None
    min_size: int
    max_size: int | None
    configure: Callable[[Connection[Any]], None] | None
    check: Callable[[Connection[Any]], None] | None
    reset: Callable[[Connection[Any]], None] | None
    name: str | None
    close_returns: bool
    timeout: float
    max_waiting: int
    max_lifetime: float
    max_idle: float
    reconnect_timeout: float
    reconnect_failed: Callable[[ConnectionPool[Any]], None] | None
    num_workers: int


def check_pool_options(options: Mapping[str, Any]) -> None:
    """Check the names and types of pool options.

    Raises:
        TypeError: The installed psycopg_pool has no such option, or its type is another one.
        ValueError: An option is out of range.
    """
    for name, value in options.items():
        if name == "open":
            raise TypeError("open is not an option, since the pool opens at first use; leave it out")
        if name not in _KNOWN:
            close = get_close_matches(name, [*_KNOWN, *_OTHER_ARGUMENTS], n=1)
            advice = f"did you mean {close[0]}?" if close else "see psycopg_pool.ConnectionPool for the options"
            raise TypeError(f"there is no argument or pool option {name!r}; {advice}")
        if value is not None:
            _check_value(name, value)
    minimum, maximum = options.get("min_size", 0), options.get("max_size")
    if maximum is not None and minimum > maximum:
        raise ValueError(f"the pool option max_size must be at least min_size, {minimum}, not {maximum}")


def _check_value(name: str, value: object) -> None:
    if (minimum := _WHOLE_NUMBERS.get(name)) is not None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"the pool option {name} must be an integer, not {type(value).__name__}")
        if value < minimum:
            raise ValueError(f"the pool option {name} must be {minimum} or more, not {value}")
    elif name in _SECONDS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"the pool option {name} must be a number of seconds, not {type(value).__name__}")
        if not value >= 0:
            raise ValueError(f"the pool option {name} must be 0 or more seconds, not {value}")
    elif name in _CALLABLES and not callable(value):
        raise TypeError(f"the pool option {name} must be callable, not {type(value).__name__}")
    elif name == "kwargs" and not isinstance(value, Mapping):
        raise TypeError(f"the pool option kwargs must be a dict of connection settings, not {type(value).__name__}")
