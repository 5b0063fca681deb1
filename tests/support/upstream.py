"""A pytest plugin for Strands' own tests: their storages and memory stores are ours, in a PostgreSQL of the run's own.

They guard against overwriting, which must not be in the way of anything that Strands does with one storage.

A test is skipped that asks for an option which only the backend has: a search strategy, a sandbox, a client's settings.
"""

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b
from typing import Any, NamedTuple

import pytest
import strands.storage
import strands.storage.s3_storage
import strands.vended_memory_stores.test_memory_store.store
from strands.storage.storage import _EPHEMERAL

from strands_psycopg import PostgresMemoryStore, PostgresSessionRepository, PostgresStorage
from strands_psycopg.embedded import postgres

_numbers = itertools.count()

_OF_OBJECTS = "looks into the storage's object"
_OF_FILES = "looks for its files, or keeps them from being written"
_OF_S3 = "looks into its bucket, or has none"
_OF_THE_BACKEND = {
    "test_clear": _OF_OBJECTS,
    "test_client_created_with_boto_session": _OF_OBJECTS,
    "test_delete_error_raises_storage_error": _OF_S3,
    "test_list_error_raises_storage_error": _OF_S3,
    "test_namespace_clear_only_clears_prefix": _OF_OBJECTS,
    "test_namespace_keeps_subclass_overrides_and_shares_client": _OF_OBJECTS,
    "test_namespace_preserves_for_sandbox": _OF_OBJECTS,
    "test_namespace_returns_local_file_storage": _OF_OBJECTS,
    "test_namespace_shares_client": _OF_OBJECTS,
    "test_normpath_prevents_trailing_slash_in_namespace": _OF_OBJECTS,
    "test_prefix_scopes_keys": _OF_S3,
    "test_read_error_raises_storage_error": _OF_FILES,
    "test_skips_keys_where_read_returns_none": _OF_OBJECTS,
    "test_write_atomic_cleanup_on_replace_failure": _OF_FILES,
    "test_write_creates_directories": _OF_FILES,
    "test_write_error_raises_storage_error": "breaks the disk or the bucket, which are not used",
}


class _Substitute(PostgresStorage):
    repository: PostgresSessionRepository

    def __init__(self, place: str, options: dict[str, Any]) -> None:
        if given := sorted(name for name, value in options.items() if value is not None):
            pytest.skip(f"PostgresStorage has no {', '.join(given)}")
        super().__init__(self.repository, prefix=place, guard_overwrites=True)


# Strands keeps what a class of this mark holds in snapshots, and the names of the others.
class InMemoryStorage(_Substitute):
    """Each object has values of its own."""

    _ephemeral = _EPHEMERAL

    def __init__(self, **options: Any) -> None:
        super().__init__(f"memory/{next(_numbers)}", options)


class LocalFileStorage(_Substitute):
    """Objects of one folder share their values."""

    def __init__(self, base_dir: str = ".", **options: Any) -> None:
        super().__init__(f"files/{blake2b(base_dir.rstrip('/').encode()).hexdigest()}", options)


class S3Storage(_Substitute):
    """Each object has a bucket of its own."""

    def __init__(self, bucket: str, *, prefix: str = "", boto_session: object = None, **options: Any) -> None:
        super().__init__(f"buckets/{bucket}/{next(_numbers)}/{prefix}", options)


class _Added(NamedTuple):
    id: str


class TestMemoryStore(PostgresMemoryStore):
    """Objects of one file share their memories."""

    __test__ = False
    repository: PostgresSessionRepository

    def __init__(self, *, name: str, path: str | None = None, **options: Any) -> None:
        for field, value in (("name", name), ("path", path)):
            if value is not None and not value.strip():
                raise ValueError(f"{field} must not be empty")
        if "persist" in options:
            pytest.skip("PostgresMemoryStore always persists")
        super().__init__(name, self.repository, owner=blake2b(str(path).encode()).hexdigest(), **options)

    async def add(self, content: str, metadata: Any = None) -> Any:
        """Return the id as that class does."""
        return _Added(await super().add(content, metadata))


_OF_THE_FILE = "looks into its file, or is about nothing but that"
_OF_THE_MEMORY_STORE = {
    "test_accepts_null_metadata_as_absent": _OF_THE_FILE,
    "test_defaults_to_a_sanitized_path_under_the_home_memory_dir": _OF_THE_FILE,
    "test_ingests_extracted_facts_through_add": _OF_THE_FILE,
    "test_keeps_all_entries_under_concurrent_writes": _OF_THE_FILE,
    "test_loads_a_file_written_in_the_shared_camelcase_format": _OF_THE_FILE,
    "test_manager_add_writes_to_store": _OF_THE_FILE,
    "test_persists_human_readable_json": _OF_THE_FILE,
    "test_raises_clear_error_on_corrupt_file": _OF_THE_FILE,
    "test_raises_clear_error_on_malformed_record": _OF_THE_FILE,
    "test_raises_clear_error_on_non_object_metadata": _OF_THE_FILE,
    "test_raises_clear_error_on_wrong_shape_file": _OF_THE_FILE,
    "test_raises_clear_error_when_path_is_unreachable": _OF_THE_FILE,
    "test_ranks_higher_overlap_first_with_relevance_score": "counts words, where ours has scores from 0 to 1",
    "test_reused_across_separate_event_loops": _OF_THE_FILE,
    "test_uses_the_monkeypatchable_id_generator": "replaces a function of that class",
}

_SUBSTITUTES: dict[type, type] = {
    strands.vended_memory_stores.test_memory_store.store.TestMemoryStore: TestMemoryStore,
    strands.storage.InMemoryStorage: InMemoryStorage,
    strands.storage.LocalFileStorage: LocalFileStorage,
    strands.storage.s3_storage.S3Storage: S3Storage,
}

_stack = ExitStack()


def pytest_configure() -> None:
    """Start the server, and put the substitutes wherever a storage has been imported to."""
    repository = _stack.enter_context(PostgresSessionRepository(_stack.enter_context(postgres())))
    repository.ensure_schema()
    _Substitute.repository = TestMemoryStore.repository = repository
    for module, name, value in list(_names()):
        if isinstance(value, type) and value in _SUBSTITUTES:
            setattr(module, name, _SUBSTITUTES[value])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect tests to fail that look for what only the backend has."""
    for item in items:
        reason = _OF_THE_BACKEND.get(item.name)
        if "/test_memory_store/" in item.nodeid:
            reason = _OF_THE_MEMORY_STORE.get(item.name)
        elif "/storage/" not in item.nodeid:
            reason = None
        if reason:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_unconfigure() -> None:
    """Stop the server."""
    _stack.close()


def _names() -> Iterator[tuple[Any, str, object]]:
    for module in list(sys.modules.values()):
        if module.__name__.partition(".")[0] == "strands":
            yield from ((module, name, value) for name, value in list(vars(module).items()))
