"""The one implementation behind both faces: entries, their values and their limits, over a store, on its loop.

The rule all of it rests on: what changes together changes in one step of the loop (`Core.publish`), and so is in one commit. Whoever
has to wait in the middle, looks again before that step whether the entry is still the one it started from.
"""

from __future__ import annotations

import asyncio
import json
import math
import numbers
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from dstorage.cache.chunks import Chunks, runs
from dstorage.cache.counts import Counter
from dstorage.cache.entries import ENTRY_BYTES, Entries
from dstorage.cache.keys import Key, encode_key, exact
from dstorage.cache.records import NEVER, Entry, Names
from dstorage.cache.report import CacheStats
from dstorage.cache.values import ABSENT, ARRAY, BYTES, Codec, Encoded
from dstorage.errors import (
    ClosedError,
    CorruptData,
    Deleted,
    InvalidArgumentError,
    Lost,
    UsageError,
)
from dstorage.store import Store

T = TypeVar("T")

SETTINGS_FORMAT = 1
DEFAULT_SIZE_LIMIT = 2**30
MAX_EXPIRE = 1e12
"""Seconds; some 30000 years."""


class TooLargeError(InvalidArgumentError):
    """A value that is larger than the whole cache may be."""


AT_A_TIME = 256
"""Entries that are changed, or looked at, between two turns of the loop."""
ANYTHING: Final = object()
"""For `Core.write`: whatever stands for the key now."""


class Core:
    """A cache in a store.

    Args:
        store: Keeps it.
        name: Names it, among the caches of the store.
        codec: Makes bytes of values.
        clock: Seconds since the epoch.
        wait: Seconds to wait for room, or for a controller that is away.

    Raises:
        UsageError: It is open already.
    """

    def __init__(
        self, store: Store, name: str, codec: Codec, clock: Callable[[], float], wait: float | None = None
    ) -> None:
        self.store = store
        self.name = name
        self.codec = codec
        self.clock = clock
        self._thread = threading.get_ident()
        self.names = Names(name)
        self.chunks = Chunks(store, self.names, wait)
        self.entries = Entries()
        self.live: dict[Key, Entry] = self.entries.live
        self._handles = store.table.handles
        self.size_limit: int | None = DEFAULT_SIZE_LIMIT
        self.hits = Counter()
        self.misses = Counter()
        self.culled = 0
        self.expired = 0
        self.lost = 0
        self.unkept = 0
        self.closed = False
        opened = _open.setdefault(store, set())
        if name in opened:
            raise UsageError(f"cache {name!r} of {store.path} is open already: use that one, or give another name")
        opened.add(name)

    def check_open(self) -> None:
        """Raise `ClosedError` unless cache and store are open; from any thread."""
        if self.closed:
            raise ClosedError(f"cache {self.name!r} is closed: open it again")
        self.store.check_open()

    def check_loop(self) -> None:
        """Raise `UsageError` in any thread but that of the store's loop."""
        if threading.get_ident() != self._thread:
            raise UsageError(
                f"cache {self.name!r} belongs to the event loop it was opened on, which runs in another thread: for threads "
                "there is dstorage.Cache"
            )

    def check_writable(self) -> None:
        """Raise unless the store takes changes, from this thread."""
        self.check_loop()
        self.store.check_writable()

    def close(self) -> None:
        """From now on it cannot be used, and another may open it. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.live = {}
        _open.get(self.store, set()).discard(self.name)

    def __repr__(self) -> str:
        try:
            self.check_open()
        except ClosedError:
            return f"{self.name!r} in {str(self.store.path)!r}, closed"
        return f"{self.name!r} in {str(self.store.path)!r}, {len(self.live)} entries, {self.entries.volume} B"

    # -- settings -----------------------------------------------------------------------------------------------------

    async def set_size_limit(self, limit: int | None) -> None:
        """Keep another limit, and cull down to it."""
        self.check_writable()
        if limit != self.size_limit or self.store.get_name(self.names.settings) is None:
            settings = json.dumps({"format": SETTINGS_FORMAT, "size_limit": limit}).encode()
            id = await self.chunks.write(settings)
            former = self.store.get_name(self.names.settings)
            self.store.set_name(self.names.settings, id)
            if former is not None:
                self.chunks.delete(former)
            self.size_limit = limit
        await self.in_parts(self.cull)

    # -- looking (from any thread) ------------------------------------------------------------------------------------

    def lookup(self, key: Key) -> Entry | None:
        """What stands for `key` now, remembered misses included; nothing that has expired.

        Raises:
            InvalidArgumentError: No such type of key.
            ClosedError: Cache or store is closed, or belongs to the parent of this process.
        """
        self.check_open()
        try:
            entry = self.live.get(key)
        except TypeError:  # It cannot be hashed.
            raise _no_key(key) from None
        if entry is None:
            exact(key)
            return None
        if entry.expires != NEVER and entry.expires <= self.clock():
            return None
        return entry

    def current(self, key: Key) -> Entry | None:
        """The entry that has the value of `key`, or None."""
        entry = self.lookup(key)
        return None if entry is None or entry.kind is ABSENT else entry

    def hot(self, key: Key) -> tuple[Entry, bytes | bytearray] | None:
        """The entry and payload of `key`, also of a remembered miss, if they are in memory."""
        # As `lookup` has it, without a call: this is all there is to a hit.
        if self.closed or self.store.closed is not None:
            self.check_open()
        try:
            entry = self.live.get(key)
        except TypeError:
            raise _no_key(key) from None
        if entry is None or (entry.expires != NEVER and entry.expires <= self.clock()) or entry.parts:
            return None
        handle = self._handles.get(entry.id)
        if handle is None:
            return None
        # Contents never change once published, so that what is returned stays what it is.
        payload = handle.buffer
        if payload is None or len(payload) != entry.size:
            return None
        if payload.__class__ is not bytes and entry.kind is BYTES:
            # The loop makes some of it.
            return None
        handle.hot = entry.used = True
        return entry, payload

    def all_keys(self) -> list[Key]:
        """All keys, what has expired and remembered misses included, in the order they were first written."""
        # A list of the dict itself could be interrupted by the garbage collector, and so by another thread.
        return list(self.live.copy())

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read(self, key: Key) -> tuple[Entry, bytes | bytearray] | None:
        """The entry and payload of `key`, also of a remembered miss; None if there is none.

        What is lost or damaged is dropped, counted, and a miss.

        Raises:
            TemporarilyUnavailable, MemoryUnavailable: The value cannot be had now.
        """
        self.check_loop()
        while (entry := self.lookup(key)) is not None:
            try:
                payload = await self.chunks.read(entry)
            except (Lost, Deleted, CorruptData):
                if self.live.get(entry.key) is entry:
                    self.drop_lost(entry)
                    return None
                continue  # It was replaced meanwhile.
            entry.used = True
            return entry, payload
        return None

    async def read_many(self, keys: Sequence[Key], make: Callable[[Entry, bytes | bytearray], T]) -> dict[Key, T]:
        """What `make` makes of the entries and payloads of those keys that have a value; hits and misses are counted."""
        self.prefetch(keys)
        made = {}
        for number, key in enumerate(keys, 1):
            found = self.hot(key) or await self.read(key)
            if found is None or found[0].kind is ABSENT:
                self.misses.add()
            else:
                self.hits.add()
                made[key] = make(*found)
            if not number % AT_A_TIME:
                await asyncio.sleep(0)
        return made

    def prefetch(self, keys: Iterable[Key]) -> None:
        """Have the values of these keys that are on disk read together."""
        entries = [entry for key in keys if (entry := self.current(key)) is not None and not entry.parts]
        self.store.prefetch([entry.id for entry in entries if self.hot(entry.key) is None])

    def decode(self, entry: Entry, payload: bytes | bytearray, *, copy: bool = False) -> Any:
        """The value; from any thread.

        Raises:
            CorruptData: It makes no sense.
            UsageError: Its serializer was not named.
        """
        if entry.kind is BYTES and payload.__class__ is bytes:
            # As `codec.decode` has it, without a call. What was joined is nobody else's.
            return bytes(memoryview(payload)) if copy and not entry.parts else payload
        try:
            value = self.codec.decode(entry.kind, payload, entry.serializer)
        except CorruptData as error:
            raise CorruptData(f"key {entry.key!r}: {error}", id=entry.id) from error
        return value.copy() if copy and entry.kind is ARRAY else value

    def drop_lost(self, entry: Entry) -> None:
        """Count an entry whose chunk is gone or damaged, and remove it."""
        self.lost += 1
        if self.store.options.read_only:
            return
        self.erase(entry)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(
        self,
        key: Key,
        encoded: Encoded,
        *,
        expire: float | None = None,
        tag: Key | None = None,
        cost: float = 0.0,
        expected: object = ANYTHING,
        like: Entry | None = None,
    ) -> bool:
        """Let a value stand for a key.

        Args:
            key: The key.
            encoded: The value.
            expire: Seconds until it expires, or None.
            tag: Its tag, or None.
            cost: Seconds it took to compute.
            expected: Only if `current(key)` still is this entry (or None) when the value has been written.
            like: Take expiry and tag from this entry.

        Returns:
            Whether it was done.

        Raises:
            InvalidArgumentError: Key, tag or expire cannot be, or the value is larger than the limit.
            MemoryUnavailable, ReadOnlyError, ClosedError: The store takes no changes now.
        """
        key, tag = self.check(key, encoded, expire, tag)
        if encoded.size <= self.chunks.part_bytes:
            pending: list[int] = []
            ids = [await self.chunks.write(encoded.payload, own=encoded.own)]
        else:
            ids = pending = await self.chunks.write_pending(encoded.payload)
        try:
            if expected is not ANYTHING and self.current(key) is not expected:
                self._abandon(ids, pending)
                return False
            entry = self.entry(key, encoded, ids, expire, tag, cost)
            if like is not None:
                entry.expires, entry.tag = like.expires, like.tag
            self.publish([entry])
        except BaseException:
            self._abandon(ids, pending)
            raise
        self.chunks.settle(pending)
        return True

    def write_now(self, key: Key, encoded: Encoded, expire: float | None, tag: Key | None) -> bool:
        """`write` if it needs not wait; returns whether it was done."""
        key, tag = self.check(key, encoded, expire, tag)
        if encoded.size > self.chunks.part_bytes:
            return False
        return self.keep_now(self.entry(key, encoded, [0], expire, tag), encoded)

    def keep_now(self, entry: Entry, encoded: Encoded) -> bool:
        """Write the value of a new entry in one chunk, and publish it, if that needs no waiting; returns whether it was done."""
        id = self.chunks.write_now(encoded.payload, own=encoded.own)
        if id is not None:
            self._publish_at(entry, id)
        return id is not None

    async def keep(self, entry: Entry, encoded: Encoded) -> None:
        """`keep_now`, waiting for room.

        Raises:
            MemoryUnavailable: There is none.
        """
        self._publish_at(entry, await self.chunks.write(encoded.payload, own=encoded.own))

    def _publish_at(self, entry: Entry, id: int) -> None:
        entry.id = id
        try:
            self.publish([entry])
        except BaseException:
            self.chunks.delete(id)
            raise

    def _abandon(self, ids: Iterable[int], pending: Iterable[int]) -> None:
        for id in ids:
            self.chunks.delete(id)
        self.chunks.settle(pending)

    def check(self, key: Key, encoded: Encoded, expire: float | None, tag: Key | None) -> tuple[Key, Key | None]:
        """Raise for what cannot be written; returns key and tag as plain types."""
        self.check_writable()
        return self.check_given(key, encoded, expire, tag)

    def check_given(self, key: Key, encoded: Encoded, expire: float | None, tag: Key | None) -> tuple[Key, Key | None]:
        """`check`, for any thread."""
        self.check_open()
        self.store.check_changeable()
        key = exact(key)
        encode_key(key)
        if tag is not None:
            tag = exact(tag)
            encode_key(tag)
        check_expire(expire)
        size = encoded.size
        if self.size_limit is not None and size + ENTRY_BYTES > self.size_limit:
            raise TooLargeError(
                f"a value of {size} bytes for key {key!r}: the whole cache has {self.size_limit}; raise size_limit"
            )
        return key, tag

    def check_fits(self, entries: list[Entry]) -> None:
        """Raise if these entries are too much together."""
        size = sum(entry.size + ENTRY_BYTES for entry in entries)
        if self.size_limit is not None and size > self.size_limit:
            raise TooLargeError(
                f"{size} bytes in one transaction: the whole cache has {self.size_limit}; raise size_limit"
            )

    def entry(
        self,
        key: Key,
        encoded: Encoded,
        ids: list[int],
        expire: float | None = None,
        tag: Key | None = None,
        cost: float = 0.0,
    ) -> Entry:
        """A new entry whose value is in these chunks; its time begins now."""
        expires = NEVER if expire is None else self.clock() + expire
        return Entry(key, ids[0], encoded.kind, encoded.size, expires, tag, cost, encoded.serializer, runs(ids))

    def publish(self, entries: list[Entry], removed: Sequence[Entry] = ()) -> None:
        """Let entries stand for their keys and remove others, all in this step; what is too much after that leaves."""
        # Somebody may have closed it while its value was written.
        self.check_open()
        named = [(entry, self.names.of_entry(entry)) for entry in entries]
        store = self.store
        formers = self.entries.change(entries, removed)
        for (entry, names), former in zip(named, formers, strict=True):
            if former is not None:
                self.unname(former)
                if former.id != entry.id:
                    self.delete(former)
            for name in names:
                store.set_name(name, entry.id)
        for entry in removed:
            self.unname(entry)
            self.delete(entry)
        if self.size_limit is not None and self.entries.volume > self.size_limit:
            self.cull(keep=entries[-1] if entries else None)

    def erase(self, entry: Entry) -> None:
        """Remove an entry that is in the index, with its value."""
        self.check_writable()
        self.entries.remove(entry)
        self.unname(entry)
        self.delete(entry)

    def erase_same(self, entry: Entry) -> bool:
        """`erase`, if it is the entry that stands for its key still; returns whether it was."""
        same = self.live.get(entry.key) is entry
        if same:
            self.erase(entry)
        return same

    def touch(self, key: Key, expire: float | None) -> bool:
        """Give an entry another expiry; returns whether there is one."""
        self.check_writable()
        check_expire(expire)
        entry = self.current(key)
        if entry is None:
            return False
        self.publish([entry.expiring(NEVER if expire is None else self.clock() + expire)])
        return True

    def unname(self, entry: Entry) -> None:
        """Take its names out of the catalog, with the next commit."""
        for name in self.names.of_entry(entry):
            self.store.set_name(name, None)

    def delete(self, entry: Entry) -> None:
        """Delete its value."""
        for id in entry.ids():
            self.chunks.delete(id)

    # -- counts -------------------------------------------------------------------------------------------------------

    def stats(self, *, reset: bool) -> CacheStats:
        """See `CacheStats`."""
        stats = CacheStats(
            hits=self.hits.value,
            misses=self.misses.value,
            entries=len(self.live),
            volume=self.entries.volume,
            size_limit=self.size_limit,
            culled=self.culled,
            expired=self.expired,
            lost=self.lost,
            unkept=self.unkept,
        )
        if reset:
            self.hits, self.misses = Counter(), Counter()
            self.culled = self.expired = self.lost = self.unkept = 0
        return stats

    # -- limits -------------------------------------------------------------------------------------------------------

    def expire(self, most: float = math.inf) -> int:
        """Remove what has expired, at most so many; returns how many."""
        now = self.clock()
        done = 0
        while done < most and (entry := self.entries.expired(now)) is not None:
            self.erase(entry)
            done += 1
        self.expired += done
        return done

    def cull(self, most: float = math.inf, *, keep: Entry | None = None) -> int:
        """While the cache is over its limit, remove what has expired, then what was not used, at most so many; returns how many."""
        limit = self.size_limit
        now = self.clock()
        done = 0
        while done < most and limit is not None and self.entries.volume > limit:
            entry = self.entries.expired(now)
            if entry is not None:
                self.expired += 1
            elif (entry := self.entries.victim(keep)) is not None:
                self.culled += 1
            else:
                break
            self.erase(entry)
            done += 1
        return done

    @staticmethod
    async def in_parts(remove: Callable[[float], int]) -> int:
        """All that `remove` (`expire` or `cull`) removes, for the loop has other things to do."""
        done = part = remove(AT_A_TIME)
        while part == AT_A_TIME:
            await asyncio.sleep(0)
            part = remove(AT_A_TIME)
            done += part
        return done


_open: weakref.WeakKeyDictionary[Store, set[str]] = weakref.WeakKeyDictionary()
"""Which caches of a store are open: each has one index."""


def check_expire(expire: float | None) -> None:
    """Raise unless `expire` is None or seconds from now."""
    if expire is not None and not (isinstance(expire, numbers.Real) and 0 <= expire <= MAX_EXPIRE):
        raise InvalidArgumentError(
            f"expire={expire!r}: give seconds from now (up to {MAX_EXPIRE:.0e}), or None for never"
        )


def add_up(key: Key, number: Any, delta: Any) -> Any:
    """The sum that `incr` is to keep.

    Raises:
        KeyError: There is no number to start from.
        InvalidArgumentError: One of them is no number.
    """
    if number is None:
        raise KeyError(key)
    if type(number) not in (int, float) or type(delta) not in (int, float):
        raise InvalidArgumentError(f"key {key!r}: {number!r} + {delta!r} is no sum of numbers")
    return number + delta


def _no_key(key: object) -> InvalidArgumentError:
    try:
        encode_key(key)  # type: ignore[arg-type]  # it says what is wrong with it
    except InvalidArgumentError as error:
        return error
    return InvalidArgumentError(f"a key of type {type(key).__name__} cannot be hashed")
