"""The leases that a storage shares with the repository that it is built on."""

from strands_psycopg.lease import Leases
from strands_psycopg.source import is_storable

_MAX_SESSION_ID_LENGTH = 255


def shared_leases(source: object, session_id: object) -> Leases:
    """Return the leases of a source, one of which may be on a session.

    Raises:
        TypeError: The source has none, since it is no repository.
        ValueError: No session can have that id.
    """
    leases = getattr(getattr(source, "_tables", None), "leases", None)
    if not isinstance(leases, Leases):
        raise TypeError(
            f"session_id requires a PostgresSessionRepository as source, whose leases it has, not "
            f"{type(source).__name__}"
        )
    if not isinstance(session_id, str) or not 1 <= len(session_id) <= _MAX_SESSION_ID_LENGTH:
        raise ValueError(f"session_id must be a string of 1 to {_MAX_SESSION_ID_LENGTH} characters")
    if not is_storable(session_id):
        raise ValueError("session_id must not contain NUL or a lone surrogate")
    return leases
