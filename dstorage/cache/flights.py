"""Computations under way, so that of many who want one result, one computes it."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from dstorage.cache.keys import Key


class Abandoned(Exception):
    """The one who computed was cancelled or interrupted: who waited has to go on alone."""


class Flight:
    """One computation.

    Attributes:
        result: What it comes to; not to be cancelled by who waits for it.
        owner: The thread or task that computes.
    """

    __slots__ = ("owner", "result")

    def __init__(self, owner: object) -> None:
        self.result: Future[Any] = Future()
        # A future that runs is not cancelled when one of those who wait for it is.
        self.result.set_running_or_notify_cancel()
        self.owner = owner


class Flights:
    """The computations of one function, for any thread and loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Key, Flight] = {}

    def join(self, key: Key, owner: object) -> tuple[Flight, bool]:
        """The computation for `key`, and whether it is the caller (`owner`) who has to make it, and to call `land` at its end."""
        with self._lock:
            flight = self._under_way.get(key)
            if flight is not None:
                return flight, False
            flight = self._under_way[key] = Flight(owner)
            return flight, True

    def land(self, key: Key, flight: Flight, result: Any = None, error: BaseException | None = None) -> None:
        """Give the result to all who wait; an error that is not the function's own makes one of them compute."""
        with self._lock:
            del self._under_way[key]
        if error is None:
            flight.result.set_result(result)
        elif isinstance(error, Exception):
            flight.result.set_exception(error)
        else:
            flight.result.set_exception(Abandoned())
