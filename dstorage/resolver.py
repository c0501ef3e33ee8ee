"""Resolving: from the wish for a chunk's bytes to the answer, for those who await, call back, or wait through an outage.

One page-in per id serves all who wait. Who waits is a callable in `Handle.waiters` (told once, at the next answer, whatever it is) or
a `Patient` (told when the handle is resolved or final, or at its deadline). Callbacks of the program run from the loop, never
from within a call into the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from dstorage.errors import CorruptData, DStorageError, Lost, MemoryUnavailable, TemporarilyUnavailable
from dstorage.events import Events
from dstorage.handle import Callback, Handle, Status
from dstorage.outage import Outages, Patient
from dstorage.paging.page import Page
from dstorage.paging.pagein import PageIn
from dstorage.table import HandleTable
from dstorage.waiting import check_wait

INLINE_PAGE_INS = 64
"""Page-ins in a row answered without suspension before other callbacks of the loop get a turn."""
MEMORY_RETRY_S = 0.01
"""Pause before somebody who waits for memory is tried again ..."""
MEMORY_RETRY_EACH_S = 0.0005
"""... and the least for each who waits, so that the many do not keep the loop busy with asking."""


class Resolver:
    """Answers the resolves of one store.

    Args:
        table: The handles.
        pagein: Brings the bytes.
        events: Is told.
        check_open: Raises when the store is closed.
        memory_error: Makes the error that says who holds the memory.
    """

    def __init__(
        self,
        table: HandleTable,
        pagein: PageIn,
        events: Events,
        *,
        outages: Outages,
        check_open: Callable[[], None],
        memory_error: Callable[[str], MemoryUnavailable],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._table = table
        self._pagein = pagein
        self._events = events
        self._outages = outages
        self._check_open = check_open
        self._memory_error = memory_error
        self._inline = 0

    def page_in(self, handle: Handle) -> Generator[Any, None, None]:
        """Bring in the contents of `handle`, waiting if need be (for ``await handle``); errors are left in the handle."""
        self._start_if_due(handle)
        if handle.buffer is not None:
            # Answered at once; but a task that pages in for ever must not starve the others.
            self._inline += 1
            if self._inline >= INLINE_PAGE_INS:
                self._inline = 0
                handle.refs += 1
                try:
                    yield
                finally:
                    handle.release()
        elif handle.status is Status.WAITING:
            self._inline = 0
            future = self._loop.create_future()

            def wake(_: Handle) -> None:
                if not future.done():
                    future.set_result(None)

            self.wait_for(handle, wake)
            handle.refs += 1
            try:
                yield from future
            finally:
                if handle.waiters is not None and wake in handle.waiters:
                    handle.waiters.remove(wake)
                handle.release()

    async def get_waiting(self, handle: Handle, wait: float) -> memoryview:
        """``await handle`` with patience (for `Handle.get`)."""
        future = self._loop.create_future()

        def wake(_: Handle) -> None:
            if not future.done():
                future.set_result(None)

        patient = Patient(self._loop.time() + wait, wake)
        handle.acquire()
        try:
            self._resolve(handle, patient)
            await future
            if handle.buffer is None:
                raise handle.failure()
            return handle.data
        finally:
            self._outages.leave(handle, patient)
            handle.release()

    def resolve(self, handle: Handle, callback: Callback | None, wait: float | None) -> None:
        """Ask for the contents (for `Handle.resolve`)."""
        self._check_open()
        check_wait(wait)
        if handle.status is Status.UNINITIALISED:
            raise handle.failure()
        if callback is None:
            tell: Callable[[Handle], object] = _nobody
        else:

            def tell(handle: Handle) -> None:
                handle.refs += 1
                self._loop.call_soon(self._call, callback, handle)

        if wait is None:
            self._start_if_due(handle)
            if handle.status is Status.WAITING:
                self.wait_for(handle, tell)
            else:
                tell(handle)
        else:
            self._resolve(handle, Patient(self._loop.time() + wait, tell))

    def _resolve(self, handle: Handle, patient: Patient) -> None:
        """Tell `patient` when the handle is resolved or final, or temporarily unavailable at the deadline."""

        def answered(handle: Handle) -> None:
            hopeless = isinstance(handle.error, MemoryUnavailable) and handle.error.never
            if (
                handle.status is Status.TEMPORARILY_UNAVAILABLE
                and self._loop.time() < patient.deadline
                and not hopeless
            ):
                self._outages.wait(handle, patient)
            else:
                patient.tell(handle)

        self._start_if_due(handle)
        if handle.status is Status.WAITING:
            self.wait_for(handle, answered)
        else:
            answered(handle)

    @staticmethod
    def _call(callback: Callback, handle: Handle) -> None:
        try:
            callback(handle)
        finally:
            handle.release()

    @staticmethod
    def wait_for(handle: Handle, tell: Callable[[Handle], object]) -> None:
        """Have `tell` called once, at the next answer, whatever it is."""
        if handle.waiters is None:
            handle.waiters = [tell]
        else:
            handle.waiters.append(tell)

    def _start_if_due(self, handle: Handle) -> None:
        status = handle.status
        if status is Status.NOT_RESOLVED or (status is Status.TEMPORARILY_UNAVAILABLE and self._outages.due(handle)):
            self.start(handle)

    def start(self, handle: Handle, *, ahead: bool = False) -> None:
        """Begin a page-in, `ahead` of anybody's wish; those who waited through an outage wait for its answer."""
        self._check_open()
        handle.to(Status.WAITING)
        self._pagein.begin(handle, ahead=ahead)

    # -- what paging tells --------------------------------------------------------------------------------------------

    def on_resolved(self, page: Page) -> None:
        """The contents of a page have come."""
        assert isinstance(page, Handle)
        page.to(Status.RESOLVED)
        page.error = None
        if self._events.streams:
            self._events.emit("resolved", page.id)
        self.settle(page)

    def on_failed(self, page: Page, error: DStorageError) -> None:
        """The contents of a page could not be had: lost, unavailable, or no memory."""
        assert isinstance(page, Handle)
        if isinstance(error, CorruptData):
            lost = Lost(str(error), id=page.id, controller=error.controller)
            lost.__cause__ = error
            error = lost
        if isinstance(error, Lost):
            page.to(Status.LOST)
            page.error = error
            if self._events.streams:
                self._events.emit("lost", page.id, error.reason)
            self.settle(page)
            if not page.refs and self._table.handles.get(page.id) is page:
                self._table.drop(page)
            return
        page.to(Status.TEMPORARILY_UNAVAILABLE)
        page.error = error
        if isinstance(error, TemporarilyUnavailable):
            cause = error.__cause__
            error.retry_at = self._outages.note(page, error.controller, getattr(cause, "retry_after", None))
        else:
            # Memory is short: that may be over with the very next release, so ask again whenever somebody does.
            if not (isinstance(error, MemoryUnavailable) and error.never):
                error = page.error = self._memory_error(str(error))
            self._outages.note(page, None, max(MEMORY_RETRY_S, len(self._outages) * MEMORY_RETRY_EACH_S))
        if self._events.streams:
            self._events.emit("unavailable", page.id, str(error))
        waiters, page.waiters = page.waiters, None
        for tell in waiters or ():
            tell(page)

    def settle(self, handle: Handle) -> None:
        """Tell everybody who waited: it is resolved or final."""
        patients = self._outages.end(handle) if len(self._outages) else ()
        waiters = handle.waiters
        if waiters is not None:
            handle.waiters = None
            for tell in waiters:
                tell(handle)
        for patient in patients:
            patient.tell(handle)

    def on_evicted(self, page: Page, reason: str) -> None:
        """A page has left memory."""
        assert isinstance(page, Handle)
        page.to(Status.NOT_RESOLVED)
        if self._events.streams:
            self._events.emit("evicted", page.id, reason)
        if not page.refs and self._table.handles.get(page.id) is page:
            self._table.drop(page)


def _nobody(handle: Handle) -> None:
    """Whom a resolve without callback tells."""
