import itertools
import json
import re
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from strands_psycopg import LeaseLostError, PostgresSessionRepository, SessionExistsError, SessionNotFoundError
from strands_psycopg.errors import BadFileError, TransferError
from strands_psycopg.transfer import (
    IncompleteTransferError,
    SessionLines,
    TransferResult,
    export_session,
    import_session,
    import_sessions,
    session_ids,
)
from strands_psycopg.transfer.stored_sessions import StoredSessions
from support import transfers
from support.pausing import pause_before
from support.scale import scale
from support.storage import has_storage
from support.tables import blocked
from support.waiting import wait_until


@pytest.fixture
def other(empty_dsn: str, pool_options: dict[str, Any]) -> Iterator[PostgresSessionRepository]:
    """Yield a repository on another database."""
    with PostgresSessionRepository(empty_dsn, **pool_options) as repository:
        repository.ensure_schema()
        yield repository


@pytest.fixture
def other_connection(other: PostgresSessionRepository, empty_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        yield connection


def test_session_is_identical_in_another_database(
    repository: PostgresSessionRepository,
    connection: psycopg.Connection[Any],
    other: PostgresSessionRepository,
    other_connection: psycopg.Connection[Any],
) -> None:
    transfers.fill(repository)
    transfers.age(connection)
    assert import_session(other, export_session(repository, "s")) == transfers.FILLED
    assert transfers.rows(other_connection) == transfers.rows(connection)
    assert transfers.restored(other) == transfers.restored(repository)
    assert list(export_session(other, "s")) == list(export_session(repository, "s"))


def test_every_line_is_ascii_and_json_for_any_program(repository: PostgresSessionRepository) -> None:
    def refuse(literal: str) -> None:
        raise AssertionError(literal)

    transfers.fill(repository)
    lines = list(export_session(repository, "s"))
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert all(line.isascii() and line.endswith("}\n") and line.count("\n") == 1 for line in lines)
    assert not re.search(
        r"\\ud[89ab]..(?!\\ud[c-f])", "".join(line.replace('"\\\\', "") for line in lines if "exact" not in line)
    )
    log = ["agent"] + ["message"] * len(transfers.ODD)
    kinds = ["session", *log, *["message_variant"] * 4, *["checkpoint"] * 2, *log, "checkpoint"]
    kinds += ["multi_agent", "multi_agent", *["value"] * transfers.VALUES, "end"]
    assert [record["kind"] for record in records] == kinds
    assert {key: records[0][key] for key in ("format", "version", "session_id", "session_type")} == {
        "format": "strands-psycopg",
        "version": 1,
        "session_id": "s",
        "session_type": "AGENT",
    }
    assert records[-1] == {"kind": "end", **transfers.COUNTS}
    # What JSON can express is written as it is, in its own order of keys.
    assert json.dumps(records[2]["message"]) == json.dumps(transfers.message(0, transfers.ODD[0]).message)
    assert "message_exact" not in records[2]


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=5)
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["\0", "\ud800", "\u2028", "order [", "bytes ", "aGk=", "__bytes_encoded__"]),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(["b", "a", "é", "\0", "\ud800", "__bytes_encoded__", "data"]) | st.text(max_size=3),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=scale(10, 60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=documents)
def test_any_document_survives(repository: PostgresSessionRepository, document: object) -> None:
    session_id = next(_NUMBERS)
    repository.create_session(Session(session_id, SessionType.AGENT))
    repository.create_agent(session_id, SessionAgent("a", {"document": document}, {"document": document}))
    repository.create_message(session_id, "a", transfers.message(0, document, redacted=True))
    lines = list(export_session(repository, session_id))
    import_session(repository, [line.rstrip() for line in lines], session_id=f"copy of {session_id}")
    copied = list(export_session(repository, f"copy of {session_id}"))
    assert copied[1:] == lines[1:]
    before, after = (repository.list_messages(each, "a") for each in (session_id, f"copy of {session_id}"))
    assert repr(after) == repr(before)
    assert repr(repository.read_agent(f"copy of {session_id}", "a")) == repr(repository.read_agent(session_id, "a"))


_NUMBERS = map(str, itertools.count())


def test_the_same_session_is_unchanged(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    transfers.fill(repository)
    before = transfers.rows(connection)
    assert import_session(repository, export_session(repository, "s")) == TransferResult(unchanged=1)
    assert transfers.rows(connection) == before


_CHANGES = {
    "session": "UPDATE strands_sessions SET updated_at = updated_at + interval '1 us'",
    "agent's state": "UPDATE strands_agents SET state = '{}', state_exact = NULL WHERE agent_id = 'ö'",
    "order of keys": "UPDATE strands_agents SET state_exact = NULL WHERE agent_id = 'a'",
    "message": "UPDATE strands_messages SET message = '{}', message_exact = NULL WHERE message_id = 3",
    "redaction": "UPDATE strands_messages SET redact_message = NULL, redact_message_exact = NULL",
    "one message more": "INSERT INTO strands_messages SELECT session_id, agent_id, 7, message, message_exact, NULL, "
    "NULL, write_id, created_at, updated_at FROM strands_messages WHERE agent_id = 'a' AND message_id = 0",
    "one message less": "DELETE FROM strands_messages WHERE agent_id = 'ö' AND message_id = 6",
    "one agent less": "DELETE FROM strands_agents WHERE agent_id = 'ö'",
    "one agent more": "INSERT INTO strands_agents SELECT session_id, 'more', state, state_exact, "
    "conversation_manager_state, conversation_manager_state_exact, _internal_state, _internal_state_exact, "
    "memory_window, write_id, created_at, updated_at FROM strands_agents WHERE agent_id = 'a'",
    "window": "UPDATE strands_agents SET memory_window = NULL WHERE agent_id = 'ö'",
    "another window": "UPDATE strands_agents SET memory_window = jsonb_set(memory_window, '{next}', '5')",
    "variant": "UPDATE strands_message_variants SET message_exact = NULL WHERE variant_id = 2",
    "variant's message": "UPDATE strands_message_variants SET message_id = 1 WHERE variant_id = 2",
    "one variant less": "DELETE FROM strands_message_variants WHERE variant_id = 4",
    "one variant more": "INSERT INTO strands_message_variants SELECT session_id, agent_id, 5, message_id, message, "
    "message_exact, created_at FROM strands_message_variants WHERE variant_id = 4",
    "checkpoint": "UPDATE strands_checkpoints SET data = '{}', data_exact = NULL",
    "checkpoint's window": 'UPDATE strands_checkpoints SET memory_window = \'{"items": [[0, 1]], "next": null}\'',
    "checkpoint's time": "UPDATE strands_checkpoints SET created_at = created_at + interval '1 us'",
    "one checkpoint less": "DELETE FROM strands_checkpoints WHERE agent_id = 'ö'",
    "one checkpoint more": "INSERT INTO strands_checkpoints SELECT session_id, 'ö', snapshot_id, message_count, "
    "memory_window, variant_ids, data, data_exact, write_id, created_at FROM strands_checkpoints WHERE agent_id = 'a'",
    "multi-agent": "UPDATE strands_multi_agents SET state = '{\"a\": 2}', state_exact = NULL",
    "one multi-agent less": "DELETE FROM strands_multi_agents WHERE multi_agent_id = 'swarm'",
    "one multi-agent more": "INSERT INTO strands_multi_agents SELECT session_id, 'more', state, state_exact, write_id, "
    "created_at, updated_at FROM strands_multi_agents WHERE multi_agent_id = 'swarm'",
}


def test_another_session_of_that_id_is_refused_and_stays(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    transfers.fill(repository)
    lines = list(export_session(repository, "s"))
    assert import_session(repository, lines).unchanged == 1
    for name, change in _CHANGES.items():
        connection.execute(change.encode())
        before = transfers.rows(connection)
        refused = None
        try:
            import_session(repository, lines)
        except SessionExistsError as error:
            refused = str(error)
        assert refused is not None, name
        assert "importing session 's': a session of this id already exists with other content" in refused
        assert transfers.rows(connection) == before
        repository.delete_session("s")
        import_session(repository, lines)


def test_session_that_is_deleted_while_it_is_compared_is_stored(
    repository: PostgresSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers.fill(repository)
    lines = list(export_session(repository, "s"))
    reached, go = pause_before(monkeypatch, StoredSessions(repository)._session)
    with ThreadPoolExecutor() as threads:
        import_ = threads.submit(import_session, repository, lines)
        assert reached.wait(30)
        repository.delete_session("s")
        go.set()
        assert import_.result(30) == transfers.FILLED
    assert list(export_session(repository, "s")) == lines


def test_several_sessions_follow_each_other(
    repository: PostgresSessionRepository, other: PostgresSessionRepository
) -> None:
    for session_id in ("tenant-1", "tenant-2", "u", "tenant"):
        transfers.fill(repository, session_id)
    ids = list(session_ids(repository, "tenant-"))
    assert ids == ["tenant-1", "tenant-2"]
    assert list(session_ids(repository)) == ["tenant", "tenant-1", "tenant-2", "u"]
    lines = [line for session_id in ids for line in export_session(repository, session_id)]
    counts: list[int] = []
    result = import_sessions(other, SessionLines(["\n", *lines, "\n"]), progress=counts.append)
    assert result == transfers.FILLED + transfers.FILLED
    assert sum(counts) == result.messages
    assert list(session_ids(other)) == ids
    with pytest.raises(TransferError, match="more than one session; use import_sessions"):
        import_session(other, lines)


def test_missing_session_is_not_exported(repository: PostgresSessionRepository) -> None:
    with pytest.raises(SessionNotFoundError, match="reading session 's': the session does not exist"):
        export_session(repository, "s")


def refused(repository: PostgresSessionRepository, lines: list[str]) -> str:
    """Import lines that must be refused, and return the error's text."""
    with pytest.raises(TransferError) as caught:
        import_session(repository, lines, session_id="copy")
    assert repository.read_session("copy") is None
    return str(caught.value)


def test_cut_off_stream_is_refused_wherever_it_is_cut(repository: PostgresSessionRepository) -> None:
    transfers.fill(repository)
    lines = list(export_session(repository, "s"))
    for end in range(1, len(lines)):
        assert "is cut off before its last line" in refused(repository, lines[:end])
        torn = "".join(lines[: end + 1])[: -len(lines[end]) // 2].splitlines(keepends=True)
        assert re.search(f"is cut off before its last line|line {len(lines)} cannot be read", refused(repository, torn))
    assert "there is nothing to import" in refused(repository, [])


def test_missing_repeated_and_swapped_lines_are_refused(repository: PostgresSessionRepository) -> None:
    transfers.fill(repository)
    lines = list(export_session(repository, "s"))
    for number in range(1, len(lines) - 1):
        assert refused(repository, lines[:number] + lines[number + 1 :])
        assert refused(repository, [*lines[:number], lines[number], *lines[number:]])
    # Messages, variants, checkpoints, and a message after a variant.
    for number, refused_line in ((2, 3), (9, 11), (13, 15), (8, 10)):
        swapped = [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]]
        reason = f"does not have the next message, variant or checkpoint of its agent in line {refused_line};"
        assert reason in refused(repository, swapped)
    if has_storage:
        swapped = [*lines[:-3], lines[-2], lines[-3], lines[-1]]
        reason = f"does not have the next value of its storage in line {len(lines) - 1};"
        assert reason in refused(repository, swapped)


# Line, what is replaced in it, by what, and the reason that is named.
_BAD_LINES = [
    (0, '"version": 1', '"version": 2', "version 2 of the format, and this package reads version 1; install"),
    (0, "strands-psycopg", "strands", "line 1 cannot be read: its format is not strands-psycopg"),
    (0, '"AGENT"', '"ROBOT"', "line 1 cannot be read: 'ROBOT' is not a valid SessionType"),
    (0, '"created_at": "', '"created_at": "x', "line 1 cannot be read: created_at is not a time"),
    (1, '"a"', '"\\u0000"', "line 2 cannot be read: agent_id must not contain NUL"),
    (2, '"message": {', '"massage": {', "line 3 lacks 'message'"),
    (2, '"message": {', '"message": [{', "line 3 cannot be read: Expecting"),
    (2, '"message": {', '"message": 1, "x": {', "line 3 cannot be read: message must be a JSON object, not int"),
    (2, '"message_id": 0', '"message_id": true', "line 3 cannot be read: message_id must be an integer"),
    (2, '"kind": "message"', '"kind": "massage"', "line 3 cannot be read: its kind is unknown"),
    (1, '"created_at"', '"made_at"', "line 2 lacks 'created_at'"),
    (1, '"memory_window"', '"window"', "line 2 lacks 'memory_window'"),
    (1, '"memory_window": {', '"memory_window": 1, "x": {', "memory_window must be a JSON object, not int"),
    (1, '"items": [1, ', '"items": [true, ', "line 2 cannot be read: variant_id must be an integer, not bool"),
    (1, '"items": [1, ', '"items": [0, ', "line 2 cannot be read: variant_id must be 1 or more, not 0"),
    (
        1,
        '"items": [',
        '"items": {}, "x": [',
        "line 2 cannot be read: items of memory_window must be a list, not dict",
    ),
    (
        1,
        "[4, 5]",
        "[5, 5]",
        "line 2 cannot be read: a range of memory_window must be [first, stop] with first < stop",
    ),
    (1, "[4, 5]", "[4, 5, 6]", "line 2 cannot be read: a range of memory_window must be [first, stop] with first"),
    (1, '"next": 6', '"next": "6"', "line 2 cannot be read: next of memory_window must be an integer, not str"),
    (9, '"variant_id": 1', '"variant_id": 0', "line 10 cannot be read: variant_id must be 1 or more, not 0"),
    (9, '"message_id": null, ', "", "line 10 lacks 'message_id'"),
    (10, '"message_id": 3', '"message_id": -3', "line 11 cannot be read: message_id must be 0 or more, not -3"),
    (
        10,
        '"agent_id": "a"',
        '"agent_id": "b"',
        "does not have the next message, variant or checkpoint of its agent",
    ),
    (13, "-7000-", "-4000-", "line 14 cannot be read: snapshot_id must be a UUID of version 7"),
    (13, '"message_count": 5', '"message_count": 0.5', "line 14 cannot be read: message_count must be an integer"),
    (
        13,
        '"memory_window": {',
        '"memory_window": null, "x": {',
        "memory_window must be a JSON object, not NoneType",
    ),
    (14, '"data": {', '"data": [], "x": {', "line 15 cannot be read: data must be a JSON object, not list"),
    (5, '_exact": "', '_exact": 5, "x": "', "line 6 cannot be read: message_exact must be a string"),
    (5, '_exact": "', '_exact": "x', "line 6 cannot be read: Expecting"),
]


def test_bad_line_is_named(repository: PostgresSessionRepository) -> None:
    transfers.fill(repository)
    lines = list(export_session(repository, "s"))
    for number, old, new, reason in _BAD_LINES:
        assert old in lines[number]
        bad = lines[number].replace(old, new, 1)
        # With a new id, the error is not about the id of the header.
        error = refused(repository, [*lines[:number], bad, *lines[number + 1 :]])
        assert reason in error
        assert "text 0" not in error


def test_lines_outside_of_a_session_are_refused(repository: PostgresSessionRepository) -> None:
    transfers.fill(repository)
    lines = list(export_session(repository, "s"))
    with pytest.raises(BadFileError, match="line 1 belongs to no session") as caught:
        import_session(repository, lines[1:])
    assert caught.value.file == "line 1"


def test_one_bad_session_does_not_prevent_importing_the_others(
    repository: PostgresSessionRepository, other: PostgresSessionRepository
) -> None:
    for session_id in "abc":
        transfers.fill(repository, session_id)
    exported = {session_id: list(export_session(repository, session_id)) for session_id in "abc"}
    lines = [*exported["a"], *exported["b"][:5], *exported["c"]]
    with pytest.raises(
        IncompleteTransferError, match="1 session was not imported: session 'b', which begins in line"
    ) as caught:
        import_sessions(other, SessionLines(lines))
    assert caught.value.result == transfers.FILLED + transfers.FILLED
    assert list(caught.value.failures) == ["b"]
    assert list(session_ids(other)) == ["a", "c"]
    again = import_sessions(other, SessionLines([*exported["a"], *exported["b"], *exported["c"]]))
    assert again == transfers.FILLED + TransferResult(unchanged=2)


def test_export_does_not_contain_what_is_added_meanwhile(repository: PostgresSessionRepository) -> None:
    transfers.fill(repository)
    expected = list(export_session(repository, "s"))
    lines = export_session(repository, "s")
    taken = [next(lines), next(lines)]
    repository.create_message("s", "a", transfers.message(len(transfers.ODD)))
    repository.create_agent("s", SessionAgent("new", {}, {}))
    repository.update_agent("s", SessionAgent("ö", {"changed": 1}, {"removed_message_count": 9}))
    assert taken + list(lines) == expected


def test_export_is_of_one_snapshot(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any], watcher: psycopg.Connection[Any]
) -> None:
    transfers.fill(repository)
    expected = list(export_session(repository, "s"))
    with ThreadPoolExecutor() as executor:
        # Agents are read by then, and multi-agents are not.
        connection.execute("BEGIN; LOCK TABLE strands_multi_agents")
        export = executor.submit(lambda: list(export_session(repository, "s")))
        wait_until(lambda: blocked(watcher) == 1)
        connection.execute(_CHANGES["one multi-agent more"].encode())
        connection.execute("COMMIT")
        assert export.result() == expected


@pytest.mark.parametrize(
    "loss",
    [
        "DELETE FROM strands_sessions",
        "DELETE FROM strands_agents WHERE agent_id = 'ö'",
        "DELETE FROM strands_messages WHERE agent_id = 'ö' AND message_id = 2",
        "UPDATE strands_sessions SET write_id = gen_random_uuid()",
        "UPDATE strands_agents SET created_at = created_at + interval '1 s' WHERE agent_id = 'a'",
    ],
)
def test_export_of_a_session_that_is_deleted_meanwhile_has_no_last_line(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any], loss: str
) -> None:
    transfers.fill(repository)
    lines = export_session(repository, "s")
    taken = [next(lines), next(lines)]
    connection.execute(loss.encode())
    with pytest.raises(TransferError, match="session 's', or an agent or messages of it, was deleted while"):
        taken.extend(lines)
    assert '"end"' not in taken[-1]


def test_import_under_a_lease_is_fenced(
    repository: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    transfers.fill(repository)
    lines = list(export_session(repository, "s"))
    with repository.lease("copy"):
        assert import_session(repository, lines, session_id="copy") == transfers.FILLED
    with repository.lease("other"):
        connection.execute("UPDATE strands_leases SET term = gen_random_uuid()")
        with pytest.raises(LeaseLostError, match="importing session 'other': another holder"):
            import_session(repository, lines, session_id="other")
    assert repository.read_session("other") is None


def test_export_and_import_take_little_memory(
    repository: PostgresSessionRepository, other: PostgresSessionRepository, connection: psycopg.Connection[Any]
) -> None:
    repository.create_session(Session("s", SessionType.AGENT))
    repository.create_agent("s", SessionAgent("a", {}, {}))
    repository.create_message("s", "a", SessionMessage({"role": "user", "content": [{"text": "x" * 32_000}]}, 0))
    for statement in (
        "INSERT INTO strands_messages SELECT session_id, agent_id, n, message, NULL, NULL, NULL, write_id, created_at, "
        "updated_at FROM strands_messages, generate_series(1, 249) AS n",
        "INSERT INTO strands_message_variants SELECT session_id, agent_id, message_id + 1, NULL, message, NULL, "
        "created_at FROM strands_messages",
        "INSERT INTO strands_checkpoints SELECT session_id, agent_id, "
        "(lpad(message_id::text, 12, '0') || '70008000000000000000')::uuid, 1, '{\"items\": [], \"next\": null}', "
        "'{}', message, NULL, write_id, created_at FROM strands_messages",
    ):
        connection.execute(statement.encode())
    tracemalloc.start()
    try:
        result = import_session(other, export_session(repository, "s"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (result.messages, result.message_variants, result.checkpoints) == (250, 250, 250)
    assert peak < 16 * 2**20
