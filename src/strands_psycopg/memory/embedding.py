"""Vectors of texts, by the application's ``embed``."""

import inspect
import math
import struct
import sys
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, cast

from strands_psycopg.binary_parameter import BinaryParameter
from strands_psycopg.errors import EmbeddingError
from strands_psycopg.workers import Workers

# Called with a list of texts; returns, or is a coroutine that returns, a vector for each.
Embed: TypeAlias = Callable[[list[str]], Sequence[Sequence[float]] | Awaitable[Sequence[Sequence[float]]]]

# The largest number of dimensions for which pgvector's HNSW index can hold a vector.
_MAX_DIMENSIONS = 2000

# The range of the largest number of a vector in which half precision holds the others well enough.
_MIN_LARGEST = 2.0**-6
_MAX_LARGEST = 65_504.0

_NO_NUMBERS = "a vector is not a sequence of numbers"
_NOT_FINITE = "a vector contains NaN, an infinity or a number that is too large"


def check_dimensions(dimensions: object) -> int:
    """Return the number of dimensions of vectors.

    Raises:
        ValueError: It is not an integer from 1 to 2,000.
    """
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ValueError(
            f"dimensions must be an integer from 1 to {_MAX_DIMENSIONS}, the length of the vectors that embed returns "
            f"(many models can return shorter ones), not {dimensions!r}"
        )
    return dimensions


class VectorError(ValueError):
    """A value is not a vector that can be stored; the message does not quote it."""


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

    async def vectors(self, texts: list[str]) -> list[BinaryParameter]:
        """Return a vector for each text, as ``encode_vector`` does.

        Raises:
            EmbeddingError: ``embed`` failed, or did not return one vector for each text, or a vector has another number
                of dimensions, is all zeros, or contains something that is not a finite number.
        """
        if inspect.iscoroutinefunction(self._embed):
            returned: Any = self._embed(texts)
        else:
            returned = await self._workers.run_async(partial(self._embed_and_encode, texts))
        if not inspect.isawaitable(returned):
            return cast(list[BinaryParameter], returned)
        with _translate_errors(texts):
            vectors = await returned
        return await self._workers.run_async(partial(self._encode, texts, vectors))

    def _embed_and_encode(self, texts: list[str]) -> object:
        """Return the encoded vectors; or what ``embed`` returned, if that is awaitable."""
        with _translate_errors(texts):
            vectors: Any = self._embed(texts)
        return vectors if inspect.isawaitable(vectors) else self._encode(texts, vectors)

    def _encode(self, texts: list[str], vectors: Any) -> list[BinaryParameter]:
        # A generator computes the vectors only now.
        with _translate_errors(texts):
            if not isinstance(vectors, Iterable):
                raise VectorError(f"embed returned {type(vectors).__name__}; it must return a vector for each text")
            encoded = [encode_vector(vector, self._dimensions) for vector in vectors]
            if len(encoded) != len(texts):
                raise VectorError(f"embed returned {len(encoded)} vectors; it must return one for each")
        return encoded

    def close(self) -> None:
        """End the threads in which ``embed`` is called, after what they were given."""
        self._workers.close()


@contextmanager
def _translate_errors(texts: list[str]) -> Iterator[None]:
    """Raise an ``EmbeddingError`` in place of what ``embed`` raises, without quoting that: it may contain a text."""
    operation = f"embedding {len(texts)} texts"
    try:
        yield
    except VectorError as error:
        raise EmbeddingError(f"{operation}: {error}") from None
    except Exception as error:
        raise EmbeddingError(f"{operation}: embed raised {type(error).__name__}, the cause of this error") from error


def encode_vector(vector: Sequence[float], dimensions: int) -> BinaryParameter:
    """Return a vector in the binary format of pgvector's type ``vector``.

    If its numbers are too large or too small for half precision, it is scaled, which changes no cosine similarity.

    Raises:
        VectorError: It is not a sequence of numbers, has another number of dimensions, is all zeros, or contains
            something that is not a finite number.
    """
    # The items of bytes are numbers, but not the vector's. Unlike ``float``, an array takes no text for a number.
    if isinstance(vector, (bytes, bytearray)):
        raise VectorError(_NO_NUMBERS)
    try:
        numbers = array("f", iter(vector))
    except OverflowError:
        raise VectorError(_NOT_FINITE) from None
    except (TypeError, ValueError):
        raise VectorError(_NO_NUMBERS) from None
    if len(numbers) != dimensions:
        raise VectorError(f"a vector has {len(numbers)} dimensions, not {dimensions}")
    # The sum is finite if all numbers are: it has double precision.
    if not math.isfinite(sum(numbers)):
        raise VectorError(_NOT_FINITE)
    largest = max(max(numbers), -min(numbers))
    if largest == 0:
        raise VectorError("a vector is all zeros, which has no direction to compare")
    if not _MIN_LARGEST <= largest <= _MAX_LARGEST:
        numbers = array("f", [number / largest for number in numbers])
    if sys.byteorder == "little":
        numbers.byteswap()
    return BinaryParameter(struct.pack("!HH", dimensions, 0) + numbers.tobytes())
