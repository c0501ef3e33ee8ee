"""`AsyncCache`: the cache for coroutines, and the one implementation of what both faces offer."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import stat
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import dstorage.opening
from dstorage.blocking.opening import OpenOptions
from dstorage.cache.core import ANYTHING, AT_A_TIME, Core, add_up
from dstorage.cache.keys import Key
from dstorage.cache.loading import load
from dstorage.cache.memoize import AsyncDecorator, Memo, MemoizeOptions, check_brackets, memoized_coroutine, named
from dstorage.cache.records import NEVER, Names
from dstorage.cache.report import CacheEntryInfo, CacheStats, info_of
from dstorage.cache.transaction import AsyncCacheTransaction, Turns
from dstorage.cache.values import ABSENT, Codec, Serializer, absence
from dstorage.errors import InvalidArgumentError, UsageError
from dstorage.paging.budget import parse_bytes
from dstorage.store import Store
from dstorage.waiting import check_wait

KEEP: Any = object()
"""Default of `size_limit`: as it was."""


class AsyncCache:
    """A cache of large data for coroutines: a mapping that is kept on disk, expires, has tags and a limit of its size::

        async with dstorage.AsyncCache("cache", size_limit="10G", budget="512M") as cache:
            await cache.set("logo", picture, expire=3600, tag="images")
            picture = await cache.get("logo")

    Keys are str, bytes, int, or tuples of them. Values are bytes-like, str, numbers, None and numpy arrays; anything else goes
    through the serializer that `serializer` names. Bytes and arrays that `get` returns share memory with the cache, and count
    against the budget for as long as you hold them.

    What is in memory is answered without waiting. Every change is atomic, and durable with the next commit: after a crash the
    cache is as it was a few seconds ago (`commit_interval`), whole. One process at a time writes a cache.

    It belongs to the event loop it was opened on; `in`, `len`, iteration and the other methods without ``async`` never wait.
    For programs without an event loop, and threads, see `dstorage.Cache`, which has the same names.

    Args:
        place: Directory of the cache, made private (mode 0700); or an open `dstorage.Store` that it is to be part of, which
            then stays open when the cache is closed.
        name: Name of the cache in the store, which may hold many.
        size_limit: Most bytes that the values may take, with 128 for each entry: a number, or "10G"; None for no limit. What
            was used longest ago leaves when there is more. By default as it was when last opened, 1 GiB at first.
        serializer: For values of other types: "json", "pickle" (only where nobody else can write the directory), a
            `dstorage.Serializer`, or several: the first one writes, all are read. By default such values are refused.
        reap_interval: What has expired is removed so many seconds later at the latest (nobody sees it meanwhile).
        wait: Seconds that a call keeps trying while the controller of a value is away or memory is short; by default the
            error comes at once.
        clock: Seconds since the epoch.
        options: For a directory: as for `dstorage.open` (`budget`, `commit_interval`, `controllers` and so on).

    Raises:
        TypeError: There is no such option.
        InvalidArgumentError: An argument is out of range.
        StoreLocked: (on opening) It is open already, in another process or in this one.
        UsageError: (on opening) The given store has a cache of that name open.
    """

    def __init__(
        self,
        place: str | os.PathLike[str] | Store,
        *,
        name: str = "cache",
        size_limit: int | str | None = KEEP,
        serializer: str | Serializer | Sequence[str | Serializer] | None = None,
        reap_interval: float = 1.0,
        wait: float | None = None,
        clock: Callable[[], float] = time.time,
        **options: Unpack[OpenOptions],
    ) -> None:
        unknown = options.keys() - OpenOptions.__annotations__.keys()
        if unknown:
            known = ", ".join([*(AsyncCache.__init__.__kwdefaults__ or ()), *OpenOptions.__annotations__])
            raise TypeError(f"a cache takes no {', '.join(sorted(unknown))}: there are {known}")
        if isinstance(place, Store) and options:
            raise InvalidArgumentError(f"{', '.join(options)}: the store is open already; these are for a directory")
        # An empty name, of a variable that was not set perhaps, would make the working directory a cache, and private.
        if not isinstance(place, (str, os.PathLike, Store)) or place == "":
            raise InvalidArgumentError(
                f"place {place!r}: give a directory, or a store of dstorage.open (dstorage.Cache takes one of dstorage.blocking.open)"
            )
        if not isinstance(reap_interval, (int, float)) or not 0 < reap_interval < NEVER:
            raise InvalidArgumentError(f"reap_interval={reap_interval}: give seconds > 0")
        check_wait(wait)
        self._place = place
        self._wait = wait
        Names(name)  # With the arguments checked before anything is made on the disk.
        self._name = name
        self._limit = size_limit if size_limit is KEEP else _parse_limit(size_limit)
        self._codec = Codec(serializer)
        self._reap_interval = reap_interval
        self._clock = clock
        self._options = options
        self._own: Store | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._core: Core | None = None
        self._turns = Turns()

    # -- life ---------------------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        """Open it."""
        if self._core is not None:
            raise UsageError("this cache was opened already: make another object to open it again")
        if isinstance(self._place, Store):
            store = self._place
            store.check_open()
        else:
            directory = Path(self._place)
            store = self._own = await dstorage.opening.open(directory, **self._options)
        try:
            if self._own is not None and not store.options.read_only:
                make_private(store.path)
            core = Core(store, self._name, self._codec, self._clock, self._wait)
            try:
                await load(core)
                if not store.options.read_only:
                    await core.set_size_limit(core.size_limit if self._limit is KEEP else self._limit)
                    self._reaper = store.spawn(self._reap(core))
            except BaseException:
                core.close()
                raise
        except BaseException:
            if self._own is not None:
                await self._own.close()
            raise
        self._core = core
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Commit and give everything back; a store that was given stays open. Idempotent.

        Raises:
            StoreFull, TemporarilyUnavailable: The last commit could not be made; the cache is closed all the same, as it
                was at the commit before.
        """
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
            self._reaper = None
        if self._core is not None:
            self._core.close()
        if self._own is not None:
            await self._own.close()

    async def commit(self) -> None:
        """Return when all changes up to this call are durable, as one; without it, they are within `commit_interval`.

        Raises:
            StoreFull, TemporarilyUnavailable: It could not be made; nothing in memory is lost.
        """
        await self.core.store.commit()

    async def _reap(self, core: Core) -> None:
        while True:
            await asyncio.sleep(self._reap_interval)
            await core.in_parts(core.expire)

    # -- one key ------------------------------------------------------------------------------------------------------

    async def get(self, key: Key, default: Any = None, *, copy: bool = False) -> Any:
        """The value of `key`, or `default`.

        Args:
            key: The key.
            default: What to return if there is no value.
            copy: Bytes and arrays are a copy of their own: not counted in the budget, however long they are held; an
                array is writable.

        Raises:
            TemporarilyUnavailable: The value cannot be had now.
            MemoryUnavailable: All of the budget is held by values that were got without `copy`.
            CorruptData: The bytes are no value.
            UsageError: Its serializer was not named, or the cache is closed.
        """
        core = self.core
        found = core.hot(key) or await core.read(key)
        if found is None or found[0].kind is ABSENT:
            core.misses.add()
            return default
        core.hits.add()
        entry, payload = found
        return core.decode(entry, payload, copy=copy)

    async def __getitem__(self, key: Key) -> Any:
        """The value of `key`.

        Raises:
            KeyError: There is none.
        """
        value = await self.get(key, ANYTHING)
        if value is ANYTHING:
            raise KeyError(key)
        return value

    async def set(self, key: Key, value: Any, *, expire: float | None = None, tag: Key | None = None) -> None:
        """Let `value` stand for `key`, in place of any other.

        Args:
            key: The key.
            value: The value; copied.
            expire: Seconds from now until it expires, None for never.
            tag: A key under which `evict` and `keys` find it, with others.

        Raises:
            InvalidArgumentError: The value needs a serializer or is larger than `size_limit`, or an argument is out of range.
            MemoryUnavailable: No room in the budget.
            ReadOnlyError: The cache was opened with `read_only=True`.
        """
        core = self.core
        await core.write(key, core.codec.encode(value), expire=expire, tag=tag)

    async def add(self, key: Key, value: Any, *, expire: float | None = None, tag: Key | None = None) -> bool:
        """`set`, if `key` has no value yet; returns whether it was done. Of many at once, one does it."""
        core = self.core
        if core.current(key) is not None:
            return False
        return await core.write(key, core.codec.encode(value), expire=expire, tag=tag, expected=None)

    async def setdefault(self, key: Key, default: Any, *, expire: float | None = None, tag: Key | None = None) -> Any:
        """The value of `key`, which is `default` from now on if it had none."""
        while True:
            value = await self.get(key, ANYTHING)
            if value is not ANYTHING:
                return value
            if await self.add(key, default, expire=expire, tag=tag):
                return default

    async def pop(self, key: Key, default: Any = None) -> Any:
        """Remove `key` and return its value, or `default` if it has none. Of many at once, one gets it."""
        core = self.core
        while (found := await core.read(key)) is not None and found[0].kind is not ABSENT:
            value = core.decode(*found)
            if core.erase_same(found[0]):
                return value
        return default

    async def delete(self, key: Key) -> bool:
        """Remove `key`, or a remembered miss; returns whether it had a value."""
        core = self.core
        core.check_writable()
        entry = core.lookup(key)
        if entry is None:
            return False
        core.erase(entry)
        return entry.kind is not ABSENT

    async def touch(self, key: Key, expire: float | None = None) -> bool:
        """Let `key` expire `expire` seconds from now, or never; returns whether there is such a key."""
        core = self.core
        return core.touch(key, expire)

    async def incr(self, key: Key, delta: float = 1, default: float | None = 0) -> Any:
        """Add `delta` to the number under `key`, atomically; its expiry and tag stay.

        Args:
            key: The key.
            delta: An int or float.
            default: What to start from if there is none, or None to refuse.

        Returns:
            The sum.

        Raises:
            KeyError: There is none, and `default` is None.
            InvalidArgumentError: The value, or an argument, is no number.
        """
        core = self.core
        while True:
            found = await core.read(key)
            entry = None if found is None or found[0].kind is ABSENT else found[0]
            total = add_up(key, core.decode(*found) if found is not None and entry is not None else default, delta)
            if await core.write(key, core.codec.encode(total), expected=entry, like=entry):
                return total

    async def decr(self, key: Key, delta: float = 1, default: float | None = 0) -> Any:
        """`incr` by minus `delta`."""
        return await self.incr(key, -delta, default)

    async def set_missing(self, key: Key, reason: str = "", *, expire: float | None) -> None:
        """Remember for `expire` seconds that there is no value for `key`: `get` still gives the default, and `missing` says
        why. Any value it had is removed.
        """
        await self.core.write(key, absence(reason), expire=expire)

    async def missing(self, key: Key) -> str | None:
        """The reason given to `set_missing` while it is remembered, else None."""
        core = self.core
        entry = core.lookup(key)
        if entry is None or entry.kind is not ABSENT:
            return None
        found = await core.read(key)
        return None if found is None or found[0].kind is not ABSENT else str(core.decode(*found))

    def info(self, key: Key) -> CacheEntryInfo | None:
        """Size, expiry and tag of `key`, or None; its value need not be in memory."""
        entry = self.core.current(key)
        return None if entry is None else info_of(entry)

    def __contains__(self, key: Key) -> bool:
        return self.core.current(key) is not None

    # -- many at once -------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Iterable[Key], *, copy: bool = False) -> dict[Key, Any]:
        """The values of those `keys` that have one; what is on disk is read together. They must fit in the budget, or
        `copy` is True.
        """
        core = self.core
        return await core.read_many(list(keys), functools.partial(core.decode, copy=copy))

    async def set_many(
        self,
        items: Mapping[Key, Any] | Iterable[tuple[Key, Any]],
        *,
        expire: float | None = None,
        tag: Key | None = None,
    ) -> None:
        """`set` for many. To have all or nothing of them, see `transact`."""
        for number, (key, value) in enumerate(items.items() if isinstance(items, Mapping) else items, 1):
            await self.set(key, value, expire=expire, tag=tag)
            if not number % AT_A_TIME:
                await asyncio.sleep(0)

    async def delete_many(self, keys: Iterable[Key]) -> int:
        """`delete` for many; returns how many had a value."""
        done = 0
        for number, key in enumerate(keys, 1):
            done += await self.delete(key)
            if not number % AT_A_TIME:
                await asyncio.sleep(0)
        return done

    async def evict(self, tag: Key) -> int:
        """Remove all keys with this tag; returns how many."""
        return await self._erase_each(self.core.entries.tagged(tag))

    async def clear(self) -> int:
        """Remove all keys; returns how many."""
        return await self._erase_each(self.core.all_keys())

    async def _erase_each(self, keys: list[Key]) -> int:
        core = self.core
        core.check_writable()
        done = 0
        for number, key in enumerate(keys, 1):
            entry = core.live.get(key)
            if entry is not None:
                done += core.current(key) is entry
                core.erase(entry)
            if not number % AT_A_TIME:
                await asyncio.sleep(0)
        return done

    # -- listing ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Key]:
        """All keys, as they are now, in the order they were first written; after a restart, in that they were last written."""
        core = self.core
        return (key for key in core.all_keys() if core.current(key) is not None)

    def __len__(self) -> int:
        """How many keys there are."""
        core = self.core
        return len(core.live) - core.entries.absent - core.entries.gone(core.clock())

    def keys(
        self,
        prefix: Key | None = None,
        *,
        start: Key | None = None,
        stop: Key | None = None,
        tag: Key | None = None,
        reverse: bool = False,
    ) -> list[Key]:
        """Keys in their order: integers, then bytes, str, tuples (element by element).

        Args:
            prefix: Only str or bytes that begin so, or tuples whose first elements are these.
            start: Only from this key on.
            stop: Only up to, and without, this key.
            tag: Only those with this tag.
            reverse: The last comes first.
        """
        core = self.core
        found = core.entries.in_order(prefix, start, stop, reverse=reverse)
        if tag is not None:
            tagged = set(core.entries.tagged(tag))
            found = (key for key in found if key in tagged)
        return [key for key in found if core.current(key) is not None]

    def tags(self) -> list[Key]:
        """All tags that entries have."""
        core = self.core
        return core.entries.tags(core.clock())

    async def items(self) -> AsyncIterator[tuple[Key, Any]]:
        """All keys with their values, one by one, so that the cache may be larger than memory."""
        for key in list(self):
            found = await self.core.read(key)
            if found is not None and found[0].kind is not ABSENT:
                yield key, self.core.decode(*found)

    async def values(self) -> AsyncIterator[Any]:
        """All values, one by one."""
        async for item in self.items():
            yield item[1]

    # -- limits and counts --------------------------------------------------------------------------------------------

    @property
    def size_limit(self) -> int | None:
        """Most bytes that the values may take, with 128 for each entry; None for no limit."""
        return self.core.size_limit

    async def set_size_limit(self, size_limit: int | str | None) -> None:
        """Change the limit, also for openings to come, and cull down to it."""
        await self.core.set_size_limit(_parse_limit(size_limit))

    @property
    def volume(self) -> int:
        """Bytes of all values, with 128 for each entry."""
        return self.core.entries.volume

    async def expire(self) -> int:
        """Remove what has expired, now; returns how many. (The reaper does it within `reap_interval` anyway.)"""
        core = self.core
        core.check_writable()
        return await core.in_parts(core.expire)

    async def cull(self) -> int:
        """Remove what is too much, now; returns how many. (Each `set` does it anyway.)"""
        core = self.core
        core.check_writable()
        return await core.in_parts(core.cull)

    def stats(self, *, reset: bool = False) -> CacheStats:
        """Counters since the cache was opened, or since they were last reset."""
        return self.core.stats(reset=reset)

    # -- more ---------------------------------------------------------------------------------------------------------

    def transact(self, *, durable: bool = False, wait: float = 60.0) -> AsyncCacheTransaction:
        """Change many keys as one: all of it or, if the block raises, nothing; after a crash too::

            async with cache.transact() as transaction:
                await transaction.incr("sum", 7)
                await transaction.delete("item")

        Transactions of a cache wait for each other. See `AsyncCacheTransaction` for what the block can do.

        Args:
            durable: Commit at the end.
            wait: Seconds to wait for the transaction before.
        """
        return self.transaction(durable=durable, wait=wait, owner=None)

    def transaction(self, *, durable: bool, wait: float, owner: object) -> AsyncCacheTransaction:
        """`transact` for a task or thread that is not this one (for the cache's own parts)."""
        return AsyncCacheTransaction(lambda: self.core, self._turns, durable=durable, wait=wait, owner=owner)

    def memoize(self, *bare: object, **options: Unpack[MemoizeOptions]) -> AsyncDecorator:
        """Decorate a function so that its results are kept in the cache::

            @cache.memoize(expire=60)
            async def page(address: str) -> bytes: ...

        Of many who ask at once for what is not there, one computes it and the others wait. A plain function runs in a thread.
        The decorated function is a coroutine function; its attribute `key` makes the key of a call, of the same arguments,
        and `__wrapped__` is what was decorated.

        Args:
            bare: Nothing: the brackets must be there, and options have names.
            options: See `dstorage.MemoizeOptions`.

        Raises:
            InvalidArgumentError: (on decorating) An option is out of range. (on calling) An argument cannot be told from
                others by its contents, or the result needs a serializer.
        """
        check_brackets(bare)

        def decorate(function: Callable[..., Any]) -> Any:
            memo = Memo(lambda: self.core, function, options)
            call: Any = function
            if not inspect.iscoroutinefunction(function):
                call = functools.partial(asyncio.to_thread, function)

            async def run(work: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
                return await work(*args)

            return named(memoized_coroutine(memo, call, lambda key: self.core.read(key), run), function, memo)

        return decorate

    @property
    def core(self) -> Core:
        """The entries (for the cache's own parts).

        Raises:
            UsageError: The cache is not open yet, or closed.
        """
        if self._core is None:
            raise UsageError("this cache is not open yet: use `async with`, or `await` it")
        self._core.check_open()
        return self._core

    @property
    def store(self) -> Store:
        """The store that keeps it."""
        return self.core.store

    def __repr__(self) -> str:
        if self._core is None:
            return f"<AsyncCache {self._name!r}, not open>"
        return f"<AsyncCache {self._core!r}>"


def _parse_limit(limit: int | str | None) -> int | None:
    return None if limit is None else parse_bytes(limit)


def make_private(path: Path) -> None:
    """Let nobody but its owner into a directory."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        path.chmod(mode & 0o700)
