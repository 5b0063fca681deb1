"""Strands' storages, which older versions of Strands do not have."""

import pytest

try:
    import strands.storage.search as _search
except ImportError:
    _search = None  # type: ignore[assignment]

has_storage = _search is not None
needs_storage = pytest.mark.skipif(not has_storage, reason="strands-agents before 1.54 has no storage with a search")
