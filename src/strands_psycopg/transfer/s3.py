"""The objects of Strands' ``S3SessionManager``."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import boto3  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

from strands_psycopg.errors import TransferError
from strands_psycopg.transfer.layout import SESSION, folder_rows
from strands_psycopg.transfer.rows import Row
from strands_psycopg.transfer.sources import ImportIssues, UnreadableError

# As many as a client has connections, unless told otherwise.
_AT_ONCE = 10


class Client(Protocol):
    """What is used of a client of boto3."""

    def get_object(self, **request: str) -> Any:
        """Give an object."""

    def get_paginator(self, operation_name: str, /) -> Any:
        """Give what lists objects."""


class S3Sessions:
    """The sessions of ``S3SessionManager`` in a bucket, as a source for ``import_sessions``.

    Args:
        bucket: The bucket.
        prefix: The manager's prefix.
        client: A client for S3; by default one with the settings that boto3 finds (``AWS_PROFILE``, ``AWS_REGION``,
            ``AWS_ENDPOINT_URL_S3``, ...).
    """

    def __init__(self, bucket: str, prefix: str = "", *, client: Client | None = None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/".lstrip("/")
        self._client = client

    def sessions(self) -> Generator["_SessionPrefix", None, None]:
        """Give the sessions, sorted by their ids.

        Raises:
            TransferError: The bucket cannot be listed.
        """
        executor = ThreadPoolExecutor(_AT_ONCE, "strands-psycopg-s3")
        try:
            client: Client = boto3.client("s3") if self._client is None else self._client
            for name in _children(client, self._bucket, self._prefix + SESSION):
                if name.endswith("/"):
                    yield _SessionPrefix(client, executor, self._bucket, name)
        except (ClientError, BotoCoreError) as error:
            raise TransferError(f"s3://{self._bucket}/{self._prefix} cannot be read: {_reason(error)}") from error
        finally:
            executor.shutdown(cancel_futures=True)


class _SessionPrefix:
    def __init__(self, client: Client, executor: ThreadPoolExecutor, bucket: str, prefix: str) -> None:
        self._client = client
        self._executor = executor
        self._bucket = bucket
        self._prefix = prefix

    @property
    def session_id(self) -> str:
        return self._prefix.rstrip("/").rpartition("/")[2].removeprefix(SESSION)

    def rows(self, issues: ImportIssues) -> Iterator[Row]:
        """Give the rows, as every source does."""
        return folder_rows(self, issues)

    def name(self, *path: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{'/'.join(path)}"

    def names(self, *path: str) -> list[str]:
        prefix = f"{self._prefix}{'/'.join(path)}/"
        try:
            children = list(_children(self._client, self._bucket, prefix))
        except (ClientError, BotoCoreError) as error:
            raise UnreadableError(f"cannot be listed: {_reason(error)}") from error
        return [child.removeprefix(prefix).rstrip("/") for child in children]

    def read(self, *path: str) -> bytes:
        try:
            response = self._client.get_object(Bucket=self._bucket, Key=self._prefix + "/".join(path))
            data: bytes = response["Body"].read()
        except (ClientError, BotoCoreError) as error:
            missing = isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchKey"
            raise UnreadableError("is missing" if missing else f"cannot be read: {_reason(error)}") from error
        return data

    def readers(self, *path: str, names: Sequence[str]) -> Iterator[Callable[[], bytes]]:
        """Several are fetched at once, ahead of being read."""
        rest = iter(names)
        fetched: deque[Future[bytes]] = deque()
        while True:
            for name in islice(rest, 2 * _AT_ONCE - len(fetched)):
                fetched.append(self._executor.submit(self.read, *path, name))
            if not fetched:
                return
            yield fetched.popleft().result


def _children(client: Client, bucket: str, prefix: str) -> Iterator[str]:
    """Give the keys that begin so, as far as the next slash."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
        yield from sorted(
            [each["Prefix"] for each in page.get("CommonPrefixes", ())]
            + [each["Key"] for each in page.get("Contents", ())]
        )


def _reason(error: ClientError | BotoCoreError) -> str:
    return error.response["Error"]["Code"] if isinstance(error, ClientError) else " ".join(str(error).split())
