"""Memory stores of the tests: which Strands has them, and an embedding that needs no model."""

import math
import re
from hashlib import blake2b

import pytest

try:
    from strands.memory.types import MemoryStore as _MemoryStore
except ImportError:
    _MemoryStore = None  # type: ignore[assignment, misc]

has_memory = hasattr(_MemoryStore, "initialize")
needs_memory = pytest.mark.skipif(not has_memory, reason="strands-agents before 1.46 has no such memory stores")

DIMENSIONS = 64


def embed_trigrams(texts: list[str]) -> list[list[float]]:
    """Return vectors that count the hashed trigrams of words: alike for texts that are spelled alike.

    It is no model: it knows nothing of what words mean, but that ``cycling`` and ``cyclist`` have letters in common.
    """
    return [_embed(text) for text in texts]


def _embed(text: str) -> list[float]:
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        padded = f"<{word}>"
        for start in range(len(padded) - 2):
            digest = blake2b(padded[start : start + 3].encode(), digest_size=4).digest()
            vector[int.from_bytes(digest, "big") % DIMENSIONS] += 1.0
    length = math.hypot(*vector)
    return [number / length for number in vector] if length else [1.0, *vector[1:]]
