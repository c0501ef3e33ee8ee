"""A durable controller for tests: its medium is a dict that outlives it, and every kind of failure is a switch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from dstorage import (
    Controller,
    ControllerFull,
    ControllerStatus,
    ControllerUnavailable,
    Locator,
    OpenContext,
    ReadRequest,
    Space,
    WriteRequest,
)


class Medium:
    """What a MemoryController writes to; `synced` is what a power failure would leave."""

    def __init__(self) -> None:
        self.cells: dict[int, bytes] = {}
        self.next = 1


class MemoryController(Controller):
    kind = "memory"

    def __init__(self, name="memory", *, rank=10, medium=None, capacity=None, volatile=False):
        super().__init__(name, rank=rank)
        self.medium = medium or Medium()
        self.capacity = capacity
        self.volatile = volatile
        self.unavailable = False
        self.read_error: Exception | None = None
        self.write_error: Exception | None = None
        self.sync_error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.write_gate: asyncio.Event | None = None
        self.reads: list[int] = []
        self.writes: list[int] = []
        self.syncs = 0
        self.closed = False
        self.context: OpenContext | None = None

    @classmethod
    def from_settings(cls, name, settings: Mapping[str, object]):
        return cls(name)

    @property
    def status(self):
        if self.unavailable:
            return ControllerStatus.TEMPORARILY_UNAVAILABLE
        if self.capacity is not None and self.used >= self.capacity:
            return ControllerStatus.FULL
        return ControllerStatus.OK

    @property
    def used(self) -> int:
        return sum(map(len, self.medium.cells.values()))

    def space(self):
        return Space(self.capacity, self.used)

    async def open(self, context):
        self.context = context
        self.closed = False

    async def close(self):
        self.closed = True

    def set_unavailable(self, unavailable: bool) -> None:
        self.unavailable = unavailable
        assert self.context is not None
        self.context.status_changed()

    def _get(self, request):
        if self.unavailable:
            return ControllerUnavailable("switched off")
        if self.read_error is not None:
            return self.read_error
        return bytearray(self.medium.cells[request.locator.b])

    async def read(self, requests: Sequence[ReadRequest]):
        if self.gate is not None:
            await self.gate.wait()
        self.reads += [request.id for request in requests]
        return [self._get(request) for request in requests]

    async def write(self, requests: Sequence[WriteRequest]):
        if self.write_gate is not None:
            await self.write_gate.wait()
        answers = []
        for id, data in requests:
            if self.unavailable:
                answers.append(ControllerUnavailable("switched off"))
            elif self.write_error is not None:
                answers.append(self.write_error)
            elif self.capacity is not None and self.used + len(data) > self.capacity:
                answers.append(ControllerFull(f"{self.name} is full"))
            else:
                cell = self.medium.next
                self.medium.next += 1
                self.medium.cells[cell] = bytes(memoryview(data))
                self.writes.append(id)
                answers.append(Locator(len(data), cell))
        return answers

    async def discard(self, locators):
        for _, locator in locators:
            del self.medium.cells[locator.b]

    async def sync(self):
        if self.sync_error is not None:
            raise self.sync_error
        self.syncs += 1


class InlineController(MemoryController):
    """Answers reads at once. The other one has no such method at all: it is not asked again for a moment, so turns of
    the loop are enough to see its answers.
    """

    def read_nowait(self, id, locator):
        if self.unavailable or self.read_error or self.gate:
            return None
        self.reads.append(id)
        return self._get(ReadRequest(id, locator))
