"""A contender's process: does the work that it reads from its standard input, and writes what it measured."""

import importlib
import json
import random
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import storages, works
from benchmarks.model import text

_DOCUMENTS: dict[str, Callable[[], Any]] = {
    "chat": lambda: {"role": "assistant", "content": [{"text": text(100)}], "metadata": {"usage": {"inputTokens": 10}}},
    "tool result": lambda: {
        "role": "user",
        "content": [
            {
                "toolResult": {
                    "toolUseId": "t",
                    "status": "success",
                    "content": [{"json": [{"id": n, "score": n / 7, "name": text(5), "ok": True} for n in range(600)]}],
                }
            }
        ],
    },
    "image": lambda: {
        "role": "user",
        "content": [{"image": {"format": "png", "source": {"bytes": random.Random(1).randbytes(5_000_000)}}}],
    },
}


def _main(name: str, dsn: str, folder: str) -> None:
    contender = importlib.import_module(f"benchmarks.contenders.{name}").Contender(dsn, folder)
    for line in sys.stdin:
        work, numbers = json.loads(line)
        if "document" in numbers:
            numbers["document"] = _DOCUMENTS[numbers["document"]]()
        print(json.dumps(_function(contender, work)(**numbers)), flush=True)
    contender.close()


def _function(contender: Any, work: str) -> Any:
    if hasattr(contender, work):
        return getattr(contender, work)
    function = getattr(works if hasattr(works, work) else storages, work)
    return lambda **numbers: function(contender, **numbers)


if __name__ == "__main__":
    _main(*sys.argv[1:])
