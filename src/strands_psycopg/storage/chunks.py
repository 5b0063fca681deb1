"""Content-defined chunking: a value is split at boundaries that its content determines.

Whether there is a boundary depends only on the few bytes before it. So if bytes of a value are inserted, removed or
changed, only the chunks around them differ and the later ones stay the same: a snapshot of a conversation shares nearly
all its chunks with the snapshot before.

The boundaries affect only how much is shared, so the algorithm may change between releases.
"""

from hashlib import blake2b
from uuid import UUID
from zlib import crc32

# In bytes, for a value of less than 256 KiB; the mean is about 6,000.
_MIN_SIZE = 2048
_MAX_SIZE = 32_768

# A boundary is only considered after eight bytes with these lowest bits: quick to find, and about one in 256 bytes,
# whatever the alphabet. One in 16 of these candidates is a boundary, decided by a checksum of the bytes before it.
_LOWEST_BIT = bytes(byte & 1 for byte in range(256))
_CANDIDATE = b"\1\0\0\1\0\1\1\0"
_WINDOW = 32
_BOUNDARIES = 16


def split(data: bytes) -> list[memoryview]:
    """Split a value into chunks, in order; an empty value has none."""
    view = memoryview(data)
    lowest_bits = data.translate(_LOWEST_BIT)
    scale = _scale(len(data))
    chunks = []
    start = 0
    while start < len(data):
        end = _find_boundary(view, lowest_bits, start, scale)
        chunks.append(view[start:end])
        start = end
    return chunks


def _scale(size: int) -> int:
    """Return by how much the chunks of a value are larger: twice as large for a value four times as large.

    Each chunk costs the server a row, and a change costs a chunk. Versions of a value mostly have the same scale.
    """
    return 1 << max(0, (size.bit_length() - 17) // 2)


def _find_boundary(view: memoryview, lowest_bits: bytes, start: int, scale: int) -> int:
    limit = min(start + _MAX_SIZE * scale, len(view))
    end = start + _MIN_SIZE * scale
    mask = _BOUNDARIES * scale - 1
    while (candidate := lowest_bits.find(_CANDIDATE, end, limit)) >= 0:
        end = candidate + len(_CANDIDATE)
        if not crc32(view[end - _WINDOW : end]) & mask:
            return end
    return limit


def chunk_id(chunk: memoryview, key: bytes) -> UUID:
    """Return the id of a chunk: 128 bits of its BLAKE2b hash (RFC 7693).

    Args:
        chunk: The chunk.
        key: The key of the hash, up to 64 bytes; empty if it has none.
    """
    return UUID(bytes=blake2b(chunk, digest_size=16, key=key).digest())
