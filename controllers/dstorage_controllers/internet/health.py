"""Whether the bucket can be used: told by what failed, and found out again by asking until it answers.

After a failure (which obstore's retries have not mended) nothing more is sent but a probe, at growing intervals with jitter,
never more than `LONGEST_PAUSE_S` apart: whoever asks meanwhile is refused at once instead of waiting for a deadline of his own,
and the first probe that is answered ends the outage. Intervals go on growing when the next outage follows at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from dstorage.controller import ControllerStatus
from dstorage.errors import ControllerError, ControllerFull, ControllerUnavailable
from dstorage_controllers.internet.bucket import FAILURES, Fault, fault_of, refusal

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


class Health:
    """The state of one bucket.

    Args:
        name: The controller's name, for messages.
        probe: Finds out whether the bucket takes writes again; raises one of `FAILURES` if not.
        changed: Called after `status` changed.
    """

    def __init__(self, name: str, probe: Callable[[], Awaitable[None]], changed: Callable[[], None]) -> None:
        self._name = name
        self._probe = probe
        self._changed = changed
        self._fault = Fault.NONE
        self._error: BaseException | None = None
        self._pause = FIRST_PAUSE_S
        self._next_probe = 0.0
        self._well_since = 0.0
        self._task: asyncio.Task[None] | None = None
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._closed = False

    @property
    def status(self) -> ControllerStatus:
        """As the store sees it."""
        if self._fault is Fault.NONE:
            return ControllerStatus.OK
        return ControllerStatus.FULL if self._fault is Fault.FULL else ControllerStatus.TEMPORARILY_UNAVAILABLE

    def refuse(self, *, write: bool) -> ControllerError | None:
        """The error to answer with instead of asking the bucket, or None if it can be asked."""
        if self._fault is Fault.NONE or (self._fault is not Fault.DOWN and not write):
            return None
        assert self._error is not None
        error = refusal(self._name, self._error)
        if isinstance(error, ControllerUnavailable):
            error.retry_after = max(0.0, self._next_probe - asyncio.get_running_loop().time()) + FIRST_PAUSE_S
        return error

    def failed(self, error: BaseException) -> ControllerError:
        """A request met `error` (one of `FAILURES`); returns what the store is to be told."""
        now = asyncio.get_running_loop().time()
        if self._task is None and not self._closed:
            if now - self._well_since > LONGEST_PAUSE_S:
                self._pause = FIRST_PAUSE_S
            self._task = asyncio.get_running_loop().create_task(self._ask_until_well())
        self._set(error)
        told = refusal(self._name, error)
        return told if isinstance(told, ControllerFull) else self.refuse(write=True) or told

    async def close(self) -> None:
        """End the probing."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _ask_until_well(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wait = self._pause * self._random.uniform(0.5, 1.0)
            self._pause = min(LONGEST_PAUSE_S, self._pause * 2)
            self._next_probe = loop.time() + wait
            await asyncio.sleep(wait)
            try:
                await self._probe()
            except FAILURES as error:
                self._set(error)
            else:
                break
        self._task = None
        self._well_since = loop.time()
        self._set(None)

    def _set(self, error: BaseException | None) -> None:
        before = self.status
        self._error = error
        self._fault = Fault.NONE if error is None else fault_of(error)
        if self.status is not before:
            self._changed()
