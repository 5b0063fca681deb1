"""Memory stores of the tests: which Strands has them, and an embedding that needs no model."""

import math
import re
from hashlib import blake2b

import psycopg
import pytest

from strands_psycopg import PostgresMemoryStore
from support.tables import one

try:
    from strands.memory.types import MemoryStore as _MemoryStore
except ImportError:
    _MemoryStore = None  # type: ignore[assignment, misc]

has_memory = hasattr(_MemoryStore, "initialize")
needs_memory = pytest.mark.skipif(not has_memory, reason="strands-agents before 1.46 has no such memory stores")

_HAS_PGVECTOR = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')"

DIMENSIONS = 256

# Shorter words are mostly those of grammar, which would make all questions alike.
_MIN_LENGTH = 4


def has_pgvector(dsn: str) -> bool:
    """Return whether the server has pgvector."""
    with psycopg.connect(dsn) as connection:
        return bool(one(connection, _HAS_PGVECTOR))


def embed_trigrams(texts: list[str]) -> list[list[float]]:
    """Return vectors that count the hashed trigrams of words: alike for texts that are spelled alike.

    It is no model: it knows nothing of what words mean, but that ``cycling`` and ``cyclist`` have letters in common.
    """
    return [_embed(text) for text in texts]


def _embed(text: str) -> list[float]:
    vector = [0.0] * DIMENSIONS
    for word in re.findall(rf"\w{{{_MIN_LENGTH},}}", text.lower()):
        padded = f"<{word}>"
        for start in range(len(padded) - 2):
            digest = int.from_bytes(blake2b(padded[start : start + 3].encode(), digest_size=4).digest(), "big")
            # Of both signs, so that trigrams that share a dimension do not make texts alike.
            vector[digest % DIMENSIONS] += 1.0 if digest >> 31 else -1.0
    length = math.hypot(*vector)
    return [number / length for number in vector] if length else [1.0, *vector[1:]]


async def recall(store: PostgresMemoryStore, questions: list[dict[str, str]], *, by_vectors: bool = False) -> float:
    """Return the part of the questions whose answer is among the first five memories that a store finds.

    Args:
        store: The store.
        questions: Each has a ``question`` and its ``answer``, the text of a memory.
        by_vectors: Whether the similarity of vectors alone decides which come first.
    """
    answered = 0
    for each in questions:
        entries = await store.search(each["question"], {"max_search_results": 10})
        if by_vectors:
            entries.sort(key=lambda entry: -(entry.metadata or {}).get("_similarity", -1))
        answered += each["answer"] in [entry.content for entry in entries[:5]]
    return answered / len(questions)
