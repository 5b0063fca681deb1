"""What is measured, with whom, and how much of it."""

from typing import Any, NamedTuple

SESSIONS = ("none", "ours", "session_manager", "session_sql", "files", "limit")
STORED = SESSIONS[1:]
OWN = ("ours", "limit")
STORAGES = ("ours", "postgres_storage", "limit")
SERVED = ("ours", "session_manager", "session_sql")

# What is counted on the server, of which works: a name, the function that does it, its arguments.
COUNTS = ("statements", "round trips", "commits", "bytes of WAL")
COUNTED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("turn", "turns", {}),
    ("turn, window full", "turns", {"full": True}),
    ("turn, tool call", "turns", {"tool": True}),
    ("opening of a session", "restores", {"messages": 10}),
)


class Job(NamedTuple):
    """A work.

    Attributes:
        name: What it is called in the results; each measure but the seconds is named behind a colon.
        work: The function that does it.
        numbers: Its arguments.
        contenders: Who does it.
        times: How often in each round, all contenders in turn. What takes a few milliseconds is compared more often,
            since another process's work on the machine may hit one contender only.
        rounds: In how many rounds at most; None for as many as were asked for.
        delay: For a work through a network: how many seconds each answer takes.
    """

    name: str
    work: str
    numbers: dict[str, Any]
    contenders: tuple[str, ...]
    times: int = 1
    rounds: int | None = None
    delay: float | None = None


def jobs(*, quick: bool) -> list[Job]:
    """Return all works, in their order.

    Args:
        quick: So little of each that the figures mean nothing.
    """

    def count(full: int, little: int) -> int:
        return little if quick else full

    few, turns, often = count(15, 2), count(30, 5), count(4, 1)
    return [
        Job("turn", "turns", {"count": turns}, SESSIONS, often),
        Job("turn, tool call", "turns", {"count": turns, "tool": True}, SESSIONS, often),
        Job("turn, window full", "turns", {"count": turns, "full": True}, SESSIONS, often),
        Job("turn by agent()", "turns", {"count": turns, "loop": False}, SESSIONS, often),
        Job("turn, 1 ms away", "turns", {"count": turns}, (*SERVED, "none", "limit"), delay=0.001),
        Job("request", "requests", {"count": few}, SESSIONS, often),
        *(
            Job(
                f"restore of {messages:,}",
                "restores",
                {"messages": messages, "count": 3 if messages > 1000 else 8},
                STORED,
            )
            for messages in (10, 100, count(1_000, 200), count(10_000, 300))
        ),
        *(
            Job(f"append at {messages:,}", "appends", {"messages": messages, "count": count(100, 5)}, OWN, often)
            for messages in (10, count(1_000, 500), count(100_000, 2_000))
        ),
        *(
            Job(f"last 40 of {messages:,}", "last_of", {"messages": messages, "count": few}, OWN, often)
            for messages in (40, count(100_000, 2_000))
        ),
        *(
            Job(kind, "codec", {"document": kind, "count": count(each, 2)}, OWN, rounds=3)
            for kind, each in (("chat", 2_000), ("tool result", 200), ("image", 10))
        ),
        *(
            Job(f"value of {name}", "values", {"size": size, "count": count(each, 3)}, STORAGES)
            for name, size, each in (("1 KB", 1_000, 50), ("100 KB", 100_000, 20), ("1 MB", 1_000_000, 6))
        ),
        Job("snapshot of 1 MB", "snapshots", {"size": count(1_000_000, 50_000), "count": count(10, 3)}, STORAGES),
        *(
            Job(
                f"{agents} agents, {delay * 1000:g} ms",
                "crowd",
                {"agents": agents, "count": 4},
                SERVED,
                rounds=1,
                delay=delay,
            )
            for agents in (count(50, 5),)
            for delay in (0.0, 0.002, 0.05)
        ),
    ]


def late_jobs(*, quick: bool) -> list[Job]:
    """Return the works that leave so much behind that the others must have been done."""
    million, keys = (5_000, 500) if quick else (1_000_000, 100_000)
    some = 200 if quick else 1_000
    return [
        Job(f"append at {million:,}", "appends", {"messages": million, "count": 5 if quick else 100}, OWN),
        Job("memory of 10,000", "memory_of_restore", {"messages": 300 if quick else 10_000}, STORED[:-1], rounds=1),
        Job(f"search of {some:,}", "searches", {"entries": some, "count": 10}, ("ours",), rounds=2),
        Job(f"list of {keys:,}", "lists", {"entries": keys, "count": 5}, STORAGES, rounds=2),
        Job(f"search of {keys:,}", "searches", {"entries": keys, "count": 10}, ("ours",), rounds=2),
    ]
