"""Documents encrypted with AES-256-GCM before they reach PostgreSQL, with a key of its own for each session.

The keys of sessions are in another database, encrypted by a master key that a secret manager holds. So neither database
can be read alone, nor can their backups. The context of each document is authenticated with it: a row that was put in
another one's place, in any session, agent or column, cannot be read.

- To rotate the master key, add the new one, make it ``current`` and call ``rewrap``; no document is touched.
- To rotate a session's key, call ``rotate``. New documents use the new key, and old ones are read with the old one.
- To make a session unreadable, in backups of the sessions' database too, call ``destroy``. Keep backups of the keys'
  database only for as long as destroyed sessions may still be read.

What stays in plain: ids, keys of storages, times, numbers of messages, and sizes. A fork has a key of its own, so it is
not destroyed with the session that it was forked from. An old row in the place of a newer one is not noticed.
"""

import base64
import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg_pool import ConnectionPool

from strands_psycopg import PayloadContext
from strands_psycopg.codec import decode, encode

# In bytes; NIST SP 800-38D recommends 96 bits.
_NONCE_SIZE = 12

_TABLE = """
    CREATE TABLE IF NOT EXISTS session_keys (
        key_id     uuid PRIMARY KEY,
        session_id text NOT NULL,           -- '' for storages that belong to no session
        master_id  text NOT NULL,           -- the master key that encrypts it
        nonce      bytea NOT NULL,
        wrapped    bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE INDEX IF NOT EXISTS session_keys_session_id ON session_keys (session_id, created_at)
"""


class SessionKeys:
    """The keys of sessions, in a database of their own.

    Args:
        pool: The pool of that database. It must not be the repository's own pool: a fork or import asks for keys while
            it holds a connection.
        masters: The master keys, of 32 bytes, by their ids.
        current: The id of the one that encrypts new keys.
        ttl: For how many seconds a process remembers a key, and can use one that was destroyed.
    """

    def __init__(
        self, pool: ConnectionPool[Any], masters: Mapping[str, bytes], *, current: str, ttl: float = 60.0
    ) -> None:
        self._pool = pool
        self._masters = {master_id: AESGCM(key) for master_id, key in masters.items()}
        self._current = current
        self._ttl = ttl
        # By session and by id: when it was read, and the key.
        self._latest: dict[str, tuple[float, UUID]] = {}
        self._known: dict[UUID, tuple[float, AESGCM]] = {}
        self._lock = threading.Lock()

    def create_table(self) -> None:
        """Create the table of keys, at deploy."""
        with self._pool.connection() as connection:
            connection.execute(_TABLE)

    def latest(self, session_id: str) -> tuple[UUID, AESGCM]:
        """Return the key for new documents of a session, with its id; a session without one gets one."""
        with self._lock:
            read_at, key_id = self._latest.get(session_id, (float("-inf"), UUID(int=0)))
        if time.monotonic() - read_at < self._ttl:
            return key_id, self.key(session_id, key_id)
        with self._pool.connection() as connection:
            rows = connection.execute(
                "SELECT key_id FROM session_keys WHERE session_id = %s ORDER BY created_at DESC LIMIT 1", [session_id]
            ).fetchall()
        if not rows:
            return self.rotate(session_id)
        self._remember(session_id, rows[0][0])
        return rows[0][0], self.key(session_id, rows[0][0])

    def key(self, session_id: str, key_id: UUID) -> AESGCM:
        """Return a key of a session.

        Raises:
            LookupError: It was destroyed, or is a key of another session.
        """
        with self._lock:
            read_at, known = self._known.get(key_id, (float("-inf"), None))
        if known is not None and time.monotonic() - read_at < self._ttl:
            return known
        with self._pool.connection() as connection:
            rows = connection.execute(
                "SELECT master_id, nonce, wrapped FROM session_keys WHERE key_id = %s AND session_id = %s",
                [key_id, session_id],
            ).fetchall()
        if not rows:
            raise LookupError(f"session {session_id!r} has no key {key_id}")
        master_id, nonce, wrapped = rows[0]
        found = AESGCM(self._masters[master_id].decrypt(nonce, wrapped, _bound(session_id, key_id)))
        self._remember(session_id, key_id, found, is_latest=False)
        return found

    def rotate(self, session_id: str) -> tuple[UUID, AESGCM]:
        """Create a key for a session's new documents, and return it with its id."""
        key_id, key = uuid4(), AESGCM.generate_key(256)
        with self._pool.connection() as connection:
            connection.execute(
                "INSERT INTO session_keys (key_id, session_id, master_id, nonce, wrapped) VALUES (%s, %s, %s, %s, %s)",
                [key_id, session_id, *self._wrap(session_id, key_id, key)],
            )
        self._remember(session_id, key_id, AESGCM(key))
        return key_id, AESGCM(key)

    def destroy(self, session_id: str) -> None:
        """Delete the keys of a session. Other processes may remember them for ``ttl`` seconds."""
        with self._pool.connection() as connection:
            connection.execute("DELETE FROM session_keys WHERE session_id = %s", [session_id])
        with self._lock:
            self._latest.pop(session_id, None)
            self._known.clear()

    def rewrap(self) -> None:
        """Encrypt all keys by the current master key, so that the others are needed no more."""
        with self._pool.connection() as connection:
            rows = connection.execute(
                "SELECT key_id, session_id, master_id, nonce, wrapped FROM session_keys WHERE master_id <> %s "
                "FOR UPDATE",
                [self._current],
            ).fetchall()
            for key_id, session_id, master_id, nonce, wrapped in rows:
                key = self._masters[master_id].decrypt(nonce, wrapped, _bound(session_id, key_id))
                connection.execute(
                    "UPDATE session_keys SET master_id = %s, nonce = %s, wrapped = %s WHERE key_id = %s",
                    [*self._wrap(session_id, key_id, key), key_id],
                )

    def _wrap(self, session_id: str, key_id: UUID, key: bytes) -> tuple[str, bytes, bytes]:
        nonce = os.urandom(_NONCE_SIZE)
        wrapped = self._masters[self._current].encrypt(nonce, key, _bound(session_id, key_id))
        return self._current, nonce, wrapped

    def _remember(self, session_id: str, key_id: UUID, key: AESGCM | None = None, *, is_latest: bool = True) -> None:
        now = time.monotonic()
        with self._lock:
            self._latest = {each: known for each, known in self._latest.items() if now - known[0] < self._ttl}
            self._known = {each: known for each, known in self._known.items() if now - known[0] < self._ttl}
            if is_latest:
                self._latest[session_id] = now, key_id
            if key is not None:
                self._known[key_id] = now, key


class EncryptingCodec:
    """A ``payload_codec`` that encrypts each document as ``{"key": id, "nonce": base64, "data": base64}``.

    A value of a storage becomes the bytes of the key's id, the nonce and the encrypted data.

    Args:
        keys: The keys of sessions.
        reads_plain: Whether documents that were stored before there was a codec are read. Leave it off once they are
            encrypted (export and import them), since otherwise whoever writes to the table can put in plain ones.
    """

    def __init__(self, keys: SessionKeys, *, reads_plain: bool = False) -> None:
        self._keys = keys
        self._reads_plain = reads_plain

    def encode(self, document: Any, context: PayloadContext) -> Any:
        """Encrypt a document, or a value of a storage."""
        key_id, key = self._keys.latest(context.session_id or "")
        nonce = os.urandom(_NONCE_SIZE)
        if context.kind == "storage":
            return key_id.bytes + nonce + key.encrypt(nonce, document, _associated(context, key_id))
        # The library's own encoding, in which every document comes back exactly.
        plain = json.dumps(encode(document)).encode()
        data = key.encrypt(nonce, plain, _associated(context, key_id))
        return {"key": str(key_id), "nonce": _base64(nonce), "data": _base64(data)}

    def decode(self, document: Any, context: PayloadContext) -> Any:
        """Decrypt a document, or a value of a storage."""
        if context.kind == "storage":
            key_id, nonce = UUID(bytes=document[:16]), document[16 : 16 + _NONCE_SIZE]
            return self._decrypt(key_id, nonce, document[16 + _NONCE_SIZE :], context)
        # A title that was stored without the codec is a string.
        if self._reads_plain and (isinstance(document, str) or document.keys() != {"key", "nonce", "data"}):
            return document
        nonce, data = base64.b64decode(document["nonce"]), base64.b64decode(document["data"])
        return decode(*json.loads(self._decrypt(UUID(document["key"]), nonce, data, context)))

    def _decrypt(self, key_id: UUID, nonce: bytes, data: bytes, context: PayloadContext) -> bytes:
        return self._keys.key(context.session_id or "", key_id).decrypt(nonce, data, _associated(context, key_id))


def _associated(context: PayloadContext, key_id: UUID) -> bytes:
    """Return what is authenticated with a document."""
    return json.dumps([context.session_id, context.agent_id, context.kind, context.index, str(key_id)]).encode()


def _bound(session_id: str, key_id: UUID) -> bytes:
    """Return what is authenticated with a key."""
    return json.dumps([session_id, str(key_id)]).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
