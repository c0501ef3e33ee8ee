"""Transactions: many changes of a cache as one.

What the block writes goes into chunks at once, but no entry knows of them; at the end of the block all entries change in one step of
the loop, so that nobody sees half of it and no commit holds half of it. Every key that the block read must still be what it was: else
somebody outside of a transaction changed it, and nothing is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from dstorage.cache.core import ANYTHING, Core, add_up, check_expire
from dstorage.cache.keys import Key, exact
from dstorage.cache.records import NEVER, Entry
from dstorage.errors import ClosedError, CorruptData, Deleted, Lost, TemporarilyUnavailable, UsageError
from dstorage.waiting import check_wait


class TransactionConflict(UsageError):
    """A key that a transaction read was changed by somebody else before its end; nothing was done: run the block again."""


class Turns:
    """One transaction of a cache after the other."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._owner: object = None

    async def take(self, owner: object, wait: float) -> None:
        """Wait for the turn; `owner` is the task or thread that has it then."""
        check_wait(wait)
        if self._owner is not None and self._owner == owner:
            raise UsageError("this task or thread is in a transaction of this cache already: use that one's methods")
        try:
            async with asyncio.timeout(wait):
                await self._lock.acquire()
        except TimeoutError:
            raise TemporarilyUnavailable(
                f"another transaction of this cache is under way for more than {wait} seconds: try again, or wait longer"
            ) from None
        self._owner = owner

    def give_back(self) -> None:
        """The transaction is over."""
        self._owner = None
        self._lock.release()


class AsyncCacheTransaction:
    """The block of `AsyncCache.transact`; use it once.

    Its methods mean what those of the cache mean, but see what the block did before, and are seen by others only at its end.
    Whoever changes a key outside of a transaction meanwhile that the block has read makes it end with `TransactionConflict`.
    """

    def __init__(self, core: Callable[[], Core], turns: Turns, *, durable: bool, wait: float, owner: object) -> None:
        self._cache = core
        self._turns = turns
        self._durable = durable
        self._wait = wait
        self._owner = owner
        self._core: Core | None = None
        self._seen: dict[Key, Entry | None] = {}
        self._changed: dict[Key, Entry | None] = {}
        self._pending: set[int] = set()

    async def __aenter__(self) -> Self:
        """Wait for the transaction before, and begin.

        Raises:
            UsageError: This task is in a transaction of the cache already.
            TemporarilyUnavailable: Another one took longer than `wait` seconds.
        """
        core = self._cache()
        core.check_writable()
        await self._turns.take(self._owner or asyncio.current_task(), self._wait)
        self._core = core
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        core = self._begun
        try:
            if kind is None:
                self._finish(core)
        finally:
            self.abort()
        if kind is None and self._durable:
            await core.store.commit()

    @property
    def under_way(self) -> bool:
        """Whether it has begun and not ended; from any thread."""
        return self._core is not None

    def abort(self) -> None:
        """End it without changing anything (what is published is changed already). Idempotent."""
        core = self._core
        if core is None:
            return
        self._core = None
        self._turns.give_back()
        # If the store is closed, what is pending is deleted at its next opening.
        with contextlib.suppress(ClosedError):
            core.chunks.discard(self._pending)

    def _finish(self, core: Core) -> None:
        """All of it, in this step of the loop, or nothing."""
        core.check_open()
        for key, seen in self._seen.items():
            self._check_unchanged(core, key, seen)
        written = [entry for entry in self._changed.values() if entry is not None]
        core.check_fits(written)
        removed = [core.live[key] for key, entry in self._changed.items() if entry is None and key in core.live]
        core.publish(written, removed)
        core.chunks.settle(self._pending)
        self._pending = set()

    def _check_unchanged(self, core: Core, key: Key, seen: Entry | None) -> None:
        if core.current(key) is not seen:
            raise TransactionConflict(
                f"key {key!r} was changed outside of the transaction that read it: run the block again"
            )

    # -- reading ------------------------------------------------------------------------------------------------------

    def _view(self, key: Key) -> Entry | None:
        core = self._begun
        key = exact(key)
        if key in self._changed:
            entry = self._changed[key]
            return None if entry is None or entry.expires <= core.clock() else entry
        seen = self._seen.setdefault(key, core.current(key))
        self._check_unchanged(core, key, seen)
        return seen

    async def get(self, key: Key, default: Any = None) -> Any:
        """The value of `key`, or `default`; see `AsyncCache.get`.

        Raises:
            TransactionConflict: It was changed since this transaction first read it.
        """
        found = await self.read(key)
        return default if found is None else self._begun.decode(*found)

    async def read(self, key: Key) -> tuple[Entry, bytes | bytearray] | None:
        """The entry and payload of `key`, or None (for the cache's own parts)."""
        core = self._begun
        entry = self._view(key)
        if entry is None:
            return None
        try:
            return entry, await core.chunks.read(entry)
        except (Lost, Deleted, CorruptData):
            self._check_unchanged(core, exact(key), entry)
            core.drop_lost(entry)
            self._seen[exact(key)] = None
            return None

    async def __getitem__(self, key: Key) -> Any:
        """The value of `key`, or KeyError."""
        value = await self.get(key, ANYTHING)
        if value is ANYTHING:
            raise KeyError(key)
        return value

    def __contains__(self, key: Key) -> bool:
        return self._view(key) is not None

    # -- changing -----------------------------------------------------------------------------------------------------

    async def set(self, key: Key, value: Any, *, expire: float | None = None, tag: Key | None = None) -> None:
        """Let `value` stand for `key`; see `AsyncCache.set`."""
        core = self._begun
        encoded = core.codec.encode(value)
        key, tag = core.check(key, encoded, expire, tag)
        ids = await core.chunks.write_pending(encoded.payload)
        self._pending.update(ids)
        entry = core.entry(key, encoded, ids, expire, tag)
        core.names.of_entry(entry)  # Now it may still raise.
        self._change(key, entry)

    def _change(self, key: Key, entry: Entry | None) -> None:
        former = self._changed.get(key)
        self._changed[key] = entry
        if former is not None and (entry is None or entry.id != former.id):
            mine = self._pending.intersection(former.ids())
            self._pending -= mine
            self._begun.chunks.discard(mine)

    async def set_many(self, items: Mapping[Key, Any], *, expire: float | None = None, tag: Key | None = None) -> None:
        """`set` for many."""
        for key, value in items.items():
            await self.set(key, value, expire=expire, tag=tag)

    async def add(self, key: Key, value: Any, *, expire: float | None = None, tag: Key | None = None) -> bool:
        """`set`, if `key` has no value yet; returns whether it was done."""
        if self._view(key) is not None:
            return False
        await self.set(key, value, expire=expire, tag=tag)
        return True

    async def pop(self, key: Key, default: Any = None) -> Any:
        """Remove `key` and return its value, or `default` if it has none."""
        value = await self.get(key, default)
        await self.delete(key)
        return value

    async def delete(self, key: Key) -> bool:
        """Remove `key`; returns whether it had a value."""
        had = self._view(key) is not None
        if had:
            self._change(exact(key), None)
        return had

    async def touch(self, key: Key, expire: float | None = None) -> bool:
        """Let `key` expire `expire` seconds from now, or never; returns whether there is such a key."""
        check_expire(expire)
        entry = self._view(key)
        if entry is None:
            return False
        self._change(entry.key, entry.expiring(NEVER if expire is None else self._begun.clock() + expire))
        return True

    async def incr(self, key: Key, delta: float = 1, default: float | None = 0) -> Any:
        """Add `delta` to the number under `key`; its expiry and tag stay. See `AsyncCache.incr`."""
        entry = self._view(key)
        total = add_up(key, await self.get(key, default), delta)
        await self.set(key, total)
        changed = self._changed[exact(key)]
        if entry is not None and changed is not None:
            changed.expires, changed.tag = entry.expires, entry.tag
        return total

    async def decr(self, key: Key, delta: float = 1, default: float | None = 0) -> Any:
        """`incr` by minus `delta`."""
        return await self.incr(key, -delta, default)

    @property
    def _begun(self) -> Core:
        if self._core is None:
            raise UsageError("this transaction is not under way: use it inside of its block")
        return self._core
