"""Content-defined chunking: a value is split at boundaries that its content determines.

Whether there is a boundary depends only on the few bytes before it. So if bytes of a value are inserted, removed or
changed, only the chunks around them differ and the later ones stay the same: a snapshot of a conversation shares nearly
all its chunks with the snapshot before.

Each chunk costs the server a row, and a change costs a chunk. Most values change at their ends: a snapshot begins with
its time and grows at the end. So the chunks there are small, and those between are larger, by the size of the value.

The boundaries affect only how much is shared, so the algorithm may change between releases.
"""

from hashlib import blake2b
from uuid import UUID
from zlib import crc32

# In bytes, at the ends of a value; the mean is about 7,000.
_MIN_SIZE = 3072
_MAX_SIZE = 16_384

# In bytes. The first chunk is small, and those that begin within this distance from the end.
_END_SIZE = 49_152

# A boundary is only considered after eleven bytes with these parities: quick to find, and about one in 2,048 bytes,
# whatever the alphabet. One in 2 of these candidates is a boundary, decided by a checksum of the bytes before it.
_PARITY = bytes(f"{byte:b}".count("1") & 1 for byte in range(256))
_CANDIDATE = b"\1\1\0\0\1\0\0\1\0\1\1"
_WINDOW = 32
_CANDIDATES_PER_BOUNDARY = 2


def split(data: bytes) -> list[memoryview]:
    """Split a value into chunks, in order; an empty value has none."""
    view = memoryview(data)
    parities = data.translate(_PARITY)
    scale = _scale(len(data))
    chunks = []
    start = 0
    while start < len(data):
        is_at_an_end = start == 0 or len(data) - start < _END_SIZE
        end = _find_boundary(view, parities, start, 1 if is_at_an_end else scale)
        chunks.append(view[start:end])
        start = end
    return chunks


def _scale(size: int) -> int:
    """Return by how much the chunks between the ends of a value are larger than those at its ends.

    Up to eight times for a value of 512 KiB; above 8 MiB twice as large for a value four times as large.
    """
    return 1 << max(0, min(size.bit_length() - 17, 3), (size.bit_length() - 17) // 2)


def _find_boundary(view: memoryview, parities: bytes, start: int, scale: int) -> int:
    limit = min(start + _MAX_SIZE * scale, len(view))
    end = start + _MIN_SIZE * scale
    mask = _CANDIDATES_PER_BOUNDARY * scale - 1
    while (candidate := parities.find(_CANDIDATE, end, limit)) >= 0:
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
