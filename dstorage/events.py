"""The event stream: what happens to chunks and controllers, for those who want to watch.

Costs one truth test per event when nobody listens. A stream that is not read fast enough drops its oldest events and
says how many; it never slows the store.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from dstorage.arguments import checked_count

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

    It ends with the store, or when nobody has it any more, as after a `break` out of ``async for event in store.events()``. Where
    several tasks read one stream, each event goes to one of them.
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
            # The task that waits may be known to nobody but what it waits for.
            self._events.awaited.append(self)
            try:
                await self._changed.wait()
            finally:
                self._events.awaited.remove(self)
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
        self._events.forget(self)
        self._changed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Events:
    """Those who listen.

    Attributes:
        streams: Weakly, so that one that was left without being closed neither keeps events nor costs anything.
        awaited: Streams that a task waits for, as often as one does.
    """

    def __init__(self) -> None:
        self.streams: list[weakref.ref[EventStream]] = []
        self.awaited: list[EventStream] = []

    def subscribe(self, limit: int) -> EventStream:
        """A new stream that holds at most `limit` unread events.

        Raises:
            InvalidArgumentError: `limit` is no number of events that could be kept.
        """
        limit = checked_count(
            "limit", limit, lambda limit: 1 <= limit <= sys.maxsize, "how many unread events to keep, at least 1"
        )
        stream = EventStream(self, limit)
        self.streams.append(weakref.ref(stream, self.streams.remove))
        return stream

    def forget(self, stream: EventStream) -> None:
        """A stream takes no more; a second call does nothing."""
        with suppress(ValueError):
            self.streams.remove(weakref.ref(stream))

    def emit(self, kind: Kind, id: int = 0, detail: str = "") -> None:
        """Tell everybody; test `streams` first."""
        event = Event(kind, id, detail)
        for stream in self._living():
            stream.put(event)

    def close(self) -> None:
        """End all streams."""
        for stream in self._living():
            stream.close()

    def _living(self) -> list[EventStream]:
        # Of a copy: any thread may let go of a stream meanwhile.
        return [stream for known in tuple(self.streams) if (stream := known()) is not None]
