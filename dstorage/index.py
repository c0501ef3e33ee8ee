"""Where each chunk lives *now*: the catalog with what changed since the last commit laid over it.

Three layers, newest first: `current` (changed since the last cut), `frozen` (being committed), the catalog (committed).
A fourth table, `scratch`, holds records of chunks on volatile controllers: they are never committed, for after a crash
they would point at nothing. A chunk has one record and any number of copies, further places of the same bytes; a layer that
has its record says what copies it has, too.

The rule for superseded places, which copy-on-write rests on: a place that no commit refers to, neither the last one nor
the one under way, is free at once; any other only after the commit that stops referring to it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice

from dstorage.catalog import Catalog, Changes
from dstorage.record import MAX_ID, Locator, Record

Copies = tuple[Record, ...]

NAMES_AT_FIRST = 1024
"""Names that are put in order before the others: most who list names want only some."""


class Index:
    """The current places of every chunk; see the module's docstring.

    All methods but `look_up` are for the store's event loop and none of them waits.

    Args:
        catalog: The last commit.
        free: Called with (id, record) for each place that no commit refers to any more.
        many: So many changes that no commit has yet take memory worth a commit.
        on_many: Called when there are so many.
    """

    def __init__(
        self, catalog: Catalog, free: Callable[[int, Record], None], *, many: int, on_many: Callable[[], object]
    ) -> None:
        self.catalog = catalog
        self._free = free
        self._many = many
        self._on_many = on_many
        self.current: dict[int, Record | None] = {}
        self.frozen: dict[int, Record | None] = {}
        self._current_copies: dict[int, Copies] = {}
        self.frozen_copies: dict[int, Copies] = {}
        self.committing = False
        self.scratch: dict[int, Record] = {}
        self.names: dict[bytes, int | None] = {}
        self.frozen_names: dict[bytes, int | None] = {}

    def get(self, id: int) -> Record | None:
        """The record of `id`, or None when there is no such chunk (or none written yet)."""
        if id in self.scratch:
            # What the layers say of it is only that no commit is to refer to it any more.
            return self.scratch[id]
        for layer in (self.current, self.frozen):
            if id in layer:
                return layer[id]
        return self.catalog.get(id)

    def look_up(self, id: int) -> Record | None:
        """`get` for any thread: a record that was the current one at some moment of this call.

        None for an id that has no record, and if the layers were exchanged in the midst of looking through them.
        """
        current, frozen = self.current, self.frozen
        # In this order: what goes from one layer to another is in the one that is looked at later, before it leaves the other.
        for layer in (current, self.scratch, frozen):
            if id in layer:
                return layer.get(id)
        record = self.catalog.look_up(id)
        return record if self.current is current and self.frozen is frozen else None

    def copies(self, id: int) -> Copies:
        """Further places of the same bytes."""
        if id in self.current:
            return self._current_copies.get(id, ())
        if id in self.frozen:
            return self.frozen_copies.get(id, ())
        return () if id in self.scratch else self.catalog.copies(id)

    def places(self, id: int) -> Copies:
        """All places of the bytes of `id`: its record first, then its copies; empty when there is no such chunk."""
        record = self.get(id)
        return () if record is None else (record, *self.copies(id))

    def put(self, id: int, record: Record | None, *, volatile: bool = False, copies: Copies = ()) -> None:
        """Make `record` (None: deleted) the current one of `id`, and `copies` all further places of its bytes."""
        if record is None and not self.committing and self.catalog.get(id) is None:
            # No commit knows it or its places, and none is under way that may come to: nothing is left to delete.
            for place in (self.scratch.pop(id, None), self.current.pop(id, None), *self._current_copies.pop(id, ())):
                if place is not None:
                    self._free(id, place)
            return
        before = (self.scratch.pop(id, None), self.current.get(id), *self._current_copies.pop(id, ()))
        superseded = [place for place in before if place is not None]
        if volatile:
            assert record is not None
            self.scratch[id] = record
            self.current.pop(id, None)
            # What an earlier commit knows of this id is superseded all the same.
            if self.frozen.get(id) is not None or self.catalog.get(id) is not None:
                self.current[id] = None
        else:
            self.current[id] = record
            if copies:
                self._current_copies[id] = copies
            if len(self.current) == self._many:
                self._on_many()
        if superseded:
            self._free_but(id, superseded, (record, *copies), (self.frozen.get(id), *self.frozen_copies.get(id, ())))

    def put_frozen(self, id: int, record: Record, *, copies: Copies = (), newest: bool = False) -> None:
        """Record where the commit under way has put the bytes of `id`, and the copies it has made of them.

        Args:
            id: The chunk.
            record: The place.
            copies: Further places.
            newest: There are no newer bytes. So what is in the newer layer is where a move has put older ones since the cut.
        """
        superseded = [self.frozen.get(id), *self.frozen_copies.pop(id, ())]
        if newest:
            superseded += [self.scratch.pop(id, None), self.current.pop(id, None), *self._current_copies.pop(id, ())]
        self.frozen[id] = record
        if copies:
            self.frozen_copies[id] = copies
        places = [place for place in superseded if place is not None]
        if places:
            # A copy or a move since the cut may have left some of them in the newer layer, which frees them when newer bytes come.
            newer = (self.current.get(id), *self._current_copies.get(id, ()))
            self._free_but(id, places, (record, *copies), newer)

    def is_current(self, id: int, place: tuple[int, Locator]) -> bool:
        """Whether what changed since the cut refers to a place: then it is freed by what supersedes that."""
        if id not in self.current:
            return False
        newer = (self.current[id], *self._current_copies.get(id, ()))
        return any(record[1:] == place for record in newer if record is not None)

    def _free_but(self, id: int, superseded: list[Record], *kept: tuple[Record | None, ...]) -> None:
        """Free places, but for those that one of the layers still refers to: one may be in several, now as a copy, now as the record."""
        committed = (self.catalog.get(id), *self.catalog.copies(id))
        places = {record[1:] for layer in (*kept, committed) for record in layer if record is not None}
        for record in superseded:
            if record[1:] not in places:
                # Once, if several layers had it.
                places.add(record[1:])
                self._free(id, record)

    def freeze(self) -> None:
        """Cut: what changed so far belongs to the commit now beginning."""
        assert not self.frozen
        assert not self.frozen_names
        self.frozen, self.current = self.current, {}
        self.frozen_copies, self._current_copies = self._current_copies, {}
        self.frozen_names, self.names = self.names, {}
        self.committing = True

    def thaw(self) -> None:
        """The commit failed: what it held is current again, except where something newer is."""
        frozen, copies = self.frozen, self.frozen_copies
        for id, record in frozen.items():
            if id not in self.current:
                self.current[id] = record
                if id in copies:
                    self._current_copies[id] = copies[id]
            elif record is not None:
                newer = (self.current[id], *self._current_copies.get(id, ()))
                self._free_but(id, [record, *copies.get(id, ())], newer)
        self.names = self.frozen_names | self.names
        # Only now, for `look_up`.
        self.frozen, self.frozen_copies, self.frozen_names = {}, {}, {}
        self.committing = False

    def committed(self) -> None:
        """The commit succeeded: the catalog now says what `frozen` said."""
        # First, for `look_up`.
        self.catalog.refresh()
        self.frozen = {}
        self.frozen_copies = {}
        self.frozen_names = {}
        self.committing = False

    def frozen_changes(self, accessed: dict[int, int], state: dict[tuple[int, int], bytes]) -> Changes:
        """What `Catalog.apply` has to switch."""
        return Changes(self.frozen, self.frozen_copies, accessed, self.frozen_names, state)

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
        """Current names that start with `prefix`, from `start` on, in byte order, with their ids.

        Changes meanwhile may show or not; no name comes twice, and none is left out because it is committed meanwhile.
        """
        size = NAMES_AT_FIRST
        while True:
            # In parts, each looked up at one moment: a commit moves names from one layer to another.
            part = self._first_names(prefix, start, size)
            yield from part
            if len(part) < size:
                return
            start = part[-1][0] + b"\0"
            if self.names or self.frozen_names:
                # Each part looks through all that are changed.
                size *= 8

    def _first_names(self, prefix: bytes, start: bytes, size: int) -> list[tuple[bytes, int]]:
        names, frozen = self.names, self.frozen_names

        def changed() -> Iterator[tuple[bytes, int]]:
            for name, id in names.items():
                if id is not None and name >= start and name.startswith(prefix):
                    yield name, id
            for name, id in frozen.items():
                if id is not None and name >= start and name.startswith(prefix) and name not in names:
                    yield name, id

        committed = (
            item for item in self.catalog.names(prefix, start) if item[0] not in names and item[0] not in frozen
        )
        return list(islice(heapq.merge(committed, heapq.nsmallest(size, changed())), size))

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
