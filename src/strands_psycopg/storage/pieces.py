"""Values cut into pieces where their content says so.

Whether there is a cut depends on the few bytes before it alone. So where something is added to a value, taken from it
or changed in it, only the pieces at that place differ, and the ones after it are the same again: the next snapshot of
a conversation shares nearly all its pieces with the one before.

Nothing but the sharing depends on where the cuts are, so their rule may change between releases.
"""

import re
from collections.abc import Callable
from hashlib import blake2b
from uuid import UUID
from zlib import crc32

# In bytes; the mean is 2,000 to 4,500.
_SMALLEST = 1024
_LARGEST = 16_384

# A cut stands after one in 32 of the places that a regular expression finds quickly, about every hundredth byte of
# texts, numbers, base64 and other scripts alike: the one where the bytes before it have this checksum.
_WINDOW = 32
_MASK = 31


def _one_of(chosen: Callable[[int], bool]) -> bytes:
    return b"[%b]" % b"".join(re.escape(bytes([byte])) for byte in range(256) if chosen(byte))


_PLACE = re.compile(_one_of(lambda byte: byte % 16 == 6) + _one_of(lambda byte: byte % 4 == 1))


def cut(data: bytes) -> list[memoryview]:
    """Cut a value into pieces, in order; an empty one has none."""
    view = memoryview(data)
    pieces = []
    start = 0
    while start < len(data):
        end = _end(data, start)
        pieces.append(view[start:end])
        start = end
    return pieces


def _end(data: bytes, start: int) -> int:
    limit = min(start + _LARGEST, len(data))
    for place in _PLACE.finditer(data, start + _SMALLEST, limit):
        end = place.end()
        if not crc32(data[end - _WINDOW : end]) & _MASK:
            return end
    return limit


def name(piece: memoryview, scope: bytes) -> UUID:
    """Give the id of a piece: 128 bits of its keyed BLAKE2b hash (RFC 7693).

    Args:
        piece: The piece.
        scope: Up to 64 bytes. Equal pieces of different scopes have different ids.
    """
    return UUID(bytes=blake2b(piece, digest_size=16, key=scope).digest())
