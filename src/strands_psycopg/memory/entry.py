"""Memories as their table holds them and as callers get them."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from uuid import UUID

from psycopg.rows import TupleRow

from strands_psycopg.codec import decode, encode
from strands_psycopg.database import iso_time
from strands_psycopg.words import MAX_TEXT_SIZE, separate_words

_HASH_SIZE = 16

# The columns of a memory in the alias m, as ``read_memory`` expects them first in a row.
COLUMNS = (
    "m.memory_id::text, m.content, m.content_exact, m.metadata::text, m.metadata_exact, "
    + iso_time("m.created_at")
    + ", "
    + iso_time("m.updated_at")
)
COLUMN_COUNT = 7

# What a search adds to the metadata of its results.
MEMORY_ID, SCORE, SIMILARITY, CREATED_AT, UPDATED_AT = (
    "_memory_id",
    "_score",
    "_similarity",
    "_created_at",
    "_updated_at",
)
_RESERVED = frozenset({MEMORY_ID, SCORE, SIMILARITY, CREATED_AT, UPDATED_AT})


@dataclass(frozen=True)
class Memory:
    """A memory as it is stored.

    Attributes:
        memory_id: Its id, a UUID as text.
        content: Its text.
        metadata: Its metadata; None if it was added without any.
        created_at: When it was first stored, in UTC as ISO 8601.
        updated_at: When its text was last added or edited, in the same form.
    """

    memory_id: str
    content: str
    metadata: dict[str, Any] | None
    created_at: str
    updated_at: str


@dataclass(frozen=True)
class MemoryPage:
    """A page of a list of memories.

    Attributes:
        memories: The memories, newest first.
        next: What to pass as ``before`` for the next page; None on the last one.
    """

    memories: list[Memory]
    next: str | None


def read_memory(row: TupleRow) -> Memory:
    """Return the memory of a row that begins with ``COLUMNS``."""
    memory_id, content, content_exact, metadata, metadata_exact, created_at, updated_at = row[:COLUMN_COUNT]
    return Memory(
        memory_id,
        content if content_exact is None else decode("null", content_exact),
        None if metadata is None else decode(metadata, metadata_exact),
        created_at,
        updated_at,
    )


def content_parameters(content: object) -> dict[str, object]:
    """Return the parameters of a text: its columns, its hash and the words by which a search finds it.

    Raises:
        TypeError: It is not a string.
        ValueError: It is blank, or longer than 256 MiB.
    """
    if not isinstance(content, str):
        raise TypeError(f"content must be a string, not {type(content).__name__}")
    if not content.strip():
        raise ValueError("content must not be empty or blank")
    text, exact = encode(content)
    readable = decode(text, None)
    content_hash = blake2b(content.encode("utf-8", "surrogatepass"), digest_size=_HASH_SIZE).digest()
    return {
        "content": readable,
        "content_exact": exact,
        "content_hash": UUID(bytes=content_hash),
        "text": separate_words(readable[:MAX_TEXT_SIZE]),
    }


def metadata_parameters(metadata: object) -> dict[str, object]:
    """Return the parameters of the columns of metadata.

    Raises:
        TypeError: It is neither a mapping nor None, or holds something that JSON cannot.
        ValueError: It has a key that searches add to it, or the codec refuses it.
    """
    if metadata is None:
        return {"metadata": None, "metadata_exact": None}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a dict, not {type(metadata).__name__}")
    if reserved := sorted(_RESERVED.intersection(metadata)):
        raise ValueError(
            f"metadata must not have the key {reserved[0]!r}, which searches add; to copy memories, take their "
            "metadata from list()"
        )
    text, exact = encode(dict(metadata))
    return {"metadata": text, "metadata_exact": exact}


def merge_metadata(metadata: str | None, metadata_exact: str | None, new: Mapping[str, Any]) -> dict[str, object]:
    """Return the parameters of stored metadata, overridden key by key by that of the parameters ``new``."""
    stored = {} if metadata is None else decode(metadata, metadata_exact)
    return metadata_parameters(stored | decode(new["metadata"], new["metadata_exact"]))


def filter_parameter(metadata: object) -> dict[str, object]:
    """Return the parameter of a filter by metadata.

    Raises:
        TypeError: As ``metadata_parameters``.
        ValueError: As ``metadata_parameters``.
    """
    return {"filter": metadata_parameters(metadata)["metadata"]}


def parse_memory_id(memory_id: object) -> UUID:
    """Read the id of a memory.

    Raises:
        ValueError: It is not a UUID.
    """
    try:
        return UUID(memory_id)  # type: ignore[arg-type]
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{memory_id!r} is not the id of a memory; list() and search() return them") from None
