"""`Cache`: the cache for programs without an event loop, and for threads.

There is one implementation, `AsyncCache`, which this one has on the loop of a blocking store. What is in memory or in the system's page
cache, and what is not in the cache at all, is answered in the calling thread: the index is a dict whose entries never change, and so are
contents.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, Unpack

import dstorage.blocking.opening
import dstorage.store
from dstorage.blocking.loop import Call
from dstorage.blocking.opening import OpenOptions
from dstorage.blocking.store import Store
from dstorage.cache.asynchronous import KEEP, AsyncCache, make_private
from dstorage.cache.behind import WriteBehind
from dstorage.cache.core import ANYTHING
from dstorage.cache.keys import Key
from dstorage.cache.memoize import (
    Answer,
    Memo,
    Memoized,
    MemoizeOptions,
    check_brackets,
    memoized_coroutine,
    memoized_function,
    named,
)
from dstorage.cache.records import Entry
from dstorage.cache.report import CacheEntryInfo, CacheStats
from dstorage.cache.transaction import AsyncCacheTransaction
from dstorage.cache.values import ABSENT, Encoded, Kind, Serializer
from dstorage.errors import ClosedError, InvalidArgumentError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

BATCH_BYTES = 2**20
"""Of values, that `set_many` collects for one trip to the loop."""


class Cache:
    """A cache of large data: a mapping that is kept on disk, expires, has tags and a limit of its size::

        with dstorage.Cache("cache", size_limit="10G", budget="512M") as cache:
            cache.set("logo", picture, expire=3600, tag="images")
            picture = cache["logo"]

    Every method may be called from every thread. Names and meanings are those of `dstorage.AsyncCache`, which says more; what is
    awaited there, waits here. Hits that are in memory or in the system's page cache,
    and misses, make no trip to the store's loop.

    If it is not closed, that happens at interpreter exit. In a forked child it is closed; the child may open another.

    Args:
        place: Directory of the cache, made private (mode 0700); or an open `dstorage.blocking.Store` that it is to be part of.
        name: Name of the cache in the store.
        size_limit: Most bytes that the values may take, with 128 for each entry: a number, "10G", or None for no limit. By
            default as it was when last opened, 1 GiB at first.
        serializer: For values that are not bytes-like, str, numbers, None or numpy arrays: "json", "pickle" (only where nobody
            else can write the directory), a `dstorage.Serializer`, or several.
        reap_interval: What has expired is removed so many seconds later at the latest.
        wait: Seconds that a call keeps trying while the controller of a value is away or memory is short; by default the
            error comes at once.
        clock: Seconds since the epoch.
        options: For a directory: as for `dstorage.open` (`budget`, `commit_interval`, `controllers` and so on).

    Raises:
        TypeError: There is no such option.
        InvalidArgumentError: An argument is out of range.
        StoreLocked: It is open already, in another process or in this one.
        UsageError: The given store has a cache of that name open.
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
        if isinstance(place, Store) and options:
            raise InvalidArgumentError(f"{', '.join(options)}: the store is open already; these are for a directory")
        make = functools.partial(
            AsyncCache,
            name=name,
            size_limit=size_limit,
            serializer=serializer,
            reap_interval=reap_interval,
            wait=wait,
            clock=clock,
        )
        self._own: Store | None = None
        if isinstance(place, Store):
            self.store = place
        else:
            if isinstance(place, dstorage.store.Store):
                raise InvalidArgumentError(
                    f"place {place!r} belongs to an event loop: for that there is dstorage.AsyncCache; or open the store by "
                    "dstorage.blocking.open"
                )
            # With the arguments checked before anything is made on the disk.
            make(place, **options)
            self.store = self._own = dstorage.blocking.opening.open(place, **options)
        self._loop = self.store.loop
        try:
            if self._own is not None and not self.store.options.read_only:
                make_private(self.store.path)
            self.inner = make(self.store.inner)
            self._loop.run(self.inner.__aenter__)
        except BaseException:
            if self._own is not None:
                self._own.close()
            raise
        self._core = self.inner.core
        self._behind = WriteBehind(self._core, self._loop)
        self._read = self.store.inner.shortcut.read

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Commit and give everything back; a store that was given stays open. Idempotent."""
        # If the store is closed, or the parent's, there is nothing left to do.
        with contextlib.suppress(ClosedError):
            if not self._core.closed:
                self._behind.run(self.inner.close)
        if self._own is not None:
            self._own.close()

    def commit(self) -> None:
        """Return when all changes up to this call are durable, as one; see `AsyncCache.commit`."""
        self._behind.run(self.inner.commit)

    # -- one key ------------------------------------------------------------------------------------------------------

    def get(self, key: Key, default: Any = None, *, copy: bool = False) -> Any:
        """The value of `key`, or `default`; see `AsyncCache.get`."""
        core, behind = self._core, self._behind
        found = (behind.get(key) if behind.waiting else None) or core.hot(key) or self._cool(key)
        if found is None or found[0].kind is ABSENT:
            core.misses.add()
            return default
        core.hits.add()
        entry, payload = found
        return core.decode(entry, payload, copy=copy)

    def answer(self, key: Key) -> Answer:
        """Entry and payload, if there are any (for the cache's own parts)."""
        core, behind = self._core, self._behind
        return (behind.get(key) if behind.waiting else None) or core.hot(key) or self._cool(key)

    def _cool(self, key: Key) -> Answer:
        """`answer` where there is none in memory."""
        core = self._core
        entry = core.lookup(key)
        if entry is None:
            return None
        if not entry.parts:
            read = self._read(entry.id)
            if read is not None and len(read) == entry.size and core.live.get(entry.key) is entry:
                entry.used = True
                return entry, read

            def begin(call: Call[bytes | bytearray | None]) -> None:
                core.chunks.read_soon(entry, call.done)

            # A callback, for a task would cost more than many a read.
            payload = self._behind.call(begin)
            if payload is not None and core.live.get(entry.key) is entry:
                entry.used = True
                return entry, payload
        return self._behind.run(core.read, key)

    def __getitem__(self, key: Key) -> Any:
        """The value of `key`.

        Raises:
            KeyError: There is none.
        """
        value = self.get(key, ANYTHING)
        if value is ANYTHING:
            raise KeyError(key)
        return value

    def set(self, key: Key, value: Any, *, expire: float | None = None, tag: Key | None = None) -> None:
        """Let `value` stand for `key`, in place of any other; see `AsyncCache.set`.

        A value of at most 16 KiB is there for everybody when this returns, but is taken over by the store's loop a moment later, many together.
        In the rare case that there is no room for it then, it is as if culled at once, and counted as `CacheStats.unkept`.
        """
        core = self._core
        encoded = core.codec.encode(value)
        if not encoded.own and encoded.size <= core.chunks.part_bytes:
            # Copied here, where it keeps nobody waiting.
            encoded = Encoded(encoded.kind, bytes(memoryview(encoded.payload)))
        key, tag = core.check_given(key, encoded, expire, tag)
        if self._behind.put(core.entry(key, encoded, [0], expire, tag), encoded):
            return

        def begin(call: Call[bool]) -> None:
            # A task only if there is something to wait for.
            if core.write_now(key, encoded, expire, tag):
                call.done(True)
            else:
                call.run(core.write(key, encoded, expire=expire, tag=tag))

        self._behind.call(begin)

    def __setitem__(self, key: Key, value: Any) -> None:
        self.set(key, value)

    def add(self, key: Key, value: Any, *, expire: float | None = None, tag: Key | None = None) -> bool:
        """`set`, if `key` has no value yet; returns whether it was done."""
        if key in self:
            return False
        return self._run(self.inner.add, key, self._core.codec.encode(value), expire=expire, tag=tag)

    def setdefault(self, key: Key, default: Any, *, expire: float | None = None, tag: Key | None = None) -> Any:
        """The value of `key`, which is `default` from now on if it had none."""
        while True:
            value = self.get(key, ANYTHING)
            if value is not ANYTHING:
                return value
            if self.add(key, default, expire=expire, tag=tag):
                return default

    def pop(self, key: Key, default: Any = None) -> Any:
        """Remove `key` and return its value, or `default` if it has none."""
        while (found := self.answer(key)) is not None and found[0].kind is not ABSENT:
            value = self._core.decode(*found)
            if self._behind.call_sync(self._core.erase_same, found[0]):
                return value
        return default

    def delete(self, key: Key) -> bool:
        """Remove `key`, or a remembered miss; returns whether it had a value."""
        return self._behind.run(self.inner.delete, key)

    def __delitem__(self, key: Key) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def touch(self, key: Key, expire: float | None = None) -> bool:
        """Let `key` expire `expire` seconds from now, or never; returns whether there is such a key."""
        return self._behind.call_sync(self._core.touch, key, expire)

    def incr(self, key: Key, delta: float = 1, default: float | None = 0) -> Any:
        """Add `delta` to the number under `key`, atomically; see `AsyncCache.incr`."""
        return self._behind.run(self.inner.incr, key, delta, default)

    def decr(self, key: Key, delta: float = 1, default: float | None = 0) -> Any:
        """`incr` by minus `delta`."""
        return self._behind.run(self.inner.decr, key, delta, default)

    def set_missing(self, key: Key, reason: str = "", *, expire: float | None) -> None:
        """Remember for `expire` seconds that there is no value for `key`; see `AsyncCache.set_missing`."""
        self._run(self.inner.set_missing, key, reason, expire=expire)

    def missing(self, key: Key) -> str | None:
        """The reason given to `set_missing` while it is remembered, else None."""
        self._behind.settle()
        entry = self._core.lookup(key)
        if entry is None or entry.kind is not ABSENT:
            return None
        return self._behind.run(self.inner.missing, key)

    def info(self, key: Key) -> CacheEntryInfo | None:
        """Size, expiry and tag of `key`, or None; its value need not be in memory."""
        self._behind.settle()
        return self.inner.info(key)

    def __contains__(self, key: Key) -> bool:
        return self._behind.get(key) is not None or self._core.current(key) is not None

    # -- many at once -------------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[Key], *, copy: bool = False) -> dict[Key, Any]:
        """The values of those `keys` that have one; see `AsyncCache.get_many`."""
        core = self._core
        wanted = list(keys)
        found = {}
        for key in wanted:
            hot = self._behind.get(key) or core.hot(key)
            if hot is not None and hot[0].kind is not ABSENT:
                core.hits.add()
                found[key] = core.decode(*hot, copy=copy)
        rest = [key for key in wanted if key not in found]
        if any(core.current(key) is not None for key in rest):

            def make(entry: Entry, payload: bytes | bytearray) -> Any:
                if entry.kind is not Kind.OBJECT:
                    return core.decode(entry, payload, copy=copy)
                return entry, bytes(memoryview(payload)) if copy else payload

            for key, made in self._behind.run(core.read_many, rest, make).items():
                # What a serializer does is not for the loop.
                found[key] = core.decode(*made) if type(made) is tuple else made
        else:
            for _ in rest:
                core.misses.add()
        return {key: found[key] for key in wanted if key in found}

    def set_many(
        self,
        items: Mapping[Key, Any] | Iterable[tuple[Key, Any]],
        *,
        expire: float | None = None,
        tag: Key | None = None,
    ) -> None:
        """`set` for many, in a trip to the loop for every MiB or so; see `AsyncCache.set_many`."""
        # What an iterable or a serializer of the caller's computes is not for the loop.
        batch: list[tuple[Key, Encoded]] = []
        size = 0
        for key, value in items.items() if isinstance(items, Mapping) else items:
            encoded = self._core.codec.encode(value)
            batch.append((key, encoded))
            size += encoded.size
            if size >= BATCH_BYTES:
                self._run(self.inner.set_many, batch, expire=expire, tag=tag)
                batch, size = [], 0
        self._run(self.inner.set_many, batch, expire=expire, tag=tag)

    def delete_many(self, keys: Iterable[Key]) -> int:
        """`delete` for many; returns how many had a value."""
        return self._behind.run(self.inner.delete_many, list(keys))

    def evict(self, tag: Key) -> int:
        """Remove all keys with this tag; returns how many."""
        return self._behind.run(self.inner.evict, tag)

    def clear(self) -> int:
        """Remove all keys; returns how many."""
        return self._behind.run(self.inner.clear)

    # -- listing ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Key]:
        """All keys, as they are now, in the order they were first written; after a restart, in that they were last written."""
        self._behind.settle()
        return iter(self.inner)

    def __len__(self) -> int:
        """How many keys there are."""
        core = self._core
        core.check_open()
        self._behind.settle()
        if core.entries.next_expiry > core.clock():
            return len(core.live) - core.entries.absent
        return self._behind.call_sync(self.inner.__len__)

    def keys(
        self,
        prefix: Key | None = None,
        *,
        start: Key | None = None,
        stop: Key | None = None,
        tag: Key | None = None,
        reverse: bool = False,
    ) -> list[Key]:
        """Keys in their order, of all or some; see `AsyncCache.keys`."""
        return self._behind.call_sync(lambda: self.inner.keys(prefix, start=start, stop=stop, tag=tag, reverse=reverse))

    def tags(self) -> list[Key]:
        """All tags that entries have."""
        return self._behind.call_sync(self.inner.tags)

    def items(self) -> Iterator[tuple[Key, Any]]:
        """All keys with their values, one by one, so that the cache may be larger than memory."""
        for key in list(self):
            found = self.answer(key)
            if found is not None and found[0].kind is not ABSENT:
                yield key, self._core.decode(*found)

    def values(self) -> Iterator[Any]:
        """All values, one by one."""
        for item in self.items():
            yield item[1]

    # -- limits and counts --------------------------------------------------------------------------------------------

    @property
    def size_limit(self) -> int | None:
        """Most bytes that the values may take, with 128 for each entry; None for no limit."""
        return self.inner.size_limit

    def set_size_limit(self, size_limit: int | str | None) -> None:
        """Change the limit, also for openings to come, and cull down to it."""
        self._behind.run(self.inner.set_size_limit, size_limit)

    @property
    def volume(self) -> int:
        """Bytes of all values, with 128 for each entry."""
        self._behind.settle()
        return self.inner.volume

    def expire(self) -> int:
        """Remove what has expired, now; returns how many."""
        return self._behind.run(self.inner.expire)

    def cull(self) -> int:
        """Remove what is too much, now; returns how many."""
        return self._behind.run(self.inner.cull)

    def stats(self, *, reset: bool = False) -> CacheStats:
        """Counters since the cache was opened, or since they were last reset."""
        return self._behind.call_sync(lambda: self.inner.stats(reset=reset))

    # -- more ---------------------------------------------------------------------------------------------------------

    def transact(self, *, durable: bool = False, wait: float = 60.0) -> CacheTransaction:
        """Change many keys as one: all of it or, if the block raises, nothing; after a crash too::

            with cache.transact() as transaction:
                transaction.incr("sum", 7)
                transaction.delete("item")

        Transactions of a cache wait for each other. See `CacheTransaction` for what the block can do.

        Args:
            durable: Commit at the end.
            wait: Seconds to wait for the transaction before.
        """
        return CacheTransaction(self, durable=durable, wait=wait)

    def memoize(self, *bare: object, **options: Unpack[MemoizeOptions]) -> Callable[[Callable[P, R]], Memoized[P, R]]:
        """Decorate a function, or a coroutine function, so that its results are kept in the cache::

            @cache.memoize(expire=60)
            def page(address: str) -> bytes: ...

        Of many who ask at once for what is not there, one computes it and the others wait, whatever thread or loop they are on.
        The decorated function's attribute `key` makes the key of a call, of the same arguments, and `__wrapped__` is what was
        decorated.

        Args:
            bare: Nothing: the brackets must be there, and options have names.
            options: See `dstorage.MemoizeOptions`.

        Raises:
            InvalidArgumentError: (on decorating) An option is out of range. (on calling) An argument cannot be told from
                others by its contents, or the result needs a serializer.
        """
        check_brackets(bare)

        def decorate(function: Callable[P, R]) -> Memoized[P, R]:
            memo = Memo(lambda: self.inner.core, function, options)
            memoized: Callable[..., Any]
            if inspect.iscoroutinefunction(function):

                async def read(key: Key) -> Answer:
                    # The caller's loop is not the store's: what is not in memory is waited for in a thread.
                    return self._behind.get(key) or self._core.hot(key) or await asyncio.to_thread(self.answer, key)

                async def run(work: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
                    return await asyncio.to_thread(self._behind.run, work, *args)

                memoized = memoized_coroutine(memo, function, read, run)
            else:
                memoized = memoized_function(memo, function, self.answer, self._behind.run)
            decorated: Memoized[P, R] = named(memoized, function, memo)
            return decorated

        return decorate

    def _run(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
        return self._behind.run(lambda: work(*args, **options))

    def __repr__(self) -> str:
        return f"<Cache {self._core!r}>"


class CacheTransaction:
    """The block of `Cache.transact`; use it once, in one thread.

    Its methods mean what those of the cache mean, but see what the block did before, and are seen by others only at its end.
    Whoever changes a key outside of a transaction meanwhile that the block has read makes it end with `TransactionConflict`.
    """

    def __init__(self, cache: Cache, *, durable: bool, wait: float) -> None:
        self._cache = cache
        self._durable = durable
        self._wait = wait
        self._loop = cache.store.loop
        self._inner: AsyncCacheTransaction

    def __enter__(self) -> Self:
        """Wait for the transaction before, and begin; see `AsyncCacheTransaction`."""
        self._inner = self._cache.inner.transaction(durable=self._durable, wait=self._wait, owner=threading.get_ident())
        try:
            self._cache._behind.run(self._inner.__aenter__)
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._loop.run(self._inner.__aexit__, kind, None, None)
        except BaseException:
            self._give_up()
            raise

    def __del__(self) -> None:
        # An interrupt can strike where no code of ours runs.
        if hasattr(self, "_inner") and self._inner.under_way:
            self._give_up()

    def _give_up(self) -> None:
        """Whose wait is interrupted cannot know how far it came: let nobody wait for a transaction that has no end."""
        with contextlib.suppress(ClosedError, RuntimeError):  # The loop may end this moment.
            self._loop.post(self._inner.abort)

    def get(self, key: Key, default: Any = None) -> Any:
        """The value of `key`, or `default`.

        Raises:
            TransactionConflict: It was changed since this transaction first read it.
        """
        found = self._loop.run(self._inner.read, key)
        return default if found is None else self._cache.inner.core.decode(*found)

    def __getitem__(self, key: Key) -> Any:
        """The value of `key`, or KeyError."""
        value = self.get(key, ANYTHING)
        if value is ANYTHING:
            raise KeyError(key)
        return value

    def __contains__(self, key: Key) -> bool:
        return self._loop.call_sync(self._inner.__contains__, key)

    def set(self, key: Key, value: Any, *, expire: float | None = None, tag: Key | None = None) -> None:
        """Let `value` stand for `key`."""
        encoded = self._cache.inner.core.codec.encode(value)
        self._loop.run(lambda: self._inner.set(key, encoded, expire=expire, tag=tag))

    def __setitem__(self, key: Key, value: Any) -> None:
        self.set(key, value)

    def set_many(self, items: Mapping[Key, Any], *, expire: float | None = None, tag: Key | None = None) -> None:
        """`set` for many."""
        encode = self._cache.inner.core.codec.encode
        encoded = {key: encode(value) for key, value in items.items()}
        self._loop.run(lambda: self._inner.set_many(encoded, expire=expire, tag=tag))

    def add(self, key: Key, value: Any, *, expire: float | None = None, tag: Key | None = None) -> bool:
        """`set`, if `key` has no value yet; returns whether it was done."""
        if key in self:
            return False
        self.set(key, value, expire=expire, tag=tag)
        return True

    def pop(self, key: Key, default: Any = None) -> Any:
        """Remove `key` and return its value, or `default` if it has none."""
        value = self.get(key, default)
        self.delete(key)
        return value

    def delete(self, key: Key) -> bool:
        """Remove `key`; returns whether it had a value."""
        return self._loop.run(self._inner.delete, key)

    def __delitem__(self, key: Key) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def touch(self, key: Key, expire: float | None = None) -> bool:
        """Let `key` expire `expire` seconds from now, or never; returns whether there is such a key."""
        return self._loop.run(self._inner.touch, key, expire)

    def incr(self, key: Key, delta: float = 1, default: float | None = 0) -> Any:
        """Add `delta` to the number under `key`; its expiry and tag stay."""
        return self._loop.run(self._inner.incr, key, delta, default)

    def decr(self, key: Key, delta: float = 1, default: float | None = 0) -> Any:
        """`incr` by minus `delta`."""
        return self._loop.run(self._inner.decr, key, delta, default)
