"""What is said where the installed Strands is too old for a part of the library."""

import pytest

from strands_psycopg import PostgresMemoryStore, PostgresStorage
from support.memories import has_memory
from support.storage import needs_storage


@pytest.mark.skipif(not needs_storage.args[0], reason="strands-agents from 1.54 on has a storage with a search")
def test_storage_says_which_strands_it_needs() -> None:
    with pytest.raises(ImportError, match=r"^PostgresStorage needs strands-agents 1\.54 or newer"):
        PostgresStorage("postgresql://localhost/agents")


@pytest.mark.skipif(has_memory, reason="strands-agents from 1.46 on has such memory stores")
def test_memory_store_says_which_strands_it_needs() -> None:
    with pytest.raises(ImportError, match=r"^PostgresMemoryStore needs strands-agents 1\.46 or newer"):
        PostgresMemoryStore("notes", "postgresql://localhost/agents")
