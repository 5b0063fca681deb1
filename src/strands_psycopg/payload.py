"""Documents on their way to and from the database, which the application's payload codec may change.

It encrypts, scrubs or compresses documents, and ``codec`` encodes what it returns for the columns. The term payload
codec is Temporal's.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from strands_psycopg.calls import report_stall
from strands_psycopg.codec import decode, encode
from strands_psycopg.errors import PayloadCodecError

PayloadKind: TypeAlias = Literal[
    "message",
    "redaction",
    "variant",
    "state",
    "conversation_manager_state",
    "internal_state",
    "checkpoint",
    "multi_agent",
    "storage",
    "title",
]

# The texts of a JSONB column and of the exact column beside it.
Columns: TypeAlias = tuple[str, str | None]


@dataclass(frozen=True)
class PayloadContext:
    """Which document a ``PayloadCodec`` is given. No two documents of one schema and table prefix have the same.

    Attributes:
        session_id: Its session; None for a value of a storage that belongs to none.
        agent_id: Its agent, or graph or swarm; None for a value of a storage, and for a title.
        kind: What it is: a ``message`` of an agent's log, its ``redaction``, a ``variant`` (a message in another form,
            such as a summary), an agent's ``state``, ``conversation_manager_state`` or ``internal_state``, the data of
            a ``checkpoint``, the state of a ``multi_agent`` (a graph or swarm), a value of a ``storage``, or the
            ``title`` of a session, which is a string.
        index: The index of a message or redaction, the id of a variant or checkpoint, or the key of a value of a
            storage; None if there is only one such document. The key of a value of no session follows the storage's
            owner and prefix, if it has them, each with a ``//``.
    """

    session_id: str | None
    agent_id: str | None
    kind: PayloadKind
    index: int | str | None = None


class PayloadCodec(Protocol):
    """Changes documents on their way to and from the database.

    Its methods are called once for each document that is stored or read, in the thread that waits for the database and
    not on the event loop, except where Strands itself calls a hook synchronously. Several threads may call them at
    once. They must not use the repository's own pool, since a fork or import calls them within a transaction. If they
    raise an error, a ``PayloadCodecError`` is raised from it, and nothing is stored.

    The ids, owners and metadata of sessions are stored as they are, since the database looks sessions up by them.
    """

    def encode(self, document: Any, context: PayloadContext) -> Any:
        """Return what is to be stored.

        Args:
            document: A copy of the document, of JSON types and bytes; the bytes of a value of a storage; a title.
            context: Which document it is.

        Returns:
            JSON, in which bytes are allowed anywhere, but not None; for a value of a storage, bytes.
        """

    def decode(self, document: Any, context: PayloadContext) -> Any:
        """Return the document for which ``encode`` returned ``document``.

        It is also given what was stored without a codec.
        """


class Payloads:
    """Encodes documents for their columns and decodes them, by way of a ``PayloadCodec`` if there is one.

    Args:
        codec: The application's codec; None if documents are stored as they are.

    Attributes:
        has_codec: Whether there is one.

    Raises:
        TypeError: ``codec`` is not an object with the methods of a ``PayloadCodec``.
    """

    def __init__(self, codec: PayloadCodec | None = None) -> None:
        if codec is not None:
            _check_codec(codec)
        self._codec = codec
        self.has_codec = codec is not None

    def encode(
        self,
        document: object,
        session_id: str,
        agent_id: str,
        kind: PayloadKind,
        index: int | str | None = None,
    ) -> Columns:
        """Encode a document for its columns.

        Raises:
            ValueError: As ``codec.encode``.
            TypeError: As ``codec.encode``.
            PayloadCodecError: The codec failed, or what it returned cannot be stored.
        """
        return self.encode_columns(encode(document), session_id, agent_id, kind, index)

    def encode_columns(
        self,
        columns: Columns,
        session_id: str,
        agent_id: str | None,
        kind: PayloadKind,
        index: int | str | None = None,
    ) -> Columns:
        """Do what ``encode`` does with a document that ``codec.encode`` has encoded before."""
        if self._codec is None:
            return columns
        context = PayloadContext(session_id, agent_id, kind, index)
        # A copy, since the document is still in the agent's memory.
        encoded = _call("encode", self._codec.encode, decode(*columns), context)
        if encoded is None:
            raise _error("encode returned None instead of what is to be stored; nothing was stored", context)
        try:
            return encode(encoded)
        except (ValueError, TypeError) as error:
            raise _error(
                f"encode returned what cannot be stored as JSON ({type(error).__name__}); nothing was stored", context
            ) from error

    def decode(
        self,
        jsonb_text: str,
        exact_text: str | None,
        session_id: str,
        agent_id: str,
        kind: PayloadKind,
        index: int | str | None = None,
    ) -> Any:
        """Return the document that was encoded.

        Raises:
            PayloadCodecError: The codec failed.
        """
        document = decode(jsonb_text, exact_text)
        if self._codec is None:
            return document
        context = PayloadContext(session_id, agent_id, kind, index)
        decoded = _call("decode", self._codec.decode, document, context)
        if not isinstance(decoded, dict):
            raise _error(f"decode returned {type(decoded).__name__} instead of a dict", context)
        return decoded

    def encode_title(self, title: str, session_id: str) -> str:
        """Encode a session's title for its column: as it is, or as the JSON text of what the codec returned.

        Raises:
            PayloadCodecError: The codec failed, or what it returned cannot be stored.
        """
        if self._codec is None:
            return title
        text, exact = self.encode_columns((json.dumps(title), None), session_id, None, "title")
        # Unlike JSONB, text keeps the order of keys.
        return text if exact is None or exact.startswith("order ") else exact

    def decode_title(self, text: str, session_id: str) -> str:
        """Return the title that was encoded.

        Raises:
            PayloadCodecError: The codec failed or did not return a string.
        """
        if self._codec is None:
            return text
        context = PayloadContext(session_id, None, "title")
        title = _call("decode", self._codec.decode, _parse_title(text), context)
        if not isinstance(title, str):
            raise _error(f"decode returned {type(title).__name__} instead of a string", context)
        return title

    def encode_bytes(self, value: bytes, session_id: str | None, key: str) -> bytes:
        """Encode a value of a storage.

        Raises:
            PayloadCodecError: The codec failed or did not return bytes.
        """
        if self._codec is None:
            return value
        context = PayloadContext(session_id, None, "storage", key)
        return _as_bytes("encode", _call("encode", self._codec.encode, value, context), context)

    def decode_bytes(self, value: bytes, session_id: str | None, key: str) -> bytes:
        """Return the value that was encoded.

        Raises:
            PayloadCodecError: The codec failed or did not return bytes.
        """
        if self._codec is None:
            return value
        context = PayloadContext(session_id, None, "storage", key)
        return _as_bytes("decode", _call("decode", self._codec.decode, value, context), context)


def _parse_title(text: str) -> Any:
    """Return what a codec has returned for a title, or the title itself if it was stored without one."""
    try:
        if not text.startswith("bytes "):
            json.loads(text)  # fails unless all of it is JSON
        return decode("null", text)
    except ValueError:
        return text


def _check_codec(codec: object) -> None:
    for method in ("encode", "decode"):
        if not callable(getattr(codec, method, None)):
            raise TypeError(
                f"payload_codec must be an object with the methods encode and decode, not {type(codec).__name__}"
            )
        if isinstance(codec, type) and inspect.isfunction(inspect.getattr_static(codec, method)):
            raise TypeError(f"payload_codec must be an object, not the class {codec.__name__}; pass an instance of it")


def _call(name: str, method: Callable[[Any, PayloadContext], Any], document: object, context: PayloadContext) -> Any:
    report_stall()  # it may take its time, such as for a key service
    try:
        return method(document, context)
    except Exception as error:
        outcome = "; nothing was stored" if name == "encode" else ""
        raise _error(f"{name} raised {type(error).__name__}{outcome}", context) from error


def _as_bytes(method: str, value: object, context: PayloadContext) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _error(f"{method} returned {type(value).__name__} instead of bytes", context)
    return bytes(value)


def _error(problem: str, context: PayloadContext) -> PayloadCodecError:
    document = context.kind.replace("_", " ")
    if context.index is not None:
        document += f" {context.index!r}"
    if context.agent_id is not None:
        document += f" of agent {context.agent_id!r}"
    if context.session_id is not None:
        document += f" in session {context.session_id!r}"
    return PayloadCodecError(
        f"{document}: payload_codec: {problem}",
        session_id=context.session_id,
        agent_id=context.agent_id,
        kind=context.kind,
        index=context.index,
    )
