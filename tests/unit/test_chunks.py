import base64
import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strands_psycopg.storage.chunks import chunk_id, split
from support.scale import scale

KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "conversation": lambda rng: json.dumps(
        [{"role": "user", "content": [{"text": "".join(rng.choices("etaoin shrdlu", k=900))}]} for _ in range(300)]
    ).encode(),
    "numbers": lambda rng: json.dumps([rng.random() for _ in range(15_000)]).encode(),
    "hexadecimal": lambda rng: rng.randbytes(150_000).hex().encode(),
    "base64": lambda rng: base64.b64encode(rng.randbytes(200_000)),
    "chinese": lambda rng: "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(100_000)).encode(),
    "bases": lambda rng: "".join(rng.choices("ACGT", k=300_000)).encode(),
    "binary": lambda rng: rng.randbytes(300_000),
}


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest) -> bytes:
    return KINDS[request.param](random.Random(7))


@settings(max_examples=scale(30, 300))
@given(st.binary(), st.integers(0, 3000), st.binary(max_size=40))
def test_joined_chunks_are_the_value(head: bytes, times: int, unit: bytes) -> None:
    value = head + unit * times + head
    chunks = split(value)
    assert b"".join(chunks) == value
    assert all(1 <= len(chunk) <= 131_072 for chunk in chunks)
    assert all(len(chunk) >= 3072 for chunk in chunks[:-1])


def test_chunks_of_every_kind_of_content_have_a_few_kilobytes(data: bytes) -> None:
    assert 4000 <= len(data) / len(split(data)) <= 28_000


def test_content_without_boundaries_is_split_at_the_maximum_size() -> None:
    assert [len(chunk) for chunk in split(bytes(40_000))] == [16_384, 16_384, 7_232]
    assert max(len(chunk) for chunk in split(b"f" * 80_000)) <= 16_384


def new_bytes(before: bytes, after: bytes) -> int:
    known = set(split(before))
    return sum(len(chunk) for chunk in split(after) if chunk not in known)


# What may differ: the rest of the chunk that changed, and the chunks up to the next boundary that both values share.
FEW = 150_000


@pytest.mark.parametrize("removed", [1, 700, 3_011])
def test_removing_bytes_at_the_front_keeps_later_chunks(data: bytes, removed: int) -> None:
    assert new_bytes(data, data[removed:]) < FEW


def test_appending_bytes_keeps_earlier_chunks(data: bytes) -> None:
    assert new_bytes(data, data + b"and one more" * 50) < FEW


def test_changing_bytes_in_the_middle_keeps_the_chunks_on_both_sides(data: bytes) -> None:
    assert new_bytes(data, data[:100_001] + b"changed" + data[100_500:]) < FEW


def test_an_id_depends_on_content_and_key() -> None:
    chunk, other = memoryview(b"chunk"), memoryview(b"other")
    assert chunk_id(chunk, b"key") == chunk_id(memoryview(b"a chunk")[2:], b"key")
    assert len({chunk_id(chunk, b"key"), chunk_id(other, b"key"), chunk_id(chunk, b"")}) == 3
