"""Leases: in debug mode, a handle that is dropped while referenced is told, with where it was acquired.

Normally the store's table keeps handles alive, so a forgotten reference pins its chunk until the store is closed. With asyncio's
debug mode or ``python -X dev``, programs get a `Lease` instead: another name for the one handle, of which there is one per id as
long as the program holds it. When it goes while references it took are still held, a ResourceWarning says so.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Coroutine
from typing import Any, Self

from dstorage.controller import Buffer
from dstorage.handle import Callback, Handle, HandleAlias, target_of
from dstorage.store import Store

OWN = frozenset({"acquire", "bind", "release", "resolve", "sites"})


class Lease(HandleAlias):
    """See the module's docstring; used exactly as a `Handle`."""

    __slots__ = ("sites",)

    def __init__(self, handle: Handle) -> None:
        object.__setattr__(self, "waiters", handle)
        object.__setattr__(self, "sites", [])

    def __getattribute__(self, name: str) -> Any:
        if name in OWN:
            return object.__getattribute__(self, name)
        return super().__getattribute__(name)

    def acquire(self) -> Self:
        """As `Handle.acquire`."""
        super().__getattribute__("acquire")()
        note(self)
        return self

    def bind(self, id: int) -> Handle:
        """As `Handle.bind`."""
        unbound = target_of(self)
        store = unbound.store
        assert isinstance(store, DebugStore)
        known = unbound.bind(id)
        if known is unbound:
            return store.adopt(self, known)
        # From now on its references are those of the other.
        lease = store.lease(known)
        lease.sites.extend(self.sites)
        self.sites.clear()
        return lease

    def release(self) -> None:
        """As `Handle.release`."""
        super().__getattribute__("release")()
        if self.sites:
            self.sites.pop()

    def resolve(self, callback: Callback | None = None, *, wait: float | None = None) -> None:
        """As `Handle.resolve`; who waits for a callback holds the lease."""
        resolve = super().__getattribute__("resolve")
        resolve(None if callback is None else lambda handle: callback(self), wait=wait)

    def __del__(self) -> None:
        if self.sites and self.refs:
            sites = self.sites[-self.refs :]
            warnings.warn(
                f"handle {self.id} was dropped with {len(sites)} references, acquired at {', '.join(sites)}",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )


def note(lease: Lease) -> None:
    """Remember where the program is now: the first frame outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("dstorage."):
        frame = frame.f_back
    lease.sites.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")


class DebugStore(Store):
    """The store that `dstorage.open` gives in debug mode."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._leases: weakref.WeakValueDictionary[int, Lease] = weakref.WeakValueDictionary()

    def lease(self, handle: Handle) -> Lease:
        """The lease on `handle`, which remembers where the program is now."""
        lease = self._leases.get(handle.id)
        if lease is None or target_of(lease) is not handle:
            lease = self._leases[handle.id] = Lease(handle)
        note(lease)
        return lease

    def adopt(self, lease: Lease, handle: Handle) -> Lease:
        """Make `lease` the one on `handle`, which was just bound to an id."""
        self._leases[handle.id] = lease
        return lease

    def unbound_handle(self) -> Handle:
        """As `Store.unbound_handle`."""
        lease = Lease(super().unbound_handle())
        note(lease)
        return lease

    def handle(self, id: int) -> Handle:
        """As `Store.handle`."""
        return self.lease(super().handle(id))

    def create(
        self,
        data: Buffer | int,
        *,
        durable: bool = True,
        controller: str | None = None,
        wait: float | None = None,
    ) -> Coroutine[Any, Any, Handle]:
        """As `Store.create`."""

        async def create() -> Handle:
            return self.lease(await creating)

        creating = super().create(data, durable=durable, controller=controller, wait=wait)
        return create()

    def create_nowait(self, data: Buffer | int, *, durable: bool = True, controller: str | None = None) -> Handle:
        """As `Store.create_nowait`."""
        return self.lease(super().create_nowait(data, durable=durable, controller=controller))

    async def close(self) -> None:
        """As `Store.close`, which tells of references that are still held."""
        try:
            await super().close()
        finally:
            for lease in list(self._leases.values()):
                lease.sites.clear()
