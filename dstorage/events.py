"""The event stream: what happens to chunks and controllers, for those who want to watch.

Costs one truth test per event when nobody listens. A stream that is not read fast enough drops its oldest events and
says how many; it never slows the store.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from dstorage.errors import InvalidArgumentError

Kind = Literal[
    "created",
    "resolved",
    "evicted",
    "written",
    "moved",
    "copied",
    "healed",
    "deleted",
    "lost",
    "unavailable",
    "controller",
    "commit",
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What: "created", "resolved" (brought into memory), "evicted" (left it), "written" (to a controller), "moved" or "copied" (to
            another controller), "healed" (written anew from a copy), "deleted", "lost", "unavailable" (could not be brought into memory now),
            "controller" (has another status), "commit" (made).
        id: The chunk concerned, or 0.
        detail: evicted: the reason ("room": for other contents; "limit": of the budget, of cached chunks or of handles; "critical": the
            machine is out of memory); written, moved, copied, healed: the controller's name; lost, unavailable: why; controller:
            "name: status".
    """

    kind: Kind
    id: int = 0
    detail: str = ""


class EventStream:
    """An asynchronous iterator over events from the moment it was made; use it as a context manager or `close` it.

    It ends with the store. Where several tasks read one stream, each event goes to one of them.
    """

    def __init__(self, events: Events, limit: int) -> None:
        self._events = events
        self._queue: deque[Event] = deque(maxlen=limit)
        self._changed = asyncio.Event()
        """Something has arrived, or the stream was closed."""
        self._closed = False
        self.dropped = 0
        """Events lost because the reader was too slow."""

    def put(self, event: Event) -> None:
        """Append one event (for the store)."""
        if len(self._queue) == self._queue.maxlen:
            self.dropped += 1
        self._queue.append(event)
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while (event := self.take()) is None:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return event

    def take(self) -> Event | None:
        """The next event if one has arrived, else None; for any thread."""
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    def close(self) -> None:
        """Get no more events; an iteration under way ends after what has arrived."""
        self._closed = True
        if self in self._events.streams:
            self._events.streams.remove(self)
        self._changed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Events:
    """Those who listen."""

    def __init__(self) -> None:
        self.streams: list[EventStream] = []

    def subscribe(self, limit: int) -> EventStream:
        """A new stream that holds at most `limit` unread events.

        Raises:
            InvalidArgumentError: `limit` is less than 1.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidArgumentError(f"limit={limit!r}: give how many unread events to keep, at least 1")
        stream = EventStream(self, limit)
        self.streams.append(stream)
        return stream

    def emit(self, kind: Kind, id: int = 0, detail: str = "") -> None:
        """Tell everybody; test `streams` first."""
        event = Event(kind, id, detail)
        for stream in self.streams:
            stream.put(event)

    def close(self) -> None:
        """End all streams."""
        for stream in list(self.streams):
            stream.close()
