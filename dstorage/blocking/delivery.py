"""Where callbacks run: in a thread of the store's own, on a chosen event loop, in an executor, or wherever a function puts them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from dstorage.errors import InvalidArgumentError

Deliver = asyncio.AbstractEventLoop | Executor | Callable[[Callable[[], object]], object]
"""An event loop, an executor, or what takes a function and has it called (``queue.put``); the last is called on the store's
loop, so it must not wait."""


def check_deliver(deliver: Deliver | None) -> None:
    """Return if `deliver` is a place where callbacks can run, or None.

    Raises:
        InvalidArgumentError: It is not.
    """
    if not (deliver is None or isinstance(deliver, (asyncio.AbstractEventLoop, Executor)) or callable(deliver)):
        raise InvalidArgumentError(
            f"deliver={deliver!r}: give an event loop, an executor, or what takes a function and has it called (queue.put)"
        )


class Delivery:
    """Calls callbacks where they belong.

    Args:
        default: Where, when a call does not say; None is one thread of the store's own.
        report: Is told of what a callback raised, where it was raised.
    """

    def __init__(self, default: Deliver | None, report: Callable[[BaseException], None]) -> None:
        self._default = default
        self._report = report
        self._own: ThreadPoolExecutor | None = None
        self._own_thread: int | None = None

    def send(self, function: Callable[[], object], deliver: Deliver | None) -> None:
        """Have `function` called (on the store's loop); what the place itself refuses is reported."""

        def guarded() -> None:
            try:
                function()
            except Exception as error:
                self._report(error)

        place = deliver if deliver is not None else self._default
        try:
            if place is None:
                if self._own is None:
                    self._own = ThreadPoolExecutor(1, thread_name_prefix="dstorage-callbacks", initializer=self._begin)
                place = self._own
            if isinstance(place, asyncio.AbstractEventLoop):
                place.call_soon_threadsafe(guarded)
            elif isinstance(place, Executor):
                place.submit(guarded)
            else:
                place(guarded)
        except BaseException as error:  # What exits here would end the turn of the loop, which is not its own.
            self._report(error)

    def _begin(self) -> None:
        self._own_thread = threading.get_ident()

    def close(self) -> None:
        """Return when the store's own thread has made its last call, unless this is that thread."""
        if self._own is not None:
            self._own.shutdown(wait=threading.get_ident() != self._own_thread)
