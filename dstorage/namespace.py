"""Namespaces: groups of chunks with a share of the memory budget of their own.

A namespace is asked for by name and is there for good, name and all, as its number is in the ids of its chunks. Its share is what it can always
fill, however busy the rest of the store is; what nobody uses, everybody may (see `dstorage.paging.shares`).
"""

from __future__ import annotations

import asyncio
import numbers
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from dstorage.catalog import Catalog
from dstorage.commit import Committer
from dstorage.controller import Buffer
from dstorage.errors import InvalidArgumentError
from dstorage.handle import Handle
from dstorage.index import Index
from dstorage.paging.shares import Shares
from dstorage.record import MAX_NAMESPACES, NAMESPACE_SHIFT, checked_id, namespace_of

if TYPE_CHECKING:
    from dstorage.contents import Contents

MAX_NAME_BYTES = 255
ROUNDING = 1e-9
"""By so much shares may add up to more than 1."""


class Namespace:
    """A group of chunks; get it from `Store.namespace`.

    Attributes:
        name: Its name.
        number: The highest byte of the ids of its chunks, 1 to 255.
    """

    def __init__(self, name: str, number: int, contents: Contents, index: Index, shares: Shares) -> None:
        self.name = name
        self.number = number
        self._contents = contents
        self._index = index
        self._shares = shares

    def create(
        self,
        data: Buffer | int,
        *,
        durable: bool = True,
        controller: str | None = None,
        wait: float | None = None,
    ) -> Coroutine[Any, Any, Handle]:
        """Make a new chunk in this namespace (to be awaited); otherwise as `Store.create`."""
        return self._contents.create(data, durable=durable, controller=controller, wait=wait, namespace=self.number)

    def create_nowait(self, data: Buffer | int, *, durable: bool = True, controller: str | None = None) -> Handle:
        """Make a new chunk in this namespace; otherwise as `Store.create_nowait`."""
        return self._contents.create_nowait(data, durable=durable, controller=controller, namespace=self.number)

    def ids(self) -> Iterator[int]:
        """Ids of its chunks that have been written, ascending; those only in memory yet come with the next commit."""
        return self._index.ids(self.number << NAMESPACE_SHIFT, (self.number + 1) << NAMESPACE_SHIFT)

    def __contains__(self, id: object) -> bool:
        """Whether an id belongs to this namespace (the chunk may be gone); what is no id does not."""
        try:
            return namespace_of(checked_id(id)) == self.number
        except InvalidArgumentError:
            return False

    @property
    def share(self) -> float:
        """Share of the budget (0 to 1) that it can always fill."""
        return self._shares.share_of(self.number)

    @property
    def used(self) -> int:
        """Bytes of its chunks in memory, without those that are about to leave."""
        return self._shares.used(self.number)

    def __repr__(self) -> str:
        return f"<Namespace {self.name!r}, number {self.number}, share {self.share:.0%}, {self.used} B in memory>"


class Namespaces:
    """The namespaces of one store.

    Args:
        catalog: Keeps the list.
        committer: Runs what writes to the catalog.
        spawn: Starts a task that the store owns.
        contents: Makes chunks.
        index: Knows them.
        share_out: Makes memory keep shares, from the first namespace on.
    """

    def __init__(
        self,
        catalog: Catalog,
        committer: Committer,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        contents: Contents,
        index: Index,
        share_out: Callable[[], Shares],
    ) -> None:
        self._catalog = catalog
        self._committer = committer
        self._spawn = spawn
        self._contents = contents
        self._index = index
        self._share_out = share_out
        self._shares: Shares | None = None
        self._changing = asyncio.Lock()
        self.by_name: dict[str, Namespace] = {}
        listed = catalog.namespaces()
        self._stored: float = sum(entry["share"] for entry in listed.values())
        """What the shares that were stored add up to; more than 1 does not fit, and smaller ones are in force."""
        for number, entry in listed.items():
            self._add(entry["name"], number, entry["share"] / self._stored if self._overdrawn else entry["share"])

    @property
    def _overdrawn(self) -> bool:
        return self._stored > 1 + ROUNDING

    def warn_of_overdraft(self) -> None:
        """Tell of stored shares that do not fit, as they were left by versions that could be cancelled half-way."""
        if self._overdrawn:
            warnings.warn(
                f"the shares of the namespaces in {self._catalog.path.parent} add up to {self._stored:.3g}, and 1 is all there is: each is "
                "taken for less, so that they fit; set them anew by store.namespace(name, share=...)",
                RuntimeWarning,
                stacklevel=2,
            )

    def _add(self, name: str, number: int, share: float) -> None:
        shares = self._shares_kept()
        shares.set_share(number, share)
        self.by_name[name] = Namespace(name, number, self._contents, self._index, shares)

    async def get(self, name: str, share: float | None) -> Namespace:
        """See `Store.namespace`."""
        self._check_name(name)
        # Whoever stops waiting, it comes to its end: what is stored is in force.
        await asyncio.shield(self._spawn(self._set(name, share)))
        return self.by_name[name]

    async def _set(self, name: str, share: float | None) -> None:
        async with self._changing:
            known = self.by_name.get(name)
            if known is not None and (share is None or (share == known.share and not self._overdrawn)):
                return
            if known is None and len(self.by_name) >= MAX_NAMESPACES:
                raise InvalidArgumentError(f"this store has {MAX_NAMESPACES} namespaces already, the most there can be")
            wanted = self._checked_share(name, share or 0.0, known.share if known is not None else 0.0)
            number = known.number if known is not None else self._free_number()
            # Durable before the first chunk has its number: a number is never given to another name.
            await self._committer.exclusively(lambda: self._catalog.put_namespace(number, name=name, share=wanted))
            if known is None:
                self._add(name, number, wanted)
            else:
                self._shares_kept().set_share(number, wanted)

    def _shares_kept(self) -> Shares:
        if self._shares is None:
            self._shares = self._share_out()
        return self._shares

    @staticmethod
    def _check_name(name: str) -> None:
        try:
            size = len(name.encode())
        except (AttributeError, UnicodeEncodeError):
            size = 0
        if not 0 < size <= MAX_NAME_BYTES:
            raise InvalidArgumentError(
                f"namespace name {name!r:.50}: give text of 1 to {MAX_NAME_BYTES} bytes of UTF-8"
            )

    def _checked_share(self, name: str, share: float, present: float) -> float:
        free = present + (self._shares.unclaimed if self._shares is not None else 1.0)
        if not isinstance(share, numbers.Real) or isinstance(share, bool) or not 0 <= share <= free + ROUNDING:
            raise InvalidArgumentError(
                f"share={share!r} for namespace {name!r}: give 0 to {free:.3g}, which is what the others leave"
            )
        return float(share)

    def _free_number(self) -> int:
        taken = {namespace.number for namespace in self.by_name.values()}
        return next(number for number in range(1, MAX_NAMESPACES + 1) if number not in taken)
