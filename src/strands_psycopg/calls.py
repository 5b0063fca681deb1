"""Calls that a thread runs for a caller that waits, and that may be interrupted meanwhile."""

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class CallInterruptedError(Exception):
    """The caller of this thread's call was interrupted, so the call must end."""


class Call(Generic[_T]):
    """One call, which is run once or not at all.

    A signal handler may interrupt its caller between any two instructions. So caller and thread share only locks that
    one instruction acquires or releases.

    Args:
        work: What to do; it runs with the context variables of the thread that creates the call.
        notify: Tells the caller that the call has ended; called in the thread, once.
        stall: Called in the thread, with the call, each time that it begins to wait for something other than the
            result of a statement.

    Attributes:
        error: What ``work`` raised, once the call has ended.
        interrupted: Whether the caller was interrupted.
        has_ended: Whether the call has ended.
    """

    def __init__(
        self, work: Callable[[], _T], notify: Callable[[], object], stall: "Callable[[Call[Any]], object]"
    ) -> None:
        self._notify = notify
        self._stall = stall
        self._work = work
        self._context = contextvars.copy_context()
        self._unclaimed = threading.Lock()
        self._uninterrupted = threading.Lock()
        self._uninterrupted.acquire()
        self._result: Any = None
        self.error: BaseException | None = None
        self.interrupted = False
        self.has_ended = False

    def claim(self) -> bool:
        """Return whether this is the first claim; only its caller may run and end the call."""
        return self._unclaimed.acquire(blocking=False)

    def run(self) -> None:
        """Do the work in this thread, and keep its result or error; ``end`` follows."""
        _current.call = self
        try:
            self._result = self._context.run(self._work)
        except BaseException as error:
            self.error = error
        finally:
            _current.call = None

    def end(self) -> None:
        """Notify the caller that the call has ended."""
        self.has_ended = True
        self._notify()

    def result(self) -> _T:
        """Return what the work returned, or raise what it raised."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            result: _T = self._result
            return result
        finally:
            del error  # its traceback refers to this frame

    def interrupt(self) -> None:
        """Make the call end soon: from now on it neither pauses nor sends statements."""
        self.interrupted = True
        if self._uninterrupted.locked():
            self._uninterrupted.release()

    def stall(self) -> None:
        """Report that this call is going to wait for something other than the result of a statement."""
        self._stall(self)

    def pause(self, seconds: float) -> None:
        """Wait in the call's thread, at most until the call is interrupted."""
        self.stall()
        if self._uninterrupted.acquire(timeout=seconds):
            self._uninterrupted.release()


_current = threading.local()


def current_call() -> Call[Any] | None:
    """Return the call that this thread runs, or None."""
    return getattr(_current, "call", None)


def is_interrupted() -> bool:
    """Return whether the caller of this thread's call was interrupted."""
    call = current_call()
    return call is not None and call.interrupted


def report_stall() -> None:
    """Report that the call of this thread, if there is one, is going to wait for something other than a result."""
    call = current_call()
    if call is not None:
        call.stall()


def check_interrupted() -> None:
    """Raise ``CallInterruptedError`` if the caller of this thread's call was interrupted."""
    if is_interrupted():
        raise CallInterruptedError


def pause(seconds: float) -> None:
    """Wait, but no longer once this thread's call is interrupted."""
    call = current_call()
    if call is None:
        time.sleep(seconds)
    else:
        call.pause(seconds)
