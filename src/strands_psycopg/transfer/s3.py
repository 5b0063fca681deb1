"""Import from the S3 objects of Strands' ``S3SessionManager``."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, Protocol

import boto3  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

from strands_psycopg.errors import TransferError
from strands_psycopg.transfer.layout import SESSION_PREFIX, session_rows
from strands_psycopg.transfer.rows import Row
from strands_psycopg.transfer.sources import ImportIssues, UnreadableError

# The default size of a client's connection pool.
_MAX_REQUESTS = 10


class S3Client(Protocol):
    """The methods of a boto3 client that are used here."""

    def get_object(self, **request: str) -> Any:
        """Return an object."""

    def get_paginator(self, operation_name: str, /) -> Any:
        """Return a paginator that lists objects."""


class S3Sessions:
    """The sessions of ``S3SessionManager`` in a bucket, as a source for ``import_sessions``.

    Args:
        bucket: The bucket.
        prefix: The manager's prefix.
        client: A boto3 client for S3; by default one with the settings that boto3 finds (``AWS_PROFILE``,
            ``AWS_REGION``, ``AWS_ENDPOINT_URL_S3``, ...).
    """

    def __init__(self, bucket: str, prefix: str = "", *, client: S3Client | None = None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/".lstrip("/")
        self._client = client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} bucket={self._bucket!r} prefix={self._prefix!r}>"

    def sessions(self) -> Generator["_S3Session", None, None]:
        """Yield the sessions, ordered by id.

        Raises:
            TransferError: The bucket cannot be listed, or has no sessions there.
        """
        executor = ThreadPoolExecutor(_MAX_REQUESTS, "strands-psycopg-s3")
        try:
            client: S3Client = boto3.client("s3") if self._client is None else self._client
            keys = _list_keys(client, self._bucket, self._prefix + SESSION_PREFIX)
            names = (name for name in keys if name.endswith("/"))
            first = next(names, None)
            if first is None:
                raise TransferError(
                    f"s3://{self._bucket}/{self._prefix} has no {SESSION_PREFIX}* folders; name the bucket and prefix "
                    "that the S3SessionManager has"
                )
            for name in chain([first], names):
                yield _S3Session(client, executor, self._bucket, name)
        except (ClientError, BotoCoreError) as error:
            raise TransferError(f"s3://{self._bucket}/{self._prefix} cannot be read: {_error_reason(error)}") from error
        finally:
            executor.shutdown(cancel_futures=True)


class _S3Session:
    raw = False

    def __init__(self, client: S3Client, executor: ThreadPoolExecutor, bucket: str, prefix: str) -> None:
        self._client = client
        self._executor = executor
        self._bucket = bucket
        self._prefix = prefix

    @property
    def session_id(self) -> str:
        return self._prefix.rstrip("/").rpartition("/")[2].removeprefix(SESSION_PREFIX)

    def rows(self, issues: ImportIssues) -> Iterator[Row]:
        """Yield the rows, as ``SourceSession.rows`` does."""
        return session_rows(self, issues)

    def full_name(self, *path: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{'/'.join(path)}"

    def list_names(self, *path: str) -> list[str]:
        prefix = f"{self._prefix}{'/'.join(path)}/"
        try:
            keys = list(_list_keys(self._client, self._bucket, prefix))
        except (ClientError, BotoCoreError) as error:
            raise UnreadableError(f"cannot be listed: {_error_reason(error)}") from error
        return [key.removeprefix(prefix).rstrip("/") for key in keys]

    def read(self, *path: str) -> bytes:
        try:
            response = self._client.get_object(Bucket=self._bucket, Key=self._prefix + "/".join(path))
            data: bytes = response["Body"].read()
        except (ClientError, BotoCoreError) as error:
            missing = isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchKey"
            raise UnreadableError("is missing" if missing else f"cannot be read: {_error_reason(error)}") from error
        return data

    def readers(self, *path: str, names: Sequence[str]) -> Iterator[Callable[[], bytes]]:
        """Yield the readers. Several objects are fetched concurrently, ahead of being read."""
        rest = iter(names)
        fetched: deque[Future[bytes]] = deque()
        while True:
            for name in islice(rest, 2 * _MAX_REQUESTS - len(fetched)):
                fetched.append(self._executor.submit(self.read, *path, name))
            if not fetched:
                return
            yield fetched.popleft().result


def _list_keys(client: S3Client, bucket: str, prefix: str) -> Iterator[str]:
    """Yield the keys that start with a prefix, each up to the next slash."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
        yield from sorted(
            [each["Prefix"] for each in page.get("CommonPrefixes", ())]
            + [each["Key"] for each in page.get("Contents", ())]
        )


def _error_reason(error: ClientError | BotoCoreError) -> str:
    return error.response["Error"]["Code"] if isinstance(error, ClientError) else " ".join(str(error).split())
