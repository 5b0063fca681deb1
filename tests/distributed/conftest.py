"""Tests on a Citus cluster are skipped without one."""

import pytest


@pytest.fixture(autouse=True)
def _cluster(distributed_dsn: str | None) -> None:
    if distributed_dsn is None:
        pytest.skip("needs --dsn, an empty database of a Citus cluster")
