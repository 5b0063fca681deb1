from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from uuid import UUID

import pytest

from strands_psycopg import uuids
from strands_psycopg.uuids import uuid7


def test_ids_of_a_thread_sort_in_the_order_in_which_they_were_drawn_though_others_draw_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ThreadPoolExecutor(1) as another:
        ids: list[UUID] = []
        interrupted = iter([True])

        def time_ns() -> int:
            if next(interrupted, False):
                ids.extend(another.submit(uuid7).result() for _ in range(3))
            return 0

        monkeypatch.setattr(uuids, "time", SimpleNamespace(time_ns=time_ns))
        uuid7()
        ids.append(another.submit(uuid7).result())
    assert sorted(ids) == ids
