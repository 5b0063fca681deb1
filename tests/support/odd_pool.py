"""A caller's pool whose connections are set to whatever an application may have set, all at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import psycopg
from psycopg.adapt import Loader
from psycopg.rows import dict_row
from psycopg.types.json import JsonbDumper, set_json_dumps, set_json_loads
from psycopg.types.string import StrBinaryDumperVarchar, StrDumper, StrDumperVarchar
from psycopg_pool import ConnectionPool

Connection = psycopg.Connection[Any]
Pool = ConnectionPool[Connection]


def own_json(connection: Connection) -> None:
    set_json_loads(lambda _: "own", connection)
    set_json_dumps(lambda _: '"own"', connection)


def own_search_path(connection: Connection) -> None:
    connection.execute("SELECT set_config('search_path', 'pg_catalog', false)")
    connection.commit()


class IntAsText(StrDumper):
    def dump(self, obj: Any) -> Any:
        return super().dump(str(obj))


class Odd(Loader):
    def load(self, data: Any) -> Any:
        return "odd"


class StrAsVarchar(StrDumperVarchar):
    pass


class BinaryStr(StrBinaryDumperVarchar):
    pass


def own_adapters(connection: Connection) -> None:
    connection.adapters.register_dumper(list, JsonbDumper)
    connection.adapters.register_dumper(dict, JsonbDumper)
    connection.adapters.register_dumper(int, IntAsText)
    for dumper in (StrAsVarchar, BinaryStr):
        connection.adapters.register_dumper(str, dumper)
    for name in ("text", "int8", "int4", "uuid", "bool", "bytea", "jsonb", "numeric", "timestamptz", "float8"):
        connection.adapters.register_loader(name, Odd)


def own_everything(connection: Connection) -> None:
    own_json(connection)
    own_search_path(connection)
    own_adapters(connection)


class Instrumented(psycopg.Cursor[Any]):
    """What an instrumentation makes of a cursor."""

    statements: ClassVar[list[str]] = []

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        self.statements.append(query if isinstance(query, str) else query.decode())
        return super().execute(query, *arguments, **options)


def own_isolation(connection: Connection) -> None:
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE


EVERYTHING: dict[str, Any] = {
    "kwargs": {"row_factory": dict_row, "prepare_threshold": 0, "cursor_factory": Instrumented},
    "configure": own_everything,
}


@contextmanager
def odd_pool(dsn: str, **options: Any) -> Iterator[Pool]:
    """Open a pool with all of it."""
    kwargs = EVERYTHING["kwargs"] | options.pop("kwargs", {})
    with ConnectionPool(
        dsn, connection_class=Connection, configure=own_everything, kwargs=kwargs, open=False, **options
    ) as pool:
        yield pool
