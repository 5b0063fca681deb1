"""Vectors of texts, by the application's ``embed``."""

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from strands_psycopg.errors import EmbeddingError
from strands_psycopg.workers import Workers

# Called with a list of texts; returns, or is a coroutine that returns, a vector for each.
Embed: TypeAlias = Callable[[list[str]], Sequence[Sequence[float]] | Awaitable[Sequence[Sequence[float]]]]

# The largest number of dimensions of which pgvector's HNSW index holds a vector.
_MAX_DIMENSIONS = 2000

# Of the single-precision numbers that pgvector stores.
_MAX_FLOAT = 3.4028235e38


def check_dimensions(dimensions: object) -> int:
    """Return the number of dimensions of vectors.

    Raises:
        ValueError: It is not an integer from 1 to 2,000.
    """
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ValueError(
            f"dimensions must be an integer from 1 to {_MAX_DIMENSIONS}, the length of the vectors that embed returns "
            f"(many models can be told to return shorter ones), not {dimensions!r}"
        )
    return dimensions


class Embedder:
    """Calls ``embed`` and checks what it returns.

    Args:
        embed: The application's function.
        dimensions: The number of dimensions that its vectors must have.
    """

    def __init__(self, embed: Embed, dimensions: int) -> None:
        self._embed = embed
        self._dimensions = dimensions
        # Not those of the database, whose calls must not wait for a slow model.
        self._workers = Workers(max_wait=math.inf)

    async def vectors(self, texts: list[str]) -> list[str]:
        """Return a vector for each text, in pgvector's text form.

        Raises:
            EmbeddingError: ``embed`` failed, or its vectors are not as many as the texts, have another number of
                dimensions, are all zeros, or contain something that is no finite number.
        """
        operation = f"embedding {len(texts)} texts"
        try:
            if inspect.iscoroutinefunction(self._embed):
                vectors: Any = await self._embed(texts)
            else:
                vectors = await self._workers.run_async(partial(self._embed, texts))
                if inspect.isawaitable(vectors):
                    vectors = await vectors
        except Exception as error:
            # The text of the error is not quoted, since it may contain what was to be embedded.
            raise EmbeddingError(
                f"{operation}: embed raised {type(error).__name__}, the cause of this error"
            ) from error
        try:
            formatted = [format_vector(vector, self._dimensions) for vector in vectors]
        except (TypeError, ValueError, OverflowError) as error:
            raise EmbeddingError(f"{operation}: {error}") from None
        if len(formatted) != len(texts):
            raise EmbeddingError(f"{operation}: embed returned {len(formatted)} vectors; it must return one for each")
        return formatted

    def close(self) -> None:
        """End the threads in which ``embed`` is called, after what they were given."""
        self._workers.close()


def format_vector(vector: Sequence[float], dimensions: int) -> str:
    """Return a vector in pgvector's text form.

    Raises:
        TypeError: It is no sequence of numbers.
        ValueError: It has another number of dimensions, is all zeros, or contains something that is no finite number.
    """
    try:
        numbers = [float(number) for number in vector]
    except (TypeError, ValueError):
        raise TypeError("a vector is no sequence of numbers") from None
    if len(numbers) != dimensions:
        raise ValueError(f"a vector has {len(numbers)} dimensions, not {dimensions}")
    if not all(math.isfinite(number) and abs(number) <= _MAX_FLOAT for number in numbers):
        raise ValueError("a vector contains NaN, an infinity or a number that is too large")
    if not any(numbers):
        raise ValueError("a vector is all zeros, which has no direction to compare")
    return f"[{','.join(map(repr, numbers))}]"
