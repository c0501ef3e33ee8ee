"""The blocking event stream: `dstorage.EventStream` for any thread."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from dstorage.blocking.loop import Call, LoopThread
from dstorage.errors import ClosedError
from dstorage.events import Event
from dstorage.events import EventStream as AsyncEventStream


class EventStream:
    """An iterator over events from the moment it was made; use it as a context manager or `close` it.

    It ends with the store, or when nobody has it any more. One thread reads it; any may close it.
    """

    def __init__(self, loop: LoopThread, inner: AsyncEventStream) -> None:
        self._loop = loop
        self._inner = inner

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self._inner.take()
        if event is None:
            # The store, and with it the loop, may have ended.
            with contextlib.suppress(ClosedError):
                event = self._loop.call(self._begin)
        if event is None:
            raise StopIteration
        return event

    def _begin(self, call: Call[Event | None]) -> None:
        # Not ended by `LoopThread.cancel_calls`: what happens while the store is being closed is to be seen as well.
        call.run(self._following())

    async def _following(self) -> Event | None:
        return await anext(self._inner, None)

    @property
    def dropped(self) -> int:
        """Events lost because the reader was too slow."""
        return self._inner.dropped

    def close(self) -> None:
        """Get no more events; an iteration under way ends after what has arrived."""
        with contextlib.suppress(ClosedError):
            self._loop.post(self._inner.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
