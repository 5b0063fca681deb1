"""Errors survive copying and pickling, as from a worker process; objects of which a copy could not work refuse."""

import copy
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any
from uuid import uuid4

import pytest

import strands_psycopg
from strands_psycopg import (
    MissingExtraError,
    PostgresSessionManager,
    PostgresSessionRepository,
    PostgresStorage,
    SessionBusyError,
    StrandsPsycopgError,
)
from strands_psycopg.transfer import IncompleteTransferError, TransferResult
from support.storage import has_storage


def _by_pickle(protocol: int) -> Callable[[Any], Any]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle protocol {protocol}": _by_pickle(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
}


def _classes(base: type[StrandsPsycopgError]) -> Iterator[type[StrandsPsycopgError]]:
    for each in base.__subclasses__():
        if each.__module__.startswith(f"{strands_psycopg.__name__}."):
            yield from (each, *_classes(each))


def _all_classes() -> list[type[StrandsPsycopgError]]:
    for module in pkgutil.walk_packages(strands_psycopg.__path__, f"{strands_psycopg.__name__}."):
        if not module.name.endswith(".__main__"):
            import_module(module.name)
    return sorted({StrandsPsycopgError, *_classes(StrandsPsycopgError)}, key=lambda each: each.__name__)


def _new(kind: type[StrandsPsycopgError]) -> StrandsPsycopgError:
    names = [
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    return kind("what was refused", **{name: f"the {name}" for name in names})


def _facts(error: BaseException) -> tuple[object, ...]:
    return type(error), str(error), repr(error), error.args, vars(error), getattr(error, "msg", None)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", _all_classes(), ids=lambda kind: kind.__name__)
def test_error_survives_with_its_attributes(kind: type[StrandsPsycopgError], copied: Callable[[Any], Any]) -> None:
    error = _new(kind)

    assert _facts(copied(error)) == _facts(error)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_error_with_a_cause_survives(copied: Callable[[Any], Any]) -> None:
    try:
        raise _new(SessionBusyError) from LookupError("in a lambda", lambda: None)
    except SessionBusyError as error:
        raised = error

    assert _facts(copied(raised)) == _facts(raised)


class ApplicationError(SessionBusyError):
    """Its constructor has other arguments, and it is given an attribute later."""

    def __init__(self, user: str, *, session_id: str) -> None:
        super().__init__(f"{user} must wait", session_id=session_id, since="12:00", until="12:01")
        self.user = user


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_subclass_with_another_constructor_survives(copied: Callable[[Any], Any]) -> None:
    error = ApplicationError("alice", session_id="s")
    error.seen_by = ["bob"]  # type: ignore[attr-defined]

    assert _facts(copied(error)) == _facts(error)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_errors_in_an_error_survive(copied: Callable[[Any], Any]) -> None:
    failures = {"s": _new(SessionBusyError), "t": _new(MissingExtraError)}
    error = IncompleteTransferError("2 sessions", result=TransferResult(sessions=1), failures=failures)

    found = copied(error)

    assert found.result == error.result
    assert {name: _facts(each) for name, each in found.failures.items()} == {
        name: _facts(each) for name, each in failures.items()
    }


def _uncopyable() -> Iterator[tuple[object, str]]:
    repository = PostgresSessionRepository("host=db.invalid")
    yield repository, "build one from its DSN in another process"
    yield repository.lease("s"), "call lease()"
    # Its constructor would connect.
    yield PostgresSessionManager.__new__(PostgresSessionManager), "build another manager"
    if has_storage:
        storage = PostgresStorage(repository)
        yield storage, "build one in another process"
        yield storage.namespace("n"), "build one in another process"


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_object_of_which_a_copy_could_not_work_refuses_with_advice(copied: Callable[[Any], Any]) -> None:
    for each, advice in _uncopyable():
        with pytest.raises(TypeError) as refusal:
            copied(each)

        text = str(refusal.value)
        assert text.startswith(f"a {type(each).__name__} cannot be copied or pickled, since it ")
        assert advice in text


@pytest.mark.skipif(not has_storage, reason="needs strands-agents 1.54 or later")
def test_namespaces_of_a_subclass_keep_its_attributes() -> None:
    class Own(PostgresStorage):
        label = "class"

    storage = Own("host=db.invalid", prefix=f"{uuid4()}")
    storage.label = "of the object"

    view = storage.namespace("n")

    assert (type(view), view.label) == (Own, "of the object")
