"""Temporary unavailability: how long it is remembered, and who waits for its end.

An unavailable chunk is not asked for again before its next try: until then `resolve` answers from the handle. The pause doubles
from try to try, with jitter so that many chunks of one controller do not come back in step. Those who asked to wait
(`wait=seconds`) are tried again when the pause is over, at once when the controller returns, and told at their deadline.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from dstorage.handle import Handle, Status

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 15.0
MAX_REMEMBERED = 4096
"""Unreferenced unavailable handles kept, so that asking again soon is answered from memory."""

LOOKED_AT = 8
"""Of the oldest, to find one that can be forgotten."""


class Patient:
    """Somebody who waits for a chunk until `deadline` (loop time); `tell` is called once, with the handle."""

    __slots__ = ("deadline", "tell")

    def __init__(self, deadline: float, tell: Callable[[Handle], object]) -> None:
        self.deadline = deadline
        self.tell = tell


class Outage:
    """What is known of one unavailable chunk.

    Attributes:
        controller: Name of the controller at fault, or None (memory short).
        attempts: Failures in a row.
        retry_at: Loop time of the next try.
        patients: Who waits.
        timer: Fires at the next try or the next deadline, while anybody waits.
    """

    __slots__ = ("attempts", "controller", "patients", "retry_at", "timer")

    def __init__(self) -> None:
        self.controller: str | None = None
        self.attempts = 0
        self.retry_at = 0.0
        self.patients: list[Patient] = []
        self.timer: asyncio.TimerHandle | None = None


class Outages:
    """All unavailable chunks of one store.

    Args:
        retry: Starts a new try of a handle.
        drop: Takes an unreferenced handle out of the store's table.
    """

    def __init__(self, *, retry: Callable[[Handle], None], drop: Callable[[Handle], None]) -> None:
        self._retry = retry
        self._drop = drop
        self._outages: OrderedDict[Handle, Outage] = OrderedDict()
        self._random = random.Random()  # noqa: S311 - jitter, no secret

    def __len__(self) -> int:
        return len(self._outages)

    def note(self, handle: Handle, controller: str | None, retry_after: float | None) -> float:
        """Another try failed.

        Args:
            handle: Whose.
            controller: Name of the controller at fault, or None.
            retry_after: Seconds after which it says that asking makes sense, or None to back off.

        Returns:
            Loop time of the next try.
        """
        outage = self._outages.get(handle)
        if outage is None:
            if len(self._outages) >= MAX_REMEMBERED:
                self._forget_oldest()
            outage = self._outages[handle] = Outage()
        outage.controller = controller
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(outage.attempts, 16))
        outage.attempts += 1
        pause = retry_after if retry_after is not None else pause * self._random.uniform(0.75, 1.25)
        outage.retry_at = asyncio.get_running_loop().time() + pause
        if outage.patients:
            self._set_timer(handle, outage)
        return outage.retry_at

    def due(self, handle: Handle) -> bool:
        """Whether it is time to ask again; memory may have room again at any moment."""
        outage = self._outages.get(handle)
        return outage is None or outage.controller is None or asyncio.get_running_loop().time() >= outage.retry_at

    def awaited(self, handle: Handle) -> bool:
        """Whether anybody waits for a handle."""
        outage = self._outages.get(handle)
        return outage is not None and bool(outage.patients)

    def wait(self, handle: Handle, patient: Patient) -> None:
        """Let `patient` wait for an unavailable handle."""
        outage = self._outages[handle]
        outage.patients.append(patient)
        self._set_timer(handle, outage)

    def leave(self, handle: Handle, patient: Patient) -> None:
        """`patient` does not want to wait any more (its task was cancelled)."""
        outage = self._outages.get(handle)
        if outage is not None and patient in outage.patients:
            outage.patients.remove(patient)

    def end(self, handle: Handle) -> list[Patient]:
        """It is resolved, lost, deleted or dropped; returns who waited."""
        outage = self._outages.pop(handle, None)
        if outage is None:
            return []
        if outage.timer is not None:
            outage.timer.cancel()
        return outage.patients

    def returned(self, controller: str | None) -> None:
        """A controller is back (None: memory has room again): try everything of it at once."""
        for handle, outage in list(self._outages.items()):
            if outage.controller == controller:
                if outage.patients:
                    self._try(handle)
                else:
                    outage.retry_at = 0.0
                    if not handle.refs:
                        self._drop(handle)

    def _set_timer(self, handle: Handle, outage: Outage) -> None:
        if outage.timer is not None:
            outage.timer.cancel()
        when = min(outage.retry_at, *(patient.deadline for patient in outage.patients))
        outage.timer = asyncio.get_running_loop().call_at(when, self._fire, handle)

    def _fire(self, handle: Handle) -> None:
        outage = self._outages.get(handle)
        if outage is None or not outage.patients or handle.status is Status.WAITING:
            # Somebody else asked meanwhile: the answer tells everybody, or sets the timer anew.
            return
        now = asyncio.get_running_loop().time()
        expired = [patient for patient in outage.patients if patient.deadline <= now]
        outage.patients = [patient for patient in outage.patients if patient.deadline > now]
        for patient in expired:
            patient.tell(handle)
        if outage.patients and self._outages.get(handle) is outage:
            if now >= outage.retry_at:
                outage.timer = None
                self._try(handle)
            else:
                self._set_timer(handle, outage)

    def _try(self, handle: Handle) -> None:
        if handle.status is not Status.WAITING:
            self._retry(handle)

    def _forget_oldest(self) -> None:
        for handle, outage in list(islice(self._outages.items(), LOOKED_AT)):
            if not handle.refs and not outage.patients:
                self._drop(handle)
                return
            # Its turn comes again after all others, so that those in use are not gone through each time.
            self._outages.move_to_end(handle)
