"""Values cut into chunks where their content says so.

Whether there is a cut depends on the few bytes before it alone. So where something is added to a value, taken from it
or changed in it, only the chunks at that place differ, and the ones after it are the same again: the next snapshot of
a conversation shares nearly all its chunks with the one before.

Nothing but the sharing depends on where the cuts are, so their rule may change between releases.
"""

from hashlib import blake2b
from uuid import UUID
from zlib import crc32

# In bytes; the mean is 3,000 to 5,000.
_SMALLEST = 1024
_LARGEST = 16_384

# A cut may stand wherever the lowest bits of eight bytes are these: quick to find, and about every 256th byte, whatever
# the alphabet. It stands at one in eight of those places, where the bytes before it have a certain checksum.
_LOWEST_BIT = bytes(byte & 1 for byte in range(256))
_PLACE = b"\1\0\0\1\0\1\1\0"
_WINDOW = 32
_MASK = 7


def split(data: bytes) -> list[memoryview]:
    """Cut a value into chunks, in order; an empty one has none."""
    view = memoryview(data)
    lowest_bits = data.translate(_LOWEST_BIT)
    chunks = []
    start = 0
    while start < len(data):
        end = _end(view, lowest_bits, start)
        chunks.append(view[start:end])
        start = end
    return chunks


def _end(view: memoryview, lowest_bits: bytes, start: int) -> int:
    limit = min(start + _LARGEST, len(view))
    end = start + _SMALLEST
    while (place := lowest_bits.find(_PLACE, end, limit)) >= 0:
        end = place + len(_PLACE)
        if not crc32(view[end - _WINDOW : end]) & _MASK:
            return end
    return limit


def chunk_id(chunk: memoryview, scope: bytes) -> UUID:
    """Give the id of a chunk: 128 bits of its keyed BLAKE2b hash (RFC 7693).

    Args:
        chunk: The chunk.
        scope: Up to 64 bytes. Equal chunks of different scopes have different ids.
    """
    return UUID(bytes=blake2b(chunk, digest_size=16, key=scope).digest())
