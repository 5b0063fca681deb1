"""How the server carried out statements, as its module ``auto_explain`` reports to the client."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

_SETTINGS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
}


def options(plan_cache_mode: str) -> str:
    """Return the options of a connection whose statements are to be explained.

    Args:
        plan_cache_mode: "force_generic_plan" for the plans that prepared statements come to, "force_custom_plan" for
            those that look at the parameters.
    """
    return " ".join(f"-c {name}={value}" for name, value in (*_SETTINGS.items(), ("plan_cache_mode", plan_cache_mode)))


class Plans:
    """The plans of what the connections of a pool have run."""

    def __init__(self) -> None:
        self._plans: list[dict[str, Any]] = []

    def configure(self, connection: psycopg.Connection[Any]) -> None:
        """Listen to a connection; for the pool to call."""
        connection.add_notice_handler(self._take)

    def _take(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        text = diagnostic.message_primary or ""
        if text.startswith("duration:"):
            self._plans.append(json.loads(text[text.index("{") :])["Plan"])

    @contextmanager
    def of(self) -> Iterator["Touched"]:
        """Yield what is touched in this block."""
        self._plans.clear()
        touched = Touched()
        yield touched
        for plan in self._plans:
            touched.add(plan)


class Touched:
    """What statements have touched.

    Attributes:
        rows: How many rows of each table were looked at, those that a filter refused among them.
        scanned: Tables that were read from one end to the other.
    """

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.scanned: set[str] = set()

    def add(self, node: dict[str, Any]) -> None:
        """Take in a plan's node and those below it."""
        if "Relation Name" in node and "Scan" in node["Node Type"]:
            seen = node["Actual Rows"] + sum(node.get(f"Rows Removed by {by}", 0) for by in ("Filter", "Index Recheck"))
            table = node["Relation Name"].removeprefix("strands_")
            self.rows[table] += math.ceil(seen * node["Actual Loops"])
            if node["Node Type"] == "Seq Scan" and node["Actual Loops"]:
                self.scanned.add(table)
        for child in node.get("Plans", []):
            self.add(child)
