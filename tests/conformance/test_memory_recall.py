"""How many of sixty questions about two hundred memories are answered by the five that a search returns.

The vectors are of hashed trigrams (see ``support.memories``), which know spelling and no meaning; ``nox -s recall``
measures the same with a language model.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strands_psycopg import PostgresMemoryStore
from strands_psycopg.words import stop_words
from support.databases import Databases
from support.memories import DIMENSIONS, embed_trigrams, has_pgvector, needs_memory, recall

pytestmark = needs_memory

DATA: dict[str, Any] = json.loads(Path(__file__).with_name("memory_recall.json").read_text())


@pytest.fixture
def stores(databases: Databases, server: str) -> Iterator[dict[str, PostgresMemoryStore]]:
    """Stores with all memories, by how they search."""
    if not has_pgvector(server):
        pytest.skip("the server does not have pgvector")
    with (
        databases.create("memory_recall") as dsn,
        PostgresMemoryStore("notes", dsn, embed=embed_trigrams, dimensions=DIMENSIONS) as fused,
    ):
        fused.ensure_schema()
        words = PostgresMemoryStore("notes", fused)
        yield {"words": words, "fused": fused}


@pytest.mark.skipif(not stop_words("simple"), reason="strands-agents before 1.62 has no stop words")
def test_fusion_finds_more_than_words_alone(stores: dict[str, PostgresMemoryStore]) -> None:
    async def measure() -> dict[str, float]:
        await asyncio.gather(*map(stores["fused"].add, DATA["entries"]))
        return {name: await recall(store, DATA["questions"]) for name, store in stores.items()}

    found = asyncio.run(measure())

    # Most questions ask in other words than the memories', so that it takes a model to answer them.
    assert found == {"words": pytest.approx(0.383, abs=0.02), "fused": pytest.approx(0.417, abs=0.02)}
