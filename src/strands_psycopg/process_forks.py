"""Callbacks that reset state in a forked child process, which has its parent's memory but none of its threads."""

import inspect
import os
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

_functions: list[Callable[[], None]] = []
# Not WeakMethods, whose own callbacks fail when the interpreter shuts down.
_methods: "WeakKeyDictionary[object, Callable[[Any], None]]" = WeakKeyDictionary()


def after_fork_in_child(callback: Callable[[], None]) -> None:
    """Register a callback for every child process that is forked from now on.

    Each object can register one bound method, which is called only while the object is alive.
    """
    if inspect.ismethod(callback):
        _methods[callback.__self__] = callback.__func__
    else:
        _functions.append(callback)


def _run_callbacks() -> None:
    for function in _functions:
        function()
    for owner, method in list(_methods.items()):
        method(owner)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_run_callbacks)
