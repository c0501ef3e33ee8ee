"""A zarr v3 store on a dstorage store: ``pip install dstorage[zarr]``.

zarr runs its own event loop in its own thread, the dstorage store has another one; what zarr asks crosses over once per key, and the
bytes of a whole value come back without a copy, unless much is held of what came so before. Keys are paths in the store's tree of files (see `dstorage.integrations.tree`), which the fsspec file
system shows as well.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any, Self

import numpy as np
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from dstorage import blocking
from dstorage.errors import CorruptData, InvalidArgumentError
from dstorage.integrations.mount import Mount, Source
from dstorage.integrations.tree import Entry, Tree, split
from dstorage.store import Store as DStore

LENT_IN_BUDGET = 4
"""This share of the budget may be lent out with values; it is memory that the store cannot use before they are dropped."""


class ZarrStore(Store):
    """A store for zarr arrays and groups that pages through dstorage.

    What is set is durable with the next commit of the dstorage store (every few seconds, by `commit`, at `close`). A chunk that
    cannot be had raises, it is never taken for the fill value. A component of a key has at most 497 bytes of UTF-8; a key may have
    any number of them.

    From any thread and loop. It can be pickled if it was given a path; one process at a time writes a store, so others get `StoreLocked`
    unless it is read-only.

    Args:
        store: Directory of a store, which is opened at the first use and closed with the last `close` in this process; or a
            `dstorage.Store` or `dstorage.blocking.Store`, which stays open.
        path: Directory of the tree where the keys begin; "" is the root.
        read_only: Refuse changes by way of this object. With a directory: look only, at what is set in this process, or else at what was
            committed last, beside the process that writes.
        options: With a directory: arguments for `dstorage.open`, such as ``budget="2G"``.

    Raises:
        InvalidArgumentError: `path` is no path, or there are options for a store that is open.
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True

    def __init__(self, store: Source, *, path: str = "", read_only: bool = False, **options: Any) -> None:
        super().__init__(read_only=read_only)
        self.path = "/".join(split(path.strip("/")))
        if read_only and not isinstance(store, DStore | blocking.Store):
            options["read_only"] = True
        self._mount = Mount(store, options, overlap=True, join=True)
        self._derived = False

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same place, read-only or not: open as long as this is, and closed with it, if this one's directory is not open only to look."""
        if "read_only" in self._mount.options and not read_only:
            return type(self)(self._mount.source, path=self.path, **self._options())
        # zarr makes such ones by itself, to read, and closes none.
        other = type(self).__new__(type(self))
        Store.__init__(other, read_only=read_only)
        other.path, other._mount, other._derived = self.path, self._mount, True
        return other

    # -- life ---------------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        if self._is_open:
            raise ValueError("store is already open")
        await self._ready()

    async def _ready(self) -> None:
        """Open unless that is done; many may ask at once."""
        if not self._is_open:
            await asyncio.to_thread(self._mount.open)
            self._is_open = True

    def _ready_now(self) -> None:
        if not self._is_open:
            self._mount.open()
            self._is_open = True

    def close(self) -> None:
        """Give the dstorage store back: the last one who does, of those who named it by path, commits and closes it.

        One that `with_read_only` made leaves this to the one it was made from.
        """
        super().close()
        if not self._derived:
            self._mount.close()

    def commit(self) -> None:
        """Block until everything set before is durable.

        Raises:
            StoreFull, TemporarilyUnavailable: It could not be made so; nothing in memory is lost.
        """
        self._mount.call(_commit)

    def collect(self) -> int:
        """Free the space of values that were being written when a process was killed; nobody sees them otherwise.

        It looks at all that is in the store, so it takes its time, while other calls go on.

        Returns:
            How many chunks were freed.
        """
        return self._mount.call(Tree.collect)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The value, or a part of it; None if there is none.

        Raises:
            TemporarilyUnavailable: It cannot be had now, even after a minute.
            Lost, CorruptData: Its bytes are gone, or not what was set.
        """
        limits = _limits(byte_range)
        await self._ready()
        path = self._path_of(key)
        return None if path is None else _buffer(await self._mount.run(_read, path, *limits), prototype)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """`get`, blocking."""
        limits = _limits(byte_range)
        self._ready_now()
        path = self._path_of(key)
        return None if path is None else _buffer(self._mount.call(_read, path, *limits), prototype)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several values, or parts of them, in order."""
        return list(await asyncio.gather(*[self.get(key, prototype, part) for key, part in key_ranges]))

    async def exists(self, key: str) -> bool:
        """Whether there is a value."""
        await self._ready()
        path = self._path_of(key)
        return path is not None and await self._mount.now(_exists, path)

    async def getsize(self, key: str) -> int:
        """Length of a value in bytes, without reading it.

        Raises:
            FileNotFoundError: There is none.
        """
        await self._ready()
        path = self._path_of(key)
        if path is None:
            raise FileNotFoundError(key)
        return await self._mount.run(Tree.size, path)

    # -- changing -----------------------------------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        """Set a value.

        Raises:
            InvalidArgumentError: The key is no path, or a component is too long.
            StoreFull, MemoryUnavailable: No room.
        """
        await self._ready()
        self._check_writable()
        await self._mount.run(Tree.write, self._new_path_of(key), _bytes(value))

    def set_sync(self, key: str, value: Buffer) -> None:
        """`set`, blocking."""
        self._ready_now()
        self._check_writable()
        self._mount.call(Tree.write, self._new_path_of(key), _bytes(value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Set a value unless there is one; of several who do, one wins."""
        await self._ready()
        self._check_writable()
        await self._mount.run(_write_new, self._new_path_of(key), _bytes(value))

    async def delete(self, key: str) -> None:
        """Remove a value; fine if there is none."""
        await self._ready()
        self._check_writable()
        if (path := self._path_of(key)) is not None:
            await self._mount.run(_remove, path)

    def delete_sync(self, key: str) -> None:
        """`delete`, blocking."""
        self._ready_now()
        self._check_writable()
        if (path := self._path_of(key)) is not None:
            self._mount.call(_remove, path)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all values below a prefix."""
        await self._ready()
        self._check_writable()
        path = self._path_of(prefix.rstrip("/")) if prefix else self.path
        if path is not None:
            await self._mount.run(_remove_below, path)

    # -- listing ------------------------------------------------------------------------------------------------------

    def list(self) -> AsyncIterator[str]:
        """All keys."""
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys that begin with `prefix`, directory by directory."""
        await self._ready()
        above, _, begin = prefix.rpartition("/")
        pending: list[tuple[str, frozenset[int]]] = [(above, frozenset())]
        while pending:
            directory, around = pending.pop()
            path = self._path_of(directory) if directory else self.path
            entries = [] if path is None else await self._mount.now(_entries, path)
            below = f"{directory}/" if directory else ""
            for entry in entries:
                if directory == above and not entry.name.startswith(begin):
                    continue
                if entry.is_directory:
                    if entry.number in around:
                        raise CorruptData(f"the directory {(below + entry.name)[:80]!r} is in itself")
                    pending.append((below + entry.name, around | {entry.number}))
                else:
                    yield below + entry.name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a prefix, of values and of what begins further keys."""
        await self._ready()
        directory = prefix.rstrip("/")
        path = self._path_of(directory) if directory else self.path
        if path is not None:
            for name in {entry.name: None for entry in await self._mount.now(_entries, path)}:
                yield name

    # -- paths --------------------------------------------------------------------------------------------------------

    def _new_path_of(self, key: str) -> str:
        if not key or not split(key):
            raise InvalidArgumentError("an empty key: give one")
        return f"{self.path}/{key}" if self.path else key

    def _path_of(self, key: str) -> str | None:
        """The path of a key; None if no value can have such a key."""
        try:
            return self._new_path_of(key)
        except InvalidArgumentError:
            return None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, type(self))
            and self._mount.path == other._mount.path
            and self.path == other.path
            and self.read_only == other.read_only
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self._mount.source, str | os.PathLike):
            raise TypeError(f"{self!r} was given an open store: only one given a path can be pickled")
        return _make, (str(self._mount.path), self.path, self.read_only, self._options())

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in self._mount.options.items() if name != "read_only"}

    def __str__(self) -> str:
        return f"dstorage://{self._mount.path.as_posix()}" + (f"::{self.path}" if self.path else "")

    def __repr__(self) -> str:
        return f"ZarrStore('{self}')"


def _make(store: str, path: str, read_only: bool, options: dict[str, Any]) -> ZarrStore:
    return ZarrStore(store, path=path, read_only=read_only, **options)


def _limits(part: ByteRequest | None) -> tuple[int, int | None]:
    """Begin and end as a slice has them."""
    match part:
        case None:
            return 0, None
        case RangeByteRequest(start, end):
            return start, end
        case OffsetByteRequest(offset):
            return offset, None
        case SuffixByteRequest(suffix):
            return (-suffix, None) if suffix else (0, 0)
    raise ValueError(f"Unexpected byte_range, got {part}.")


def _buffer(data: Any, prototype: BufferPrototype | None) -> Buffer | None:
    return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)


def _bytes(value: Buffer) -> Any:
    if not isinstance(value, Buffer):
        raise TypeError(
            f"ZarrStore.set(): `value` must be a Buffer instance. Got an instance of {type(value)} instead."
        )
    return value.as_numpy_array()


# What runs on the store's loop.


async def _read(tree: Tree, path: str, start: int, stop: int | None) -> Any:
    try:
        data = await tree.read(path, start, stop)
    except (FileNotFoundError, IsADirectoryError):
        return None
    if isinstance(data, bytearray):
        # Joined from pieces: nobody else's.
        return data
    if (start, stop) != (0, None):
        # A few bytes would hold all of their chunk, and zarr holds those of a whole shard.
        return bytearray(data)
    lent = _lent.get(tree.store)
    if lent is None:
        lent = _lent[tree.store] = _Lent(tree.store.options.budget // LENT_IN_BUDGET)
    return lent.lend(data)


class _Lent:
    """How much of a store's memory is in the hands of those who read.

    Args:
        most: Bytes that may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        # Arrays are collected in any thread, at any time.
        self._returned: deque[int] = deque()

    def lend(self, data: bytes | memoryview) -> Any:
        """The same memory, or a copy if too much of it is away."""
        while self._returned:
            self._bytes -= self._returned.popleft()
        size = len(data)
        if self._bytes + size > self._most:
            return bytearray(data)
        # Whatever is made of the array keeps it.
        array = np.frombuffer(data, "u1")
        weakref.finalize(array, self._returned.append, size).atexit = False
        self._bytes += size
        return array


_lent: weakref.WeakKeyDictionary[DStore, _Lent] = weakref.WeakKeyDictionary()


def _exists(tree: Tree, path: str) -> bool:
    entry = tree.find(path)
    return entry is not None and not entry.is_directory


def _entries(tree: Tree, path: str) -> list[Entry]:
    try:
        return tree.entries(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


async def _write_new(tree: Tree, path: str, data: Any) -> None:
    with suppress(FileExistsError):
        await tree.write(path, data, exclusive=True)


async def _remove(tree: Tree, path: str) -> None:
    with suppress(FileNotFoundError, IsADirectoryError):
        await tree.remove(path, prune=True)


async def _remove_below(tree: Tree, path: str) -> None:
    for name in {entry.name for entry in _entries(tree, path)}:
        await tree.remove_all(f"{path}/{name}" if path else name)
    tree.prune(path)


async def _commit(tree: Tree) -> None:
    await tree.store.commit()
