"""A message as lines that a person reads, whatever blocks of content it has and whatever is in them.

What Strands describes in ``strands.types.content`` is shown as what it is; everything else as JSON.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from strands_psycopg.cli.output import size

_INDENT = "  "


def role(message: Any) -> str:
    """Give who says it."""
    return _line(message.get("role", "nobody")) if isinstance(message, dict) else "nobody"


def tokens(message: Any) -> list[str]:
    """Give how many tokens it took, if that was stored with it."""
    usage = _dict(_dict(message, "metadata"), "usage")
    counts = {
        "in": usage.get("inputTokens"),
        "from the cache": usage.get("cacheReadInputTokens") or None,
        "out": usage.get("outputTokens"),
    }
    return [f"{count:,} tokens {which}" for which, count in counts.items() if isinstance(count, int)]


def lines(message: Any) -> Iterator[str]:
    """Give a message's content, line by line; the lines may hold any character but a line feed."""
    yield from _blocks(message.get("content", []) if isinstance(message, dict) else message)


def _blocks(content: Any) -> Iterator[str]:
    for block in content if isinstance(content, list) else [content]:
        if not isinstance(block, dict) or not block:
            yield from _text(block)
            continue
        for kind, value in block.items():
            if kind in ("text", "json"):
                yield from _text(value)
            elif kind in _KINDS and isinstance(value, dict):
                yield from _KINDS[kind](kind, value)
            else:
                yield f"{_line(kind)}:"
                yield from _indented(_text(value))


def _tool_use(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    yield f"tool call {_line(value.get('name'))} ({_line(value.get('toolUseId'))})"
    yield from _indented(_text(value.get("input")))


def _tool_result(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    yield f"tool result, {_line(value.get('status', 'no status'))} ({_line(value.get('toolUseId'))})"
    yield from _indented(_blocks(value.get("content", [])))


def _reasoning(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    hidden = value.get("redactedContent")
    if hidden is not None:
        yield f"reasoning, hidden by the provider, {_amount(hidden)}"
    if "reasoningText" in value or hidden is None:
        said = value.get("reasoningText")
        yield "reasoning"
        yield from _indented(_text(said.get("text", "") if isinstance(said, dict) else said))


def _medium(kind: str, value: dict[str, Any]) -> Iterator[str]:
    """Give a picture, a film, a sound or a document in one line."""
    named = [_line(value[key]) for key in ("format", "name") if value.get(key) is not None]
    source = value.get("source")
    location = _dict(source, "location")
    if _dict(value, "source").get("bytes") is not None:
        whereabouts = _amount(_dict(value, "source")["bytes"])
    elif "uri" in location:
        whereabouts = f"at {_line(location['uri'])}"
    else:
        whereabouts = _json(source)
    yield f"{' '.join([kind, *named])}, {whereabouts}"


def _cache_point(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    yield f"cache point {_line(value.get('type'))}"


def _guarded(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    yield "guarded text"
    yield from _indented(_text(_dict(value, "text").get("text", value)))


def _cited(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    yield from _blocks(value.get("content", []))
    citations = value.get("citations", [])
    for citation in citations if isinstance(citations, list) else [citations]:
        if isinstance(citation, dict):
            yield f"cites {_line(citation.get('title'))}, {_json(citation.get('location'))}"
        else:
            yield f"cites {_json(citation)}"


_KINDS: dict[str, Callable[[str, dict[str, Any]], Iterator[str]]] = {
    "toolUse": _tool_use,
    "toolResult": _tool_result,
    "reasoningContent": _reasoning,
    "image": _medium,
    "document": _medium,
    "video": _medium,
    "audio": _medium,
    "cachePoint": _cache_point,
    "guardContent": _guarded,
    "citationsContent": _cited,
}


def _indented(inner: Iterator[str]) -> Iterator[str]:
    return (_INDENT + line for line in inner)


def _dict(value: Any, key: str) -> dict[str, Any]:
    """Give the dict that is under a key; an empty one if there is none."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> Iterator[str]:
    yield from value.split("\n") if isinstance(value, str) else [_json(value)]


def _line(value: Any) -> str:
    return value.replace("\n", "\\n") if isinstance(value, str) else _json(value)


def _amount(data: Any) -> str:
    return size(len(data)) if isinstance(data, bytes) else _json(data)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_of_bytes)


def _of_bytes(value: object) -> str:
    return size(len(value)) if isinstance(value, bytes) else repr(value)
