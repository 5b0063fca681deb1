"""Strands' storages, which older versions of Strands do not have."""

import pytest

try:
    import strands.storage.search as _search
except ImportError:
    _search = None  # type: ignore[assignment]

needs_storage = pytest.mark.skipif(_search is None, reason="strands-agents before 1.54 has no storage with a search")
