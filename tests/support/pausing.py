"""Transactions that pause in the middle, so that something else can happen then."""

import threading
from typing import Any

import psycopg
import pytest


def pause_before(monkeypatch: pytest.MonkeyPatch, statement: bytes) -> tuple[threading.Event, threading.Event]:
    """Make the first thread that is about to send a statement wait.

    Returns:
        An event that is set when one waits, and the event that lets it continue.
    """
    reached, go = threading.Event(), threading.Event()
    execute = psycopg.Cursor.execute

    def pausing(cursor: Any, query: Any, *arguments: Any, **kwargs: Any) -> Any:
        if query == statement and not reached.is_set():
            reached.set()
            assert go.wait(30)
        return execute(cursor, query, *arguments, **kwargs)

    monkeypatch.setattr(psycopg.Cursor, "execute", pausing)
    return reached, go
