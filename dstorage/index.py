"""Where each chunk lives *now*: the catalog with what changed since the last commit laid over it.

Three layers, newest first: `current` (changed since the last cut), `frozen` (being committed), the catalog (committed).
A fourth table, `scratch`, holds records of chunks on volatile controllers: they are never committed, for after a crash
they would point at nothing.

The rule for superseded places, which copy-on-write rests on: a place that no commit refers to, neither the last one nor
the one under way, is free at once; any other only after the commit that stops referring to it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from dstorage.catalog import Catalog, Changes
from dstorage.record import MAX_ID, Record


class Index:
    """The current record of every chunk; see the module's docstring.

    All methods are for the store's event loop and none of them waits.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.current: dict[int, Record | None] = {}
        self.frozen: dict[int, Record | None] = {}
        self.committing = False
        self.scratch: dict[int, Record] = {}
        self.names: dict[bytes, int | None] = {}
        self.frozen_names: dict[bytes, int | None] = {}

    def get(self, id: int) -> Record | None:
        """The record of `id`, or None when there is no such chunk (or none written yet)."""
        for layer in (self.current, self.frozen):
            if id in layer:
                return layer[id]
        if id in self.scratch:
            return self.scratch[id]
        return self.catalog.get(id)

    def put(self, id: int, record: Record | None, *, volatile: bool = False) -> Record | None:
        """Make `record` (None: deleted) the current one of `id`.

        Returns:
            The record whose place became free at once, because no commit refers to it; else None.
        """
        free = self.scratch.pop(id, None)
        if volatile:
            assert record is not None
            self.scratch[id] = record
            # What an earlier commit knows of this id is superseded all the same.
            superseded = self.current.pop(id, None)
            if self.frozen.get(id) is not None or self.catalog.get(id) is not None:
                self.current[id] = None
            return free or superseded
        superseded = self.current.get(id)
        if record is None and not self.committing and self.catalog.get(id) is None:
            # No commit knows it, and none is under way that may come to: nothing is left to delete.
            self.current.pop(id, None)
        else:
            self.current[id] = record
        return free or superseded

    def put_frozen(self, id: int, record: Record) -> Record | None:
        """Record where the commit under way has put the bytes of `id`.

        Returns:
            The record whose place became free at once: written after the last commit, superseded before this one.
        """
        superseded = self.frozen.get(id)
        self.frozen[id] = record
        return superseded

    def freeze(self) -> None:
        """Cut: what changed so far belongs to the commit now beginning."""
        assert not self.frozen
        assert not self.frozen_names
        self.frozen, self.current = self.current, {}
        self.frozen_names, self.names = self.names, {}
        self.committing = True

    def thaw(self) -> list[tuple[int, Record]]:
        """The commit failed: what it held is current again, except where something newer is.

        Returns:
            (id, record) of places that nothing refers to any more.
        """
        free = []
        for id, record in self.frozen.items():
            if id not in self.current:
                self.current[id] = record
            elif record is not None:
                free.append((id, record))
        self.frozen = {}
        self.names = self.frozen_names | self.names
        self.frozen_names = {}
        self.committing = False
        return free

    def committed(self) -> None:
        """The commit succeeded: the catalog now says what `frozen` said."""
        self.frozen = {}
        self.frozen_names = {}
        self.committing = False
        self.catalog.refresh()

    def frozen_changes(self, accessed: dict[int, int], state: dict[tuple[int, int], bytes]) -> Changes:
        """What `Catalog.apply` has to switch."""
        return Changes(records=self.frozen, accessed=accessed, names=self.frozen_names, state=state)

    @property
    def changed(self) -> bool:
        """Whether a commit has anything to switch (last-access times alone do not count)."""
        return bool(self.current or self.names)

    def get_name(self, name: bytes) -> int | None:
        """The id currently under `name`, or None."""
        for layer in (self.names, self.frozen_names):
            if name in layer:
                return layer[name]
        return self.catalog.get_name(name)

    def iter_names(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, int]]:
        """Current names that start with `prefix`, from `start` on, in byte order, with their ids."""
        changed = {n: i for n, i in (self.frozen_names | self.names).items() if n.startswith(prefix)}
        extra = sorted((n, i) for n, i in changed.items() if i is not None and n >= start)
        return heapq.merge(((n, i) for n, i in self.catalog.names(prefix, start) if n not in changed), extra)

    def ids(self, start: int = 0, stop: int = MAX_ID + 1) -> Iterator[int]:
        """Current ids from `start` up to but without `stop`, ascending; chunks never written yet are not among them."""
        changed = self.frozen | self.current
        written = {id for id, record in changed.items() if record is not None} | set(self.scratch)
        extra = sorted(id for id in written if start <= id < stop)
        position = 0
        for id, _ in self.catalog.records(start):
            if id >= stop:
                break
            while position < len(extra) and extra[position] < id:
                yield extra[position]
                position += 1
            if position < len(extra) and extra[position] == id:
                continue
            if changed.get(id, True) is not None:
                yield id
        yield from extra[position:]
