"""Whether a server can be used: told by what failed, and found out again by asking until it answers.

After a failure nothing more is sent but a probe, at growing intervals with jitter, never more than `Manners.longest_pause` apart:
whoever asks meanwhile is refused at once instead of waiting for a time-out of his own, and the first probe that the server
takes ends the outage. Intervals go on growing when the next outage follows at once, so that a server at its limit is not
pestered.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dstorage.controller import ControllerStatus
from dstorage.errors import ControllerError, ControllerFull, ControllerUnavailable


class Fault(enum.Enum):
    """What a server does not do."""

    NONE = "none"
    FULL = "full"
    """It takes no more bytes; all else works."""
    WRITES = "writes"
    """It takes no changes (a replica, a full disk, missing rights); reading works."""
    DOWN = "down"


_STATUS = {
    Fault.NONE: ControllerStatus.OK,
    Fault.FULL: ControllerStatus.FULL,
    Fault.WRITES: ControllerStatus.READ_ONLY,
    Fault.DOWN: ControllerStatus.TEMPORARILY_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Manners:
    """How servers of one kind fail, and how they are asked again.

    Attributes:
        failures: What asking can raise.
        fault_of: What the server can still do after one of these, or after a reply that is an error.
        refusal: What the store is told of it, given the controller's name.
        first_pause: Seconds until the first probe, at most.
        longest_pause: Seconds between probes, at most.
    """

    failures: tuple[type[BaseException], ...]
    fault_of: Callable[[BaseException], Fault]
    refusal: Callable[[str, BaseException], ControllerError]
    first_pause: float
    longest_pause: float


class Health:
    """The state of one server.

    Args:
        name: The controller's name, for messages.
        manners: How it fails.
        probe: Finds out whether it takes writes again; raises one of its failures if not.
        changed: Called after `status` changed.
    """

    def __init__(
        self, name: str, manners: Manners, probe: Callable[[], Awaitable[None]], changed: Callable[[], None]
    ) -> None:
        self._name = name
        self._manners = manners
        self._probe = probe
        self._changed = changed
        self._fault = Fault.NONE
        self._error: BaseException | None = None
        self._pause = manners.first_pause
        self._next_probe = 0.0
        self._well_since = 0.0
        self._task: asyncio.Task[None] | None = None
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._closed = False

    @property
    def status(self) -> ControllerStatus:
        """As the store sees it."""
        return _STATUS[self._fault]

    @property
    def trouble(self) -> str | None:
        """What the store is told of the fault there is."""
        return None if self._error is None else str(self._manners.refusal(self._name, self._error))

    def refuse(self, *, write: bool) -> ControllerError | None:
        """The error to answer with instead of asking the server, or None if it can be asked."""
        if self._fault is Fault.NONE or (self._fault is not Fault.DOWN and not write):
            return None
        assert self._error is not None
        error = self._manners.refusal(self._name, self._error)
        if isinstance(error, ControllerUnavailable):
            error.retry_after = (
                max(0.0, self._next_probe - asyncio.get_running_loop().time()) + self._manners.first_pause
            )
        return error

    def failed(self, error: BaseException) -> ControllerError:
        """An operation met `error` (a reply or one of its failures); returns what the store is to be told."""
        now = asyncio.get_running_loop().time()
        if self._task is None and not self._closed:
            if now - self._well_since > self._manners.longest_pause:
                self._pause = self._manners.first_pause
            self._task = asyncio.get_running_loop().create_task(self._ask_until_well())
        self._set(error)
        told = self._manners.refusal(self._name, error)
        if isinstance(told, ControllerFull):
            return told
        return self.refuse(write=True) or told

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
            self._pause = min(self._manners.longest_pause, self._pause * 2)
            self._next_probe = loop.time() + wait
            await asyncio.sleep(wait)
            try:
                await self._probe()
            except self._manners.failures as error:
                self._set(error)
            except Exception as error:
                # A fault of the probe's own, to be told of; the server may come back all the same.
                loop.call_exception_handler(
                    {"message": f"the probe of controller {self._name!r} failed", "exception": error}
                )
            else:
                break
        self._task = None
        self._well_since = loop.time()
        self._set(None)

    def _set(self, error: BaseException | None) -> None:
        before = self.status
        self._error = error
        self._fault = Fault.NONE if error is None else self._manners.fault_of(error)
        if self.status is not before:
            self._changed()
