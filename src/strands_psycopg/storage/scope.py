"""Which values a storage has: those of a scope, or those of a session. Each kind has a pair of tables of its own."""

from hashlib import blake2b
from typing import NamedTuple

from strands_psycopg.database import Database

# In bytes of UTF-8, of a scope or session id and a key together. PostgreSQL's indexes hold up to 2,700.
MAX_KEY_SIZE = 2048

# What each placeholder in the template of a statement stands for, if the values have a scope of their own.
_SCOPED = {
    "values": "{storage}",
    "chunks": "{chunks}",
    "scope": "scope",
    "identity": "scope, owner",
    "identity_of_value": "%(scope)s::text, %(owner)s::text",
    "touch_session": "",
    "session_locked": "true",
}

# The same, if they belong to a session. The time of its last activity is accurate to a minute, so most writes do not
# update its row.
_OF_SESSIONS = {
    "values": "{session_storage}",
    "chunks": "{session_chunks}",
    "scope": "session_id",
    "identity": "session_id",
    "identity_of_value": "%(scope)s::text",
    "touch_session": """, touched AS (
        UPDATE {sessions} SET updated_at = pg_catalog.now()
        WHERE session_id = %(scope)s AND updated_at < pg_catalog.now() - interval '1 minute'
            AND EXISTS (SELECT true FROM changed)
    )""",
    # The foreign key would lock the session, too. But if there is no session, its error within a pipeline makes psycopg
    # log a second one.
    "session_locked": """EXISTS (
        SELECT true FROM {sessions}
        WHERE session_id = %(scope)s AND (%(owner)s::text IS NULL OR owner = %(owner)s::text) FOR KEY SHARE
    )""",
}

# The checks of the owner, if the scope is that of a session and has one. A statement that selects from ``{checked}
# (...) AS found {if_allowed}`` returns ``{refused}`` in every row, of which there is at least one.
_CHECKED = {
    "owned": "EXISTS (SELECT true FROM {sessions} WHERE session_id = %(scope)s AND owner = %(owner)s::text)",
    "refused": "access.refused",
    "checked": """(
        SELECT EXISTS (
            SELECT true FROM {sessions} WHERE session_id = %(scope)s AND owner IS DISTINCT FROM %(owner)s::text
        ) AS refused
    ) AS access LEFT JOIN""",
    "if_allowed": "ON NOT access.refused",
}
_UNCHECKED = {"owned": "true", "refused": "false", "checked": "", "if_allowed": ""}


class Scope(NamedTuple):
    """The values of one storage: they share chunks with each other, and nothing with those of other scopes.

    Attributes:
        id: The scope as its column has it, or the id of the session.
        owner: Whose values they are; None if that is not known. For a session, who it must belong to; None if that is
            not checked.
        is_session: Whether they belong to a session.
    """

    id: str
    owner: str | None = None
    is_session: bool = False

    @property
    def session_id(self) -> str | None:
        """The session; None if there is none."""
        return self.id if self.is_session else None

    @property
    def hash_key(self) -> bytes:
        """The key of the hashes of chunks, by which the same data has another id in each scope.

        The hashes of a session's chunks have none, so that a fork's chunks keep their ids.
        """
        return b"" if self.is_session else blake2b(self.id.encode()).digest()

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters that every statement has."""
        return {"scope": self.id, "owner": self.owner}

    def compose(self, database: Database, template: str) -> bytes:
        """Compose a statement from a template that refers to ``{values}``, ``{chunks}`` and their column ``{scope}``.

        A template with ``{touch_session}`` has a common table expression ``changed``, before it. One that stores or
        deletes a value requires ``{owned}``, or ``{session_locked}`` in a pipeline.
        """
        checks = _CHECKED if self.is_session and self.owner is not None else _UNCHECKED
        for name, text in ((_OF_SESSIONS if self.is_session else _SCOPED) | checks).items():
            template = template.replace("{" + name + "}", text)
        return database.statement(template)

    def describe(self, key: str) -> str:
        """Return how errors and log lines name a value, or several by what their keys begin with."""
        if self.is_session:
            return f"{key!r} of session {self.id!r}"
        return f"{key!r} of storage {self.id!r}" if self.id else repr(key)

    def payload_key(self, key: str) -> str:
        """Return the key of a value for the payload codec: no two values of storages without a session have the same.

        No key contains ``//``.
        """
        return key if self.is_session or not self.id else f"{self.id}//{key}"
