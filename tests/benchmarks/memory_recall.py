"""How many of sixty questions about two hundred memories are answered by the first five results: ``nox -s recall``.

By words, by vectors of a small language model, and by both. It starts a server of its own.
"""

import asyncio
import json
import sys
from pathlib import Path

from benchmarks.minilm import DIMENSIONS, MiniLM
from strands_psycopg import PostgresMemoryStore
from strands_psycopg.embedded import postgres
from support.memories import recall

_DATA = Path(__file__).parents[1] / "conformance" / "memory_recall.json"

# After how many entries to print how far it is.
_REPORTED = 20


async def _measure(store: PostgresMemoryStore, words: PostgresMemoryStore, english: PostgresMemoryStore) -> None:
    data = json.loads(_DATA.read_text())
    entries, questions = data["entries"], data["questions"]
    for number, entry in enumerate(entries, start=1):
        for each in (store, english):
            await each.add(entry)
        if number % _REPORTED == 0:
            print(f"added {number} of {len(entries)} entries", file=sys.stderr, flush=True)
    print("| search | recall@5 |\n| --- | --: |", flush=True)
    print(f"| words | {await recall(words, questions):.3f} |", flush=True)
    print(f"| vectors | {await recall(store, questions, by_vectors=True):.3f} |", flush=True)
    print(f"| both | {await recall(store, questions):.3f} |", flush=True)
    print(f'| both, `text_search_config="english"` | {await recall(english, questions):.3f} |', flush=True)


def _main() -> None:
    embed = MiniLM()
    with postgres() as dsn, PostgresMemoryStore("notes", dsn, embed=embed, dimensions=DIMENSIONS) as store:
        store.ensure_schema()
        english = PostgresMemoryStore(
            "english", store, embed=embed, dimensions=DIMENSIONS, text_search_config="english"
        )
        asyncio.run(_measure(store, PostgresMemoryStore("notes", store), english))


if __name__ == "__main__":
    _main()
