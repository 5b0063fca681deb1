from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest

from strands_psycopg.errors import StorageConflictError
from strands_psycopg.storage.seen_writes import MISSING, SeenWrites

FIRST, SECOND, THIRD = uuid4(), uuid4(), uuid4()


def replace(seen: SeenWrites, write_id: UUID, error: Exception | None = None) -> list[UUID] | None:
    """Replace the value of ``k``; return the write ids that its row may have."""
    with seen.replacing("k", write_id) as expected:
        if error is not None:
            raise error
    return expected


def read(seen: SeenWrites, write_id: UUID) -> None:
    seen.refresh("k", write_id, last=seen.last("k"))


def test_nothing_is_expected_of_a_key_that_was_never_seen() -> None:
    assert replace(SeenWrites(), FIRST) is None


@pytest.mark.parametrize("write_id", [FIRST, MISSING])
def test_the_write_that_was_read_or_made_last_is_expected_or_the_calls_own(write_id: UUID) -> None:
    read(seen := SeenWrites(), write_id)
    assert replace(seen, SECOND) == [write_id, SECOND]
    assert replace(seen, write_id) == [SECOND, write_id]
    assert replace(seen, THIRD) == [write_id, THIRD]
    read(seen, FIRST)
    assert replace(seen, THIRD) == [FIRST, THIRD]


def test_keys_are_independent() -> None:
    seen = SeenWrites()
    with seen.replacing("other", FIRST):
        assert replace(seen, SECOND) is None
    assert replace(seen, THIRD) == [SECOND, THIRD]


def test_a_refused_write_was_not_made() -> None:
    read(seen := SeenWrites(), FIRST)
    with pytest.raises(StorageConflictError):
        replace(seen, SECOND, StorageConflictError("refused", key="k"))
    assert replace(seen, THIRD) == [FIRST, THIRD]


def test_a_failed_write_may_have_been_made() -> None:
    read(seen := SeenWrites(), FIRST)
    with pytest.raises(OSError, match="lost"):
        replace(seen, SECOND, OSError("lost"))
    assert replace(seen, THIRD) == [FIRST, SECOND, THIRD]
    assert replace(seen, FIRST) == [THIRD, FIRST]


def test_a_failed_write_of_a_key_that_was_never_seen_leaves_it_so() -> None:
    seen = SeenWrites()
    with pytest.raises(OSError, match="lost"):
        replace(seen, FIRST, OSError("lost"))
    assert replace(seen, SECOND) is None


def test_a_read_that_a_write_has_overtaken_is_not_remembered() -> None:
    seen = SeenWrites()
    last = seen.last("k")
    replace(seen, SECOND)
    seen.refresh("k", FIRST, last=last)
    assert replace(seen, THIRD) == [SECOND, THIRD]


@pytest.mark.parametrize("write_id", [FIRST, MISSING])
def test_a_read_that_another_read_has_overtaken_is_not_remembered(write_id: UUID) -> None:
    read(seen := SeenWrites(), write_id)
    last = seen.last("k")
    read(seen, write_id)
    seen.refresh("k", SECOND, last=last)
    assert replace(seen, THIRD) == [write_id, THIRD]


def test_writes_of_one_key_follow_one_another_and_others_do_not_wait() -> None:
    seen, order = SeenWrites(), list[str]()

    def write(key: str) -> list[UUID] | None:
        with seen.replacing(key, SECOND) as expected:
            order.append(key)
        return expected

    with ThreadPoolExecutor() as executor:
        with seen.replacing("k", FIRST):
            writes = [executor.submit(write, "k") for _ in range(5)]
            assert executor.submit(write, "other").result() is None
            order.append("end")
        expected = [each.result() or [] for each in writes]
    assert order == ["other", "end", *["k"] * 5]
    assert sorted(expected) == sorted([[FIRST, SECOND], *[[SECOND, SECOND]] * 4])


def test_a_refused_or_failed_write_lets_the_next_one_go_on() -> None:
    seen = SeenWrites()
    for error in (StorageConflictError("refused", key="k"), OSError("lost"), KeyboardInterrupt()):
        with pytest.raises(type(error)), seen.replacing("k", FIRST):
            raise error
    assert replace(seen, SECOND) is None
