"""What has to start anew in a forked child, which has its parent's memory but none of its threads."""

import inspect
import os
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

_functions: list[Callable[[], None]] = []
# Not a WeakMethod, whose own callback fails at the end of the interpreter.
_methods: "WeakKeyDictionary[object, Callable[[Any], None]]" = WeakKeyDictionary()


def after_fork_in_child(callback: Callable[[], None]) -> None:
    """Call back in every child forked from now on; a method, one of each object, only for as long as that lives."""
    if inspect.ismethod(callback):
        _methods[callback.__self__] = callback.__func__
    else:
        _functions.append(callback)


def _call_all() -> None:
    for function in _functions:
        function()
    for owner, method in list(_methods.items()):
        method(owner)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_call_all)
