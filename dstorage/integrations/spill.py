"""A mapping that spills bytes to a dstorage store of its own, for zict and for dask workers: ``pip install dstorage[dask]``.

What is spilled is scratch: it lives as long as the mapping, in a store in a temporary directory, is never committed and leaves nothing
behind. Small values are gathered and brought to the store many at a time; writing to the disk goes on in the background, within the
budget, and what is deleted before that is never written.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import zict

from dstorage import blocking
from dstorage.buffers import copied, fresh_buffer, joined
from dstorage.controller import Buffer
from dstorage.errors import ClosedError, Deleted, Lost, UsageError
from dstorage.integrations.pieces import flat
from dstorage.paging.budget import parse_bytes
from dstorage.registry import load_plugin
from dstorage.store import Store as AsyncStore

Key = TypeVar("Key", bound=Hashable)

GATHERED_IN_BUDGET = 8
"""This share of the budget holds small values until a trip to the store's loop is worth its price."""
WHOLE_SHARE = 5 / 8
"""Of the budget: a value of up to so much is one chunk, which is read in the calling thread, or lent. It may be dirty as a whole (`DIRTY_SHARE`)."""
PIECES_IN_BUDGET = 8
"""A larger one is cut into pieces of this share, and joined when it is read."""
JOINED_IN_BUDGET = 4
"""A value of at most this share of the budget is in memory as a whole when it is joined."""
DIRTY_SHARE = 0.75
"""What is wanted back before it was written costs the disk nothing: so more of the budget may be dirty than in other stores."""
WAIT_S = 60.0
"""How long a read waits for room in memory or for a controller that is away."""
DELETED_AT_A_TIME = 256
DELETED_IN_BUDGET = 4
"""So many deleted pieces, or pieces of this share of the budget, wait for the next trip to the loop: what lies together is freed together, which
the file system does in a fraction of the time."""
SEGMENT_BYTES = 32 * 2**20
"""Of a file of the disk controller: what is short-lived dies together, and deleting a file costs less than punching holes into one."""
STALLED_S = 0.5
"""How long a write waits for room while nothing is being written to the disk; as long as something is, it waits on."""


class SpillMapping(zict.common.ZictBase[Key, Buffer]):
    """A mutable mapping of bytes that pages to the disk; for the slow side of a `zict.Buffer`, behind a `zict.Func`::

        slow = zict.Func(pickle.dumps, pickle.loads, SpillMapping(budget="64M"))
        data = zict.Buffer({}, slow, n=2**30, weight=lambda key, value: value.nbytes)

    Values are bytes-like, or iterables of bytes-like parts that are stored as joined; they come back as a `bytearray` that is the
    caller's. Thread-safe. Iterating while another thread adds or removes keys raises `RuntimeError`, as for a dict.

    Args:
        directory: Where to make the temporary directory; by default the system's.
        budget: Memory for values on their way to the disk or back, and for those last used: bytes, or text like "64M".
        options: Further arguments for `dstorage.open`.

    Raises:
        InvalidArgumentError: An argument is out of range.
        OSError: No directory could be made.
    """

    def __init__(self, directory: str | None = None, *, budget: int | str = "64M", **options: Any) -> None:
        super().__init__()
        whole = parse_bytes(budget)
        self._gather_bytes = whole // GATHERED_IN_BUDGET
        self._whole_bytes = int(whole * WHOLE_SHARE)
        self._piece_bytes = max(1, whole // PIECES_IN_BUDGET)
        self._places: dict[Key, _Place] = {}
        self._gathered: dict[Key, _Place] = {}
        self._gathered_bytes = 0
        self._deleted: list[int] = []
        self._deleted_bytes = 0
        self._delete_bytes = whole // DELETED_IN_BUDGET
        path = tempfile.mkdtemp(prefix="dstorage-", dir=directory)
        try:
            # Nothing is durable here, and so there is nothing to commit.
            settings: dict[str, Any] = {
                "controllers": [load_plugin("disk").from_settings("disk", {"segment_bytes": SEGMENT_BYTES})],
                "commit_interval": None,
                "tiering": False,
                "dirty_share": DIRTY_SHARE,
                **options,
            }
            self._store = blocking.open(path, budget=whole - self._gather_bytes, **settings)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        self._finalizer = weakref.finalize(self, _clean_up, self._store, self._places, self._deleted, path)
        _at_exit.difference_update([finalizer for finalizer in tuple(_at_exit) if not finalizer.alive])
        _at_exit.add(self._finalizer)

    # -- the mapping --------------------------------------------------------------------------------------------------

    def __setitem__(self, key: Key, value: Buffer | Iterable[Buffer]) -> None:
        """Store a value.

        Raises:
            MemoryUnavailable: No room, and nothing can be written: the disk is full, or fails. An older value stays.
        """
        parts = [flat(part) for part in ([value] if isinstance(value, bytes | bytearray | memoryview) else value)]
        size = sum(map(len, parts))
        with self.lock:
            if size <= self._gather_bytes:
                if self._gathered_bytes + size > self._gather_bytes:
                    self._bring_gathered()
                place = _Place(size, held=joined(parts))
                self._remove(key)
                self._gathered[key] = place
                self._gathered_bytes += size
            else:
                length = size if size <= self._whole_bytes else self._piece_bytes
                place = self._bring(size, _pieces(parts, length))
                self._remove(key)
            self._places[key] = place

    def __getitem__(self, key: Key) -> bytearray:
        """A copy of a value.

        Raises:
            KeyError: There is none.
            TemporarilyUnavailable, Lost, CorruptData: Its bytes cannot be had.
        """
        while True:
            place = self._places[key]
            held, ids = place.held, place.ids
            if held is not None:
                return copied(held)
            if not ids:
                # On its way to the store, or lent from there, between one look and the other.
                continue
            try:
                if len(ids) == 1:
                    return self._copy(ids[0]) or copied(self._store.get(ids[0], wait=WAIT_S))
                return self._store.call(_read, self._store.inner, ids, place.size, self._piece_bytes)
            except (Deleted, Lost):
                # Replaced, removed or lent since it was looked up: of what is long deleted the store knows nothing any more.
                if self._places.get(key) is place and place.ids == ids:
                    raise

    def lend(self, key: Key) -> bytearray:
        """The value for whoever deletes the key next or `keeps` it: what was not written yet is no copy, and leaves the budget.

        Raises:
            KeyError, TemporarilyUnavailable, Lost, CorruptData: As for reading a copy.
        """
        with self.lock:
            place = self._places[key]
            self._not_gathered(key)
            if place.held is None and len(place.ids) == 1:
                copy = self._copy(place.ids[0])
                if copy is not None:
                    return copy
                contents, taken = self._store.call(_take, self._store.inner, place.ids[0])
                if not taken:
                    return copied(contents)
                place.ids, place.held = (), contents if isinstance(contents, bytearray) else bytearray(contents)
            return self[key] if place.held is None else place.held

    def keeps(self, key: Key) -> bool:
        """Whether what was lent is in the store still, so that it need not be stored again."""
        return bool(self._places[key].ids)

    def __delitem__(self, key: Key) -> None:
        with self.lock:
            if key not in self._places:
                raise KeyError(key)
            self._remove(key)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<SpillMapping {str(self._store.path)!r}, {len(self)} values>"

    def close(self) -> None:
        """Forget all values and remove the directory. Idempotent; done at the latest at the exit of the program."""
        if hasattr(self, "_finalizer"):  # else making it failed
            self._finalizer()

    def _copy(self, id: int) -> bytearray | None:
        """What is written already, where it can be had without a trip to the loop: in memory still, or in the page cache.

        It does not come into memory: there it is the caller's to keep.
        """
        store = self._store.inner
        handle = store.table.handles.get(id)
        if handle is None or (buffer := handle.buffer) is None:
            return store.shortcut.read_writable(id)
        return None if handle.dirty else copied(buffer)

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _bring(self, size: int, pieces: Iterator[bytearray]) -> _Place:
        """Bring a value to the store, piece by piece."""
        ids: list[int] = []
        try:
            # Of a piece nobody but the store knows then; it would count as in use else.
            while piece := list(islice(pieces, 1)):
                ids += self._adopt(piece)
                piece.clear()
        except BaseException:
            self._delete(ids, size)
            raise
        return _Place(size, tuple(ids))

    def _bring_gathered(self) -> None:
        """Bring all that has been gathered to the store in one trip; what fails stays."""
        places = list(self._gathered.values())
        ids = self._adopt([place.held for place in places if place.held is not None])
        for place, id in zip(places, ids, strict=True):
            place.ids, place.held = (id,), None
        self._gathered.clear()
        self._gathered_bytes = 0

    def _adopt(self, pieces: Sequence[bytearray]) -> list[int]:
        store, deleted = self._store.inner, self._take_deleted()
        try:
            return self._store.loop.run(_adopt, store, pieces, deleted, undo=lambda ids: _forget(store, ids))
        except BaseException:
            # It may have come there or not; what is deleted already does no harm.
            self._deleted += deleted
            raise

    def _remove(self, key: Key) -> None:
        place = self._places.pop(key, None)
        if place is not None:
            self._not_gathered(key)
            self._delete(place.ids, place.size)

    def _not_gathered(self, key: Key) -> None:
        place = self._gathered.pop(key, None)
        if place is not None:
            self._gathered_bytes -= place.size

    def _delete(self, ids: Sequence[int], size: int) -> None:
        """Delete pieces, of `size` bytes together, with the next trip to the loop that is worth its price."""
        if ids:
            self._deleted += ids
            self._deleted_bytes += size
            if len(self._deleted) >= DELETED_AT_A_TIME or self._deleted_bytes >= self._delete_bytes:
                deleted = self._take_deleted()
                self._store.loop.post(lambda: _forget(self._store.inner, deleted))

    def _take_deleted(self) -> list[int]:
        deleted = self._deleted.copy()
        self._deleted.clear()
        self._deleted_bytes = 0
        return deleted


@dataclass(slots=True)
class _Place:
    """Where a value is.

    Attributes:
        size: Its length in bytes.
        ids: Its pieces in the store, all but the last of equal length.
        held: The value itself, if it is not in the store: gathered, or lent.
    """

    size: int
    ids: tuple[int, ...] = ()
    held: bytearray | None = None


def _pieces(parts: Iterable[memoryview], length: int) -> Iterator[bytearray]:
    """The parts joined and cut into pieces of `length` bytes, the last one shorter."""
    piece: list[memoryview] = []
    room = length
    for part in parts:
        rest = part
        while len(rest) >= room:
            yield joined([*piece, rest[:room]])
            rest = rest[room:]
            piece, room = [], length
        if len(rest):
            piece.append(rest)
            room -= len(rest)
    if piece:
        yield joined(piece)


# What runs on the store's loop.


async def _adopt(store: AsyncStore, pieces: Sequence[bytearray], deleted: Sequence[int]) -> list[int]:
    """Make chunks of buffers that are given away, all or none, once those deleted have made room."""
    _forget(store, deleted)
    ids: list[int] = []
    try:
        for piece in pieces:
            if not store.room.try_reserve(len(piece)):
                await store.room.reserve(len(piece), 0, STALLED_S, dirty=True)
            with store.contents.adopt(piece, durable=False) as handle:
                ids.append(handle.id)
    except BaseException:
        # Those adopted so far are the caller's again, unchanged.
        _forget(store, ids)
        raise
    return ids


async def _take(store: AsyncStore, id: int) -> tuple[Buffer, bool]:
    """Contents of a chunk; if they were not written yet that is the end of it, and the second is True."""
    with store.table.get(id) as handle:
        await handle.get(wait=WAIT_S)
        # Nothing is awaited from here on, so it is still there.
        return (store.contents.take(handle), True) if handle.dirty else (handle.data, False)


async def _read(store: AsyncStore, ids: Sequence[int], size: int, length: int) -> bytearray:
    places = {id: number for number, id in enumerate(ids)}
    if size <= store.options.budget // JOINED_IN_BUDGET:
        views = [memoryview(b"")] * len(ids)
        async for handle in store.resolve_each(ids, wait=WAIT_S):
            views[places[handle.id]] = await handle
        return joined(views)
    # Too much to be held.
    result = fresh_buffer(size)
    async for handle in store.resolve_each(ids, wait=WAIT_S):
        begin = places[handle.id] * length
        data = await handle
        result[begin : begin + len(data)] = data
    return result


def _forget(store: AsyncStore, ids: Iterable[int]) -> None:
    with suppress(ClosedError):
        store.contents.delete_each(ids)


def _clean_up(store: blocking.Store, places: dict[Any, _Place], deleted: list[int], path: str) -> None:
    """Close and remove a store, without writing what is of no use any more."""

    def clean_up() -> None:
        ids = [*deleted, *(id for place in places.values() for id in place.ids)]
        places.clear()
        with suppress(ClosedError):
            store.loop.call_sync(_forget, store.inner, ids)
        store.close()
        shutil.rmtree(path, ignore_errors=True)

    try:
        store.loop.check_caller()
    except UsageError:
        # The garbage collector came by on the store's own loop, which cannot wait for itself.
        threading.Thread(target=clean_up, name=f"remove {path}").start()
    else:
        clean_up()


_at_exit: set[weakref.finalize[..., Any]] = set()


def _clean_up_at_exit() -> None:
    for finalizer in list(_at_exit):
        finalizer()


# Before blocking stores that are still open are closed, which would write what nobody wants any more, perhaps to a directory that is gone:
# what is registered last comes first.
getattr(threading, "_register_atexit", atexit.register)(_clean_up_at_exit)


def _after_fork() -> None:
    """What a forked child gets to see is the parent's, and is not removed by it."""
    for finalizer in _at_exit:
        finalizer.detach()
    _at_exit.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
