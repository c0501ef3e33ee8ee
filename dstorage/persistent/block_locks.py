"""Locks of blocks: any number of readers or one writer, enforced rather than trusted, and never waited for in vain.

A thread that asks for what it holds already gets an error at once; one that waits for another thread gets an error if that one
waits, over however many others, for it. Writers that wait go before readers that come later, so readers cannot starve them.

Source: Linux `drivers/md/persistent-data/dm-block-manager.c` (struct block_lock), without its limit of readers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import get_ident

from dstorage.persistent.errors import BlockLockError, DeadlockError


class BlockLock:
    """Who holds a block; changed only by `BlockLocks`.

    Attributes:
        number: Of the block.
        writer: Thread that writes it, or 0.
        readers: Threads that read it, once for each lock.
        waiting: How many threads want to read or write it.
        waiting_writers: Of these, those that want to write.
    """

    __slots__ = ("number", "readers", "waiting", "waiting_writers", "writer")

    def __init__(self, number: int) -> None:
        self.number = number
        self.writer = 0
        self.readers: list[int] = []
        self.waiting = self.waiting_writers = 0

    @property
    def is_wanted(self) -> bool:
        """Whether anybody reads or writes the block, or waits to."""
        return bool(self.writer or self.readers or self.waiting)


class BlockLocks:
    """Gives and takes the locks of all blocks of a manager.

    Args:
        mutex: Held by the caller of every method; a wait gives it up and takes it again.
    """

    def __init__(self, mutex: threading.RLock) -> None:
        self._changed = threading.Condition(mutex)
        self._waits: dict[int, BlockLock] = {}

    def read(self, lock: BlockLock) -> None:
        """Wait for a shared lock.

        Raises:
            BlockLockError: This thread writes the block.
            DeadlockError: Its writer waits for this thread.
        """
        if lock.writer or lock.waiting_writers:
            me = get_ident()
            if lock.writer == me:
                raise BlockLockError(
                    f"block {lock.number} is locked for writing by this thread already: unlock it first",
                    block=lock.number,
                )
            if me not in lock.readers:
                self._wait(lock, lambda: not lock.writer and not lock.waiting_writers)
        lock.readers.append(get_ident())

    def write(self, lock: BlockLock) -> None:
        """Wait for the exclusive lock.

        Raises:
            BlockLockError: This thread holds the block already.
            DeadlockError: A holder waits for this thread.
        """
        me = get_ident()
        if lock.writer or lock.readers:
            if lock.writer == me or me in lock.readers:
                raise BlockLockError(
                    f"block {lock.number} is locked by this thread already: upgrade that lock, or unlock it first",
                    block=lock.number,
                )
            self._wait_to_write(lock, lambda: not lock.writer and not lock.readers)
        lock.writer = me

    def upgrade(self, lock: BlockLock) -> None:
        """Turn this thread's only shared lock into the exclusive one; nobody writes in between.

        Raises:
            BlockLockError: It has none, or several.
            DeadlockError: Another holder waits for this thread, for instance to upgrade as well; the shared lock stays.
        """
        me = get_ident()
        if lock.readers.count(me) != 1:
            raise BlockLockError(
                f"block {lock.number} cannot be upgraded: this thread has {lock.readers.count(me)} read locks, not one",
                block=lock.number,
            )
        if len(lock.readers) > 1:
            self._wait_to_write(lock, lambda: len(lock.readers) == 1)
        lock.readers.clear()
        lock.writer = me

    def release(self, lock: BlockLock, *, writer: bool) -> None:
        """Give a lock of this thread back.

        Raises:
            BlockLockError: This thread has none.
        """
        me = get_ident()
        if writer:
            if lock.writer != me:
                raise BlockLockError(f"block {lock.number} is not locked for writing by this thread", block=lock.number)
            lock.writer = 0
        else:
            if me not in lock.readers:
                raise BlockLockError(f"block {lock.number} is not locked for reading by this thread", block=lock.number)
            lock.readers.remove(me)
        if self._waits:
            self._changed.notify_all()

    def _wait_to_write(self, lock: BlockLock, is_free: Callable[[], bool]) -> None:
        lock.waiting_writers += 1
        try:
            self._wait(lock, is_free)
        finally:
            lock.waiting_writers -= 1
            if self._waits:
                self._changed.notify_all()

    def _wait(self, lock: BlockLock, is_free: Callable[[], bool]) -> None:
        me = get_ident()
        self._waits[me] = lock
        lock.waiting += 1
        try:
            # Whoever closes a circle of waits is the one that notices, so it is enough to look once, before waiting.
            if self._waits_for(lock, me, set()):
                raise DeadlockError(
                    f"block {lock.number}: its holders wait for blocks that this thread holds; unlock those first",
                    block=lock.number,
                )
            while not is_free():
                self._changed.wait()
        finally:
            lock.waiting -= 1
            del self._waits[me]

    def _waits_for(self, lock: BlockLock, thread: int, seen: set[int]) -> bool:
        """Whether any holder of a lock waits, directly or not, for a thread."""
        for holder in {lock.writer, *lock.readers} - {0, thread} - seen:
            seen.add(holder)
            wanted = self._waits.get(holder)
            if wanted is not None and (
                thread == wanted.writer or thread in wanted.readers or self._waits_for(wanted, thread, seen)
            ):
                return True
        return False
