"""Formatting of messages as readable lines, whatever their content.

Content blocks of ``strands.types.content`` have a format of their own; everything else is shown as JSON.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from strands_psycopg.cli.output import format_size

_INDENT = "  "


def format_role(message: Any) -> str:
    """Return the role of a message."""
    return _line(message.get("role", "no role")) if isinstance(message, dict) else "no role"


def format_tokens(message: Any) -> list[str]:
    """Return the token counts that are stored with a message, each as a text."""
    usage = _dict(_dict(message, "metadata"), "usage")
    counts = {
        "in": usage.get("inputTokens"),
        "from the cache": usage.get("cacheReadInputTokens") or None,
        "out": usage.get("outputTokens"),
    }
    return [f"{count:,} tokens {kind}" for kind, count in counts.items() if isinstance(count, int)]


def format_lines(message: Any) -> Iterator[str]:
    """Yield the lines of a message's content; they may contain any character except line feeds."""
    yield from _blocks(message.get("content", []) if isinstance(message, dict) else message)


def format_multi_agent(state: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of what a graph or swarm has stored: its task, each node with its result, and what comes next."""
    if state.get("current_task"):
        yield "task"
        yield from _indent(_blocks(state["current_task"]))
    results = _dict(state, "node_results")
    yield from _node_results(results)
    for kind in ("failed", "interrupted"):
        nodes = state.get(f"{kind}_nodes")
        without_result = [each for each in nodes if each not in results] if isinstance(nodes, list) else []
        if without_result:
            yield f"{kind} nodes {', '.join(map(_line, without_result))}"
    following = state.get("next_nodes_to_execute")
    if isinstance(following, list) and following:
        yield f"next {', '.join(map(_line, following))}"


def _node_results(results: dict[str, Any]) -> Iterator[str]:
    for node_id in results:
        node = _dict(results, node_id)
        time = node.get("execution_time")
        usage = format_tokens({"metadata": {"usage": node.get("accumulated_usage")}})
        head = [f"node {_line(node_id)}", _line(node.get("status", "no status"))]
        yield ", ".join([*head, *([f"{time:,} ms"] if isinstance(time, int) else []), *usage])
        result = _dict(node, "result")
        if result.get("type") == "multiagent_result":
            yield from _indent(_node_results(_dict(result, "results")))
        elif "message" in result:  # of an agent or an exception
            message = result["message"]
            yield from _indent(_text(message) if isinstance(message, str) else format_lines(message))


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
                yield from _indent(_text(value))


def _tool_use(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    yield f"tool call {_line(value.get('name'))} ({_line(value.get('toolUseId'))})"
    yield from _indent(_text(value.get("input")))


def _tool_result(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    yield f"tool result, {_line(value.get('status', 'no status'))} ({_line(value.get('toolUseId'))})"
    yield from _indent(_blocks(value.get("content", [])))


def _reasoning(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    hidden = value.get("redactedContent")
    if hidden is not None:
        yield f"reasoning, hidden by the provider, {_format_data(hidden)}"
    if "reasoningText" in value or hidden is None:
        reasoning = value.get("reasoningText")
        yield "reasoning"
        yield from _indent(_text(reasoning.get("text", "") if isinstance(reasoning, dict) else reasoning))


def _media(kind: str, value: dict[str, Any]) -> Iterator[str]:
    """Yield one line for an image, a video, audio or a document."""
    named = [_line(value[key]) for key in ("format", "name") if value.get(key) is not None]
    source = value.get("source")
    location = _dict(source, "location")
    if _dict(value, "source").get("bytes") is not None:
        origin = _format_data(_dict(value, "source")["bytes"])
    elif "uri" in location:
        origin = f"at {_line(location['uri'])}"
    else:
        origin = _json(source)
    yield f"{' '.join([kind, *named])}, {origin}"


def _cache_point(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    yield f"cache point {_line(value.get('type'))}"


def _guard_content(_kind: str, value: dict[str, Any]) -> Iterator[str]:
    yield "guarded text"
    yield from _indent(_text(_dict(value, "text").get("text", value)))


def _citations(_kind: str, value: dict[str, Any]) -> Iterator[str]:
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
    "image": _media,
    "document": _media,
    "video": _media,
    "audio": _media,
    "cachePoint": _cache_point,
    "guardContent": _guard_content,
    "citationsContent": _citations,
}


def _indent(inner: Iterator[str]) -> Iterator[str]:
    return (_INDENT + line for line in inner)


def _dict(value: Any, key: str) -> dict[str, Any]:
    """Return the dict under a key; an empty one if there is none."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> Iterator[str]:
    yield from value.split("\n") if isinstance(value, str) else [_json(value)]


def _line(value: Any) -> str:
    return value.replace("\n", "\\n") if isinstance(value, str) else _json(value)


def _format_data(data: Any) -> str:
    return format_size(len(data)) if isinstance(data, bytes) else _json(data)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_describe)


def _describe(value: object) -> str:
    return format_size(len(value)) if isinstance(value, bytes) else repr(value)
