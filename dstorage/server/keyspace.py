r"""Keys on a store: which chunk holds a key's value, when the key expires, and how many keys there are.

All of it is kept in the store's table of names, so a commit switches values, keys and expiry together, and after a crash they are
those of one moment:

* ``redis\0k`` + epoch (4 bytes) + hash of the key (6 bytes) + key: the chunk's id; with `LARGE_VALUE` set, that of a manifest
  (see `dstorage.server.large`).
* ``redis\0x`` + epoch + key: when it expires, in milliseconds since 1970.
* ``redis\0d`` + id (8 bytes): a chunk to delete at the next start (see `dstorage.server.chunks`).
* ``redis\0epoch``: the epoch. Emptying the database begins the next one: all keys are gone at once, their chunks go one by one.

Keys are sorted by their hash, so that a position among them is a number that stays good whatever comes and goes: the cursor of SCAN.

Nothing here waits; see `dstorage.server.chunks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import struct
import time
from collections.abc import Callable, Iterator

from xxhash import xxh3_64_digest

from dstorage.catalog import MAX_NAME_BYTES
from dstorage.errors import DStorageError
from dstorage.handle import Handle
from dstorage.server.chunks import ROOT, Absent, Chunks, Patience
from dstorage.server.command import CommandError
from dstorage.server.large import LargeValues

LARGE_VALUE = 1 << 63
"""Marks a manifest's id in a name's number: chunks of the namespaces that would have such ids are not the server's."""
HASH_BYTES = 6
MAX_CURSOR = 1 << 8 * HASH_BYTES
MAX_KEY_BYTES = MAX_NAME_BYTES - len(ROOT) - 1 - 4 - HASH_BYTES
HOT_KEYS = 2**16
"""Keys whose handle is known without asking the catalog."""
PATIENCE_S = 5.0
"""How long work in the background waits for a chunk."""
AT_A_TIME = 1024
"""Names worked through before others get a turn."""

_EPOCH = struct.Struct(">I")


class Watch:
    """Somebody who wants to know whether keys change.

    Attributes:
        keys: Which.
        stale: Whether one has changed.
    """

    __slots__ = ("keys", "stale")

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.stale = False


class Keyspace:
    """The keys of one store.

    Args:
        chunks: Its chunks.
        large: Its long values.

    Attributes:
        hot: Key -> handle of its value, for some keys with plain values; their contents may have left memory.
        expires: Key -> milliseconds since 1970, for all keys that expire.
        count: Number of keys.
        hits: Values that were asked for and there.
        misses: Values that were asked for and not there.
        expired: Keys that have expired.
    """

    def __init__(self, chunks: Chunks, large: LargeValues) -> None:
        self.store = store = chunks.store
        self.chunks = chunks
        self.large = large
        self.hot: dict[bytes, Handle] = {}
        self.expires: dict[bytes, int] = {}
        self.count = 0
        self.hits = self.misses = self.expired = 0
        self._due: list[tuple[int, bytes]] = []
        self._watches: dict[bytes, set[Watch]] = {}
        self._cleaning: asyncio.Task[None] | None = None
        self._enter(store.get_name(ROOT + b"epoch") or 1)

    def _enter(self, epoch: int) -> None:
        self._epoch = epoch
        self._keys = ROOT + b"k" + _EPOCH.pack(epoch)
        self._expiries = ROOT + b"x" + _EPOCH.pack(epoch)

    async def load(self) -> None:
        """Count the keys, learn which expire, and finish what a crash left undone."""
        start = len(self._expiries)
        for number, (name, moment) in enumerate(self.store.names(self._expiries)):
            self.expires[name[start:]] = moment
            if number % AT_A_TIME == 0:
                await asyncio.sleep(0)
        self._due = [(moment, key) for key, moment in self.expires.items()]
        heapq.heapify(self._due)
        for number, _ in enumerate(self.store.names(self._keys), 1):
            self.count = number
            if number % AT_A_TIME == 0:
                await asyncio.sleep(0)
        self.chunks.delete_marked()
        self._cleaning = asyncio.create_task(self._clean())

    async def close(self) -> None:
        """End what goes on in the background."""
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.gather(self._cleaning, return_exceptions=True)

    # -- finding ------------------------------------------------------------------------------------------------------

    def name(self, key: bytes) -> bytes:
        """The name that stands for a key's value.

        Raises:
            CommandError: There is none.
        """
        if len(key) > MAX_KEY_BYTES:
            raise CommandError(
                f"ERR a key of {len(key)} bytes: this server takes keys of at most {MAX_KEY_BYTES} bytes"
            )
        return self._keys + xxh3_64_digest(key)[:HASH_BYTES] + key

    def find(self, key: bytes) -> int:
        """The number under a key (see the module's docstring), or 0; an expired key is removed.

        Raises:
            Absent: The manifest of an expired key is not in memory.
        """
        moment = self.expires.get(key)
        if moment is not None and moment <= now():
            self.remove(key)
            self.expired += 1
            return 0
        # Nothing can be stored under a key that is too long.
        return self.store.get_name(self.name(key)) or 0 if len(key) <= MAX_KEY_BYTES else 0

    def look(self, key: bytes) -> Handle | int | None:
        """The value of a key: a handle whose contents are in memory, the number of a manifest, or None.

        The handle is not referenced for the caller: it is good until the next step of the loop.

        Raises:
            Absent: The value is not in memory.
        """
        number = self.find(key)
        if not number:
            self.misses += 1
            return None
        if number & LARGE_VALUE:
            self.hits += 1
            return number
        handle = self.chunks.resident(number)
        self._remember(key, handle)
        self.hits += 1
        return handle

    def _remember(self, key: bytes, handle: Handle) -> None:
        if key in self._watches:
            # What is done to hot keys is not seen here.
            return
        if len(self.hot) >= HOT_KEYS:
            self.hot.clear()
        self.hot[key] = handle

    def scan(self, cursor: int) -> Iterator[tuple[int, bytes]]:
        """Keys from a position on, each with its own position; expired ones are left out."""
        moment = now()
        start = len(self._keys) + HASH_BYTES
        for name, _ in self.store.names(self._keys, self._keys + cursor.to_bytes(HASH_BYTES, "big")):
            key = name[start:]
            expiry = self.expires.get(key)
            if expiry is None or expiry > moment:
                yield int.from_bytes(name[start - HASH_BYTES : start], "big"), key

    # -- changing -----------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes | bytearray) -> None:
        """Make `value`, which nobody changes any more, the plain value of a key; its expiry stays.

        Raises:
            Absent, NoRoom: Nothing was done.
            CommandError: The key is too long.
        """
        number = self.find(key)
        chunks = self.chunks
        if number and not number & LARGE_VALUE and not chunks.lost(number):
            with self.store.table.get(number) as handle:
                chunks.take(len(value))
                self.store.contents.publish(handle, value)
                self._remember(key, handle)
            self._changed(key)
            return
        self.name(key)
        self.reachable(number)
        chunks.take(len(value))
        self.bind(key, chunks.make(value))

    def replaceable(self, key: bytes) -> None:
        """Make sure that a key can be given another value.

        Raises:
            Absent: Its manifest is not in memory.
            CommandError: It is too long.
        """
        self.name(key)
        self.reachable(self.find(key))

    def removable(self, key: bytes) -> None:
        """Make sure that `remove` will not raise.

        Raises:
            Absent: It would.
        """
        if len(key) <= MAX_KEY_BYTES:
            self.reachable(self.store.get_name(self.name(key)) or 0)

    def bind(self, key: bytes, number: int) -> None:
        """Let a key stand for another number; its former value is deleted, its expiry stays.

        Raises:
            Absent: Nothing was done.
        """
        former = self.find(key)
        self.reachable(former)
        self.store.set_name(self.name(key), number)
        self._changed(key)
        self.hot.pop(key, None)
        if former:
            self._drop(former)
        else:
            self.count += 1

    def rebind(self, key: bytes, former: int, number: int) -> None:
        """As `bind`, where the new manifest `number` was made from the one in chunk `former` by `LargeValues.splice`."""
        self.store.set_name(self.name(key), number)
        self._changed(key)
        self.chunks.delete(former & ~LARGE_VALUE)

    def remove(self, key: bytes) -> bool:
        """Remove a key; False if there is none, or it had expired.

        Raises:
            Absent: Nothing was done.
        """
        if len(key) > MAX_KEY_BYTES:
            return False
        name = self.name(key)
        number = self.store.get_name(name)
        if not number:
            return False
        self.reachable(number)
        moment = self.expires.get(key)
        self.store.set_name(name, None)
        self._changed(key)
        self.hot.pop(key, None)
        self.set_expiry(key, None)
        self.count -= 1
        self._drop(number)
        return moment is None or moment > now()

    def reachable(self, number: int) -> None:
        """Make sure that a value can be read from its start, or dropped.

        Raises:
            Absent: Its manifest is not in memory.
        """
        id = number & ~LARGE_VALUE
        if number & LARGE_VALUE and not self.chunks.lost(id):
            self.chunks.resident(id)

    def _drop(self, number: int) -> None:
        if number & LARGE_VALUE:
            self.large.drop(number & ~LARGE_VALUE)
        else:
            self.chunks.delete(number)

    # -- expiry -------------------------------------------------------------------------------------------------------

    def set_expiry(self, key: bytes, moment: int | None) -> None:
        """Let a key that exists expire at `moment` (milliseconds since 1970), or never (None)."""
        if moment is None:
            if self.expires.pop(key, None) is not None:
                self._changed(key)
                self.store.set_name(self._expiries + key, None)
            return
        self._changed(key)
        self.expires[key] = moment
        self.store.set_name(self._expiries + key, moment)
        heapq.heappush(self._due, (moment, key))
        if len(self._due) > 2 * len(self.expires) + AT_A_TIME:
            self._due = [(moment, key) for key, moment in self.expires.items()]
            heapq.heapify(self._due)

    # -- watching -----------------------------------------------------------------------------------------------------

    def watch(self, key: bytes, watch: Watch) -> None:
        """Tell `watch` when a key comes, goes, or gets another value or expiry."""
        watch.keys.add(key)
        self._watches.setdefault(key, set()).add(watch)
        self.hot.pop(key, None)

    def unwatch(self, watch: Watch) -> None:
        """Tell it nothing more."""
        for key in watch.keys:
            watches = self._watches[key]
            watches.discard(watch)
            if not watches:
                del self._watches[key]
        watch.keys.clear()

    def _changed(self, key: bytes) -> None:
        for watch in self._watches.get(key, ()):
            watch.stale = True

    # -- expiry in the background -------------------------------------------------------------------------------------

    async def expire_due(self) -> None:
        """Remove the keys whose time has come."""
        moment = now()
        done = 0
        while self._due and self._due[0][0] <= moment:
            due, key = heapq.heappop(self._due)
            if self.expires.get(key) == due:
                await self._patiently(lambda key=key: self.find(key))  # type: ignore[misc]
            done += 1
            if done % AT_A_TIME == 0:
                await asyncio.sleep(0)

    async def _patiently(self, work: Callable[[], object]) -> None:
        """Do what may find a manifest absent; what cannot be had now is left for another time."""
        with Patience(self.chunks, PATIENCE_S) as patience, contextlib.suppress(DStorageError):
            while True:
                try:
                    work()
                    return
                except Absent as absent:
                    await patience.overcome(absent)

    # -- emptying -----------------------------------------------------------------------------------------------------

    def clear(self) -> asyncio.Task[None]:
        """Remove all keys, at once; what they held is deleted by the task returned."""
        for key in self._watches:
            if len(key) <= MAX_KEY_BYTES and self.store.get_name(self.name(key)):
                self._changed(key)
        self._enter(self._epoch + 1)
        self.store.set_name(ROOT + b"epoch", self._epoch)
        self.hot.clear()
        self.expires.clear()
        self._due.clear()
        self.count = 0
        if self._cleaning is not None:
            self._cleaning.cancel()
        self._cleaning = asyncio.create_task(self._clean())
        return self._cleaning

    async def _clean(self) -> None:
        """Delete what belongs to former epochs."""
        done = 0
        for kind, current in ((b"k", self._keys), (b"x", self._expiries)):
            for name, number in self.store.names(ROOT + kind):
                if name.startswith(current):
                    break
                await self._patiently(lambda name=name, number=number, kind=kind: self._forget(name, number, kind))  # type: ignore[misc]
                done += 1
                if done % AT_A_TIME == 0:
                    await asyncio.sleep(0)

    def _forget(self, name: bytes, number: int, kind: bytes) -> None:
        if kind == b"k":
            self.reachable(number)
            self._drop(number)
        self.store.set_name(name, None)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
