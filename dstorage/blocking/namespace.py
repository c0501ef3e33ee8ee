"""The blocking namespace: `dstorage.Namespace` for any thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dstorage.controller import Buffer
from dstorage.namespace import Namespace as AsyncNamespace

if TYPE_CHECKING:
    from dstorage.blocking.handle import Handle
    from dstorage.blocking.store import Store


class Namespace:
    """A group of chunks with a share of the budget; get it from `Store.namespace`. For any thread.

    Attributes:
        inner: The `dstorage.Namespace`.
        name: Its name.
        number: Its number, the highest byte of its chunks' ids.
    """

    def __init__(self, store: Store, inner: AsyncNamespace) -> None:
        self._store = store
        self.inner = inner
        self.name = inner.name
        self.number = inner.number

    def create(
        self,
        data: Buffer | int,
        *,
        durable: bool = True,
        controller: str | None = None,
        wait: float | None = None,
    ) -> Handle:
        """Make a new chunk in this namespace; otherwise as `Store.create`."""
        return self._store.create_in(self.number, data, durable, controller, wait)

    def ids(self) -> Iterator[int]:
        """Ids of its chunks that have been written, ascending; those only in memory yet come with the next commit."""
        return self._store.in_parts(self.inner.ids)

    def __contains__(self, id: object) -> bool:
        """Whether an id belongs to this namespace (the chunk may be gone); what is no id does not."""
        return id in self.inner

    @property
    def share(self) -> float:
        """Share of the budget (0 to 1) that it can always fill."""
        return self.inner.share

    @property
    def used(self) -> int:
        """Bytes of its chunks in memory, without those that are about to leave."""
        return self.inner.used

    def __repr__(self) -> str:
        return repr(self.inner)
