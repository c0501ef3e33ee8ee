"""Controllers around controllers: failures, delays, fullness and a log of calls, over any implementation.

Each wraps another one and shows its name, rank and settings, so that a store cannot tell the difference. They are for
tests of what stands above a controller; the catalog cannot build them again (`from_settings` refuses).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from dstorage.controller import (
    Buffer,
    Controller,
    ControllerStatus,
    OpenContext,
    ReadRequest,
    Settings,
    Space,
    WriteRequest,
)
from dstorage.errors import ControllerFull, InvalidArgumentError
from dstorage.record import Locator

T = TypeVar("T")


class WrappedController(Controller):
    """Passes everything on; base of the others.

    Args:
        inner: The controller that does the work.
    """

    def __init__(self, inner: Controller) -> None:
        super().__init__(inner.name, rank=inner.rank, settings=inner.settings)
        self.inner = inner
        self.volatile = inner.volatile
        self.kind = inner.kind  # type: ignore[misc]  # of a class elsewhere; a wrapper has that of what it wraps

    @classmethod
    def from_settings(cls, name: str, settings: Settings) -> Controller:
        """Refused: a wrapper belongs to the test that made it.

        Raises:
            InvalidArgumentError: Always.
        """
        raise InvalidArgumentError(
            f"{cls.__name__} {name!r} cannot be built from settings; register the wrapper itself"
        )

    @property
    def status(self) -> ControllerStatus:
        """As the inner one says."""
        return self.inner.status

    @property
    def trouble(self) -> str | None:
        """As the inner one says."""
        return self.inner.trouble

    def space(self) -> Space:
        """As the inner one says."""
        return self.inner.space()

    async def open(self, context: OpenContext) -> None:
        """Open the inner one."""
        await self.inner.open(context)

    async def close(self) -> None:
        """Close the inner one."""
        await self.inner.close()

    def read_nowait(self, id: int, locator: Locator) -> Buffer | None:
        """Ask the inner one."""
        return self.inner.read_nowait(id, locator)

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Read from the inner one."""
        return await self.inner.read(requests)

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Write to the inner one."""
        return await self.inner.write(requests)

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Discard in the inner one."""
        await self.inner.discard(locators)

    async def sync(self) -> None:
        """Sync the inner one."""
        await self.inner.sync()

    def checkpoint(
        self, alive: Sequence[tuple[int, Locator]], dead: Sequence[tuple[int, Locator]]
    ) -> Mapping[int, bytes]:
        """Ask the inner one."""
        return self.inner.checkpoint(alive, dead)

    async def recount(self, places: AsyncIterator[tuple[int, Locator]]) -> Mapping[int, bytes]:
        """Ask the inner one."""
        return await self.inner.recount(places)

    async def advice(self) -> list[str]:
        """As the inner one."""
        return await self.inner.advice()

    def committed(self) -> None:
        """Tell the inner one."""
        self.inner.committed()


class FaultyController(WrappedController):
    """Fails when and how a test says.

    `fail` makes whole calls raise, `fail_id` makes single requests of a batch be answered with an error.

    Example:
        >>> import asyncio
        >>> from dstorage.errors import ControllerUnavailable
        >>> async def once(controller):
        ...     faulty = FaultyController(controller)
        ...     faulty.fail("sync", ControllerUnavailable("cable pulled"))
        ...     try:
        ...         await faulty.sync()
        ...     except ControllerUnavailable as error:
        ...         return str(error)
    """

    def __init__(self, inner: Controller) -> None:
        super().__init__(inner)
        self._calls: dict[str, list[Exception]] = {}
        self._ids: dict[tuple[str, int], list[Exception]] = {}

    def fail(self, method: str, error: Exception, *, times: int = 1) -> None:
        """Let the next `times` calls of `method` ("read", "read_nowait", "write", "discard", "sync", "open",
        "checkpoint") raise `error`; what was planned before comes first.
        """
        self._calls.setdefault(method, []).extend([error] * times)

    def fail_id(self, method: str, id: int, error: Exception, *, times: int = 1) -> None:
        """Let the next `times` requests for chunk `id` in "read" or "write" be answered with `error`."""
        self._ids.setdefault((method, id), []).extend([error] * times)

    def heal(self) -> None:
        """Forget all planned failures."""
        self._calls.clear()
        self._ids.clear()

    def _meet(self, method: str) -> None:
        planned = self._calls.get(method)
        if planned:
            raise planned.pop(0)

    def _refused(self, method: str, id: int) -> Exception | None:
        planned = self._ids.get((method, id))
        return planned.pop(0) if planned else None

    async def open(self, context: OpenContext) -> None:
        """Open the inner one, or fail as planned."""
        self._meet("open")
        await super().open(context)

    def read_nowait(self, id: int, locator: Locator) -> Buffer | None:
        """Ask the inner one, or fail as planned; a chunk planned to fail in `read` is not answered here."""
        self._meet("read_nowait")
        if self._calls.get("read") or self._ids.get(("read", id)):
            return None
        return super().read_nowait(id, locator)

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Read from the inner one, or fail as planned."""
        self._meet("read")
        refused = {at: error for at, r in enumerate(requests) if (error := self._refused("read", r.id)) is not None}
        rest = iter(await super().read([r for at, r in enumerate(requests) if at not in refused]))
        return [refused[at] if at in refused else next(rest) for at in range(len(requests))]

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Write to the inner one, or fail as planned."""
        self._meet("write")
        refused = {at: error for at, r in enumerate(requests) if (error := self._refused("write", r.id)) is not None}
        rest = iter(await super().write([r for at, r in enumerate(requests) if at not in refused]))
        return [refused[at] if at in refused else next(rest) for at in range(len(requests))]

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Discard in the inner one, or fail as planned."""
        self._meet("discard")
        await super().discard(locators)

    async def sync(self) -> None:
        """Sync the inner one, or fail as planned."""
        self._meet("sync")
        await super().sync()

    def checkpoint(
        self, alive: Sequence[tuple[int, Locator]], dead: Sequence[tuple[int, Locator]]
    ) -> Mapping[int, bytes]:
        """Ask the inner one, or fail as planned."""
        self._meet("checkpoint")
        return super().checkpoint(alive, dead)


class SlowController(WrappedController):
    """Answers late: after `delay` seconds, or not before `release` while held.

    Args:
        inner: The controller that does the work.
        delay: Seconds before each read, write, discard and sync.
        sleep: What to wait with; `FakeClock.sleep` in tests that must not wait.
    """

    def __init__(
        self, inner: Controller, delay: float = 0.0, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        super().__init__(inner)
        self.delay = delay
        self._sleep = sleep
        self._gate = asyncio.Event()
        self._gate.set()
        self.waiting = 0
        """Calls that are being held up now."""

    def hold(self) -> None:
        """Hold up all calls from now on."""
        self._gate.clear()

    def release(self) -> None:
        """Let all go on."""
        self._gate.set()

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await self._gate.wait()
            if self.delay:
                await self._sleep(self.delay)
        finally:
            self.waiting -= 1

    def read_nowait(self, id: int, locator: Locator) -> Buffer | None:
        """Nothing is to be had at once."""
        return None

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Read from the inner one, late."""
        await self._wait()
        return await super().read(requests)

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Write to the inner one, late."""
        await self._wait()
        return await super().write(requests)

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Discard in the inner one, late."""
        await self._wait()
        await super().discard(locators)

    async def sync(self) -> None:
        """Sync the inner one, late."""
        await self._wait()
        await super().sync()


class FullController(WrappedController):
    """Takes so many chunks and is full then, until told otherwise.

    Args:
        inner: The controller that does the work.
        room: Chunks it still takes.
    """

    def __init__(self, inner: Controller, room: int = 0) -> None:
        super().__init__(inner)
        self._room = room
        self._context: OpenContext | None = None

    @property
    def room(self) -> int:
        """Chunks it still takes; setting it tells the store when that changes the status."""
        return self._room

    @room.setter
    def room(self, room: int) -> None:
        changed = (room > 0) is not (self._room > 0)
        self._room = room
        if changed and self._context is not None:
            self._context.status_changed()

    @property
    def status(self) -> ControllerStatus:
        """FULL without room."""
        return self.inner.status if self._room > 0 else ControllerStatus.FULL

    async def open(self, context: OpenContext) -> None:
        """Open the inner one."""
        self._context = context
        await super().open(context)

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Write as many as there is room for."""
        taken = max(0, min(self._room, len(requests)))
        self.room -= taken
        answers = await super().write(requests[:taken]) if taken else []
        refused = [ControllerFull(f"controller {self.name!r} is full for a test") for _ in requests[taken:]]
        return [*answers, *refused]


class Call(NamedTuple):
    """One call of a `LoggingController`.

    Attributes:
        method: Its name.
        ids: Chunks it was about.
        errors: How many of its requests were answered with an error; -1 if the call raised.
    """

    method: str
    ids: tuple[int, ...] = ()
    errors: int = 0


class LoggingController(WrappedController):
    """Keeps a list of the calls, in the order in which they were answered."""

    def __init__(self, inner: Controller) -> None:
        super().__init__(inner)
        self.calls: list[Call] = []

    def named(self, method: str) -> list[Call]:
        """The calls of one method."""
        return [call for call in self.calls if call.method == method]

    async def _logged(self, method: str, ids: Iterable[int], call: Awaitable[T]) -> T:
        named = tuple(ids)
        try:
            answer = await call
        except BaseException:
            self.calls.append(Call(method, named, -1))
            raise
        errors = sum(isinstance(one, Exception) for one in answer) if isinstance(answer, list) else 0
        self.calls.append(Call(method, named, errors))
        return answer

    async def open(self, context: OpenContext) -> None:
        """Open the inner one."""
        await self._logged("open", (), super().open(context))

    async def close(self) -> None:
        """Close the inner one."""
        await self._logged("close", (), super().close())

    def read_nowait(self, id: int, locator: Locator) -> Buffer | None:
        """Ask the inner one; only answers are logged."""
        answer = super().read_nowait(id, locator)
        if answer is not None:
            self.calls.append(Call("read_nowait", (id,)))
        return answer

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Read from the inner one."""
        return await self._logged("read", (r.id for r in requests), super().read(requests))

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Write to the inner one."""
        return await self._logged("write", (r.id for r in requests), super().write(requests))

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Discard in the inner one."""
        await self._logged("discard", (id for id, _ in locators), super().discard(locators))

    async def sync(self) -> None:
        """Sync the inner one."""
        await self._logged("sync", (), super().sync())

    def checkpoint(
        self, alive: Sequence[tuple[int, Locator]], dead: Sequence[tuple[int, Locator]]
    ) -> Mapping[int, bytes]:
        """Ask the inner one; logged with the chunks that begin to be alive."""
        self.calls.append(Call("checkpoint", tuple(id for id, _ in alive)))
        return super().checkpoint(alive, dead)

    def committed(self) -> None:
        """Tell the inner one."""
        self.calls.append(Call("committed"))
        super().committed()
