"""Spilling to a dstorage store, for dask workers and for zict: ``pip install dstorage[dask]``.

What is spilled is scratch: it lives as long as the mapping, in a store of its own in a temporary directory, is never committed and
leaves nothing behind. What the program does not wait for is not waited for: writing to the disk goes on in the background, within the
store's budget, and what is deleted before that is never written.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import zict
from distributed.protocol.compression import get_compression_settings
from distributed.protocol.serialize import deserialize_bytes, serialize_bytelist
from distributed.spill import Slow, SpilledSize, _in_memory_weight
from distributed.spill import SpillBuffer as DistributedSpillBuffer

from dstorage import blocking
from dstorage.blocking.loop import Call
from dstorage.controller import Buffer
from dstorage.errors import ClosedError, InvalidArgumentError, Lost, MemoryUnavailable, UsageError
from dstorage.integrations.pieces import PIECE_BYTES, PIECES_IN_BUDGET, flat
from dstorage.paging.budget import parse_bytes
from dstorage.store import Store as AsyncStore

Key = TypeVar("Key", bound=Hashable)

BUDGET_SHARE = 4
"""Of a worker's target this part is the store's: enough for what is being written and read, with little taken from the objects."""
JOINED_IN_BUDGET = 4
"""A value of at most this share of the budget is in memory as a whole when it is joined."""
WAIT_S = 60.0
"""How long a read waits for room in memory or for a controller that is away."""

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
        self._places: dict[Key, tuple[int, Sequence[int]]] = {}
        path = tempfile.mkdtemp(prefix="dstorage-", dir=directory)
        try:
            # Nothing is durable here, and so there is nothing to commit.
            settings: dict[str, Any] = {"commit_interval": None, "tiering": False, **options}
            self._store = blocking.open(path, budget=budget, **settings)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        self._piece_bytes = max(1, min(PIECE_BYTES, self._store.options.budget // PIECES_IN_BUDGET))
        self._finalizer = weakref.finalize(self, _clean_up, self._store, self._places, path)

    def __setitem__(self, key: Key, value: Buffer | Iterable[Buffer]) -> None:
        """Store a value.

        Raises:
            MemoryUnavailable: No room, and nothing can be written: the disk is full, or fails. An older value stays.
        """
        ids: list[int] = []
        size = 0
        try:
            for piece in _pieces(value, self._piece_bytes):
                ids.append(self._create(piece))
                size += len(piece)
        except BaseException:
            self._delete(ids)
            raise
        old = self._places.get(key)
        self._places[key] = size, ids
        if old is not None:
            self._delete(old[1])

    def __getitem__(self, key: Key) -> bytearray:
        """A copy of a value.

        Raises:
            KeyError: There is none.
            TemporarilyUnavailable, Lost, CorruptData: Its bytes cannot be had.
        """
        size, ids = self._places[key]
        if len(ids) == 1:
            return bytearray(self._store.get(ids[0], wait=WAIT_S))
        return self._store.call(_read, self._store.inner, ids, size, self._piece_bytes)

    def __delitem__(self, key: Key) -> None:
        _, ids = self._places.pop(key)
        self._delete(ids)

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

    def _create(self, piece: bytes) -> int:
        store = self._store.inner

        def begin(call: Call[int]) -> None:
            # A task only if there is something to wait for.
            if store.room.try_reserve(len(piece)):
                call.done(_adopt(store, piece))
            else:
                call.run(_reserve_and_adopt(store, piece))

        return self._store.loop.call(begin, undo=lambda id: _forget(store, [id]))

    def _delete(self, ids: Sequence[int]) -> None:
        self._store.loop.post(lambda: _forget(self._store.inner, ids))


class SpillBuffer(DistributedSpillBuffer):
    """What a dask worker keeps its data in: distributed's own, but for where the bytes go::

        LocalCluster(memory_limit="4GB", data=(SpillBuffer, {"target": "2.4GB"}))

    Metrics, the dashboard's "spilled" figures, the memory monitor, ``spill-compression`` and the handling of errors are distributed's.

    Args:
        target: Managed memory, in bytes or as text, at which spilling begins, and which is held: objects and the store's budget
            together. Distributed's own takes 60 % of a worker's memory limit.
        budget: The part of it that is the store's; by default a quarter.
        max_spill: Most bytes that are spilled; False for no limit.
        worker_local_directory: Where to make the temporary directory; dask gives the worker's own.

    Raises:
        InvalidArgumentError: An argument is out of range.
    """

    def __init__(
        self,
        target: int | str,
        *,
        budget: int | str | None = None,
        max_spill: int | bool = False,
        worker_local_directory: str | None = None,
    ) -> None:
        whole = parse_bytes(target)
        part = whole // BUDGET_SHARE if budget is None else parse_bytes(budget)
        if not 0 < part < whole:
            raise InvalidArgumentError(
                f"budget={budget} of target={target}: give less than the target, and more than 0"
            )
        slow = _Slow(SpillMapping(worker_local_directory, budget=part), max_spill)
        # As distributed's own does it: a value still in use somewhere is not read a second time.
        cached: Any = zict.Cache(slow, zict.WeakValueMapping())
        zict.Buffer.__init__(self, fast={}, slow=cached, n=whole - part, weight=_in_memory_weight)
        self.logged_pickle_errors = set()
        self.cumulative_metrics = defaultdict(float)

    def close(self) -> None:
        """Forget all data and remove the directory. Idempotent; done at the latest at the exit of the worker."""
        if hasattr(self, "slow"):  # else making it failed
            super().close()


class _Slow(Slow):
    """Serializes, counts and measures as distributed's own; the bytes go to a `SpillMapping`."""

    def __init__(self, mapping: SpillMapping[Any], max_weight: int | bool) -> None:
        compression = get_compression_settings("distributed.worker.memory.spill-compression")
        dump: Any = partial(serialize_bytelist, compression=compression, on_error="raise")
        zict.Func.__init__(self, dump, deserialize_bytes, mapping)
        self.max_weight = max_weight
        self.weight_by_key = {}
        self.total_weight = SpilledSize(0, 0)

    def __setitem__(self, key: Any, value: object) -> None:
        try:
            super().__setitem__(key, value)
        except MemoryUnavailable as error:
            # This is what distributed knows as "keep it in memory, and say so".
            raise OSError(str(error)) from error


def _pieces(value: Buffer | Iterable[Buffer], length: int) -> Iterator[bytes]:
    """The value cut into pieces of `length` bytes, the last one shorter; none if it is empty."""
    parts = [value] if isinstance(value, bytes | bytearray | memoryview) else value
    piece: list[memoryview] = []
    room = length
    for view in map(flat, parts):
        while len(view) >= room:
            yield b"".join([*piece, view[:room]])
            view = view[room:]
            piece, room = [], length
        if len(view):
            piece.append(view)
            room -= len(view)
    if piece:
        yield b"".join(piece)


# What runs on the store's loop.


def _adopt(store: AsyncStore, piece: bytes) -> int:
    with store.contents.adopt(piece, durable=False) as handle:
        return handle.id


async def _reserve_and_adopt(store: AsyncStore, piece: bytes) -> int:
    await store.room.reserve(len(piece), 0, STALLED_S, dirty=True)
    return _adopt(store, piece)


async def _read(store: AsyncStore, ids: Sequence[int], size: int, length: int) -> bytearray:
    places = {id: number for number, id in enumerate(ids)}
    if size <= store.options.budget // JOINED_IN_BUDGET:
        views = [memoryview(b"")] * len(ids)
        async for handle in store.resolve_each(ids, wait=WAIT_S):
            views[places[handle.id]] = await handle
        return bytearray().join(views)
    # Too much to be held; costs the zeros.
    result = bytearray(size)
    async for handle in store.resolve_each(ids, wait=WAIT_S):
        begin = places[handle.id] * length
        data = await handle
        result[begin : begin + len(data)] = data
    return result


def _forget(store: AsyncStore, ids: Iterable[int]) -> None:
    for id in ids:
        with store.handle(id) as handle, suppress(Lost, ClosedError):
            handle.delete()


def _clean_up(store: blocking.Store, places: dict[Any, tuple[int, Sequence[int]]], path: str) -> None:
    """Close and remove a store, without writing what is of no use any more."""

    def clean_up() -> None:
        ids = [id for _, some in places.values() for id in some]
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
