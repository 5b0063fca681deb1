"""Objects that are closed at the end of a block."""

import asyncio
from types import TracebackType

from typing_extensions import Self


class Closeable:
    """Base class of objects that ``with`` and ``async with`` close at the end of their block."""

    def close(self) -> None:
        """Close the object."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # It may wait for connections that are being made, and for threads that end.
        await asyncio.to_thread(self.close)
