"""Parameters in PostgreSQL's binary format, for types that psycopg does not know."""

from psycopg.adapt import Dumper
from psycopg.pq import Format


class BinaryParameter(bytes):
    """A value in the binary format of the type to which the statement casts the parameter."""


class BinaryParameterDumper(Dumper):
    """Sends the bytes as they are. The statement determines their type."""

    format = Format.BINARY

    def dump(self, obj: BinaryParameter) -> bytes:
        """Return the bytes."""
        return bytes(obj)
