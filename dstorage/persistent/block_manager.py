"""Blocks of 4096 bytes in a bounded cache over a device: locked to be used, checked on the way in, sealed on the way out.

What is promised: no byte of a block is handed out that its validator did not accept; every use is under a lock (see
`block_locks`), so a mistake is an error and no silent damage; the superblock is written only by `flush`, after everything else is
durable; the cache holds at most so many blocks, but for those that are locked.

Anything else may be written early, when the cache is full: copy-on-write never changes a block that a committed superblock leads to.

Source: Linux `drivers/md/persistent-data/dm-block-manager.c`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, TypeVar

from dstorage.errors import InvalidArgumentError
from dstorage.persistent.block_file import BlockDevice
from dstorage.persistent.block_locks import BlockLock, BlockLocks
from dstorage.persistent.errors import BlockLockError, DamagedMetadataError, ReadOnlyMetadataError, WouldBlockError
from dstorage.persistent.validators import Validator

BLOCK_BYTES = 4096
SUPERBLOCK = 0
"""Number of the one block that is overwritten in place."""
CACHE_BLOCKS = 16384
"""64 MiB unless told: the nodes of some two million mappings."""
WRITE_BLOCKS = 256
"""Neighbours written in one call at most: 1 MiB."""

T = TypeVar("T")


class _Buffer(BlockLock):
    """A cached block; `view` is what `decode` made of it, both None after it may have been written."""

    __slots__ = ("data", "decode", "is_dirty", "is_used", "validator", "view")

    def __init__(self, number: int, validator: Validator, data: bytearray) -> None:
        super().__init__(number)
        self.validator = validator
        self.data = data
        self.is_dirty = False
        # Only a second use counts: a pass over everything pushes out nothing that is used again and again.
        self.is_used = False
        self.decode: Callable[[memoryview], Any] | None = None
        self.view: Any = None


class LockedBlock:
    """A block under a lock, until `BlockManager.unlock`.

    Attributes:
        number: Its place.
        data: Its 4096 bytes; read-only under a read lock. The same object as before as long as the block stayed cached.
        is_writable: Whether the lock is a write lock.
    """

    __slots__ = ("_buffer", "data", "is_writable", "number")

    data: bytearray | memoryview

    def __init__(self, buffer: _Buffer, *, is_writable: bool) -> None:
        self._buffer: _Buffer | None = buffer
        self.number = buffer.number
        self.is_writable = is_writable
        self.data = buffer.data if is_writable else memoryview(buffer.data).toreadonly()


class BlockManager:
    """The blocks of a device.

    Args:
        device: Where they lie.
        cache_blocks: Blocks kept in memory; at least 16.
        read_only: Refuse write locks.

    Raises:
        InvalidArgumentError: The cache is too small.
    """

    def __init__(self, device: BlockDevice, *, cache_blocks: int = CACHE_BLOCKS, read_only: bool = False) -> None:
        if cache_blocks < 16:
            raise InvalidArgumentError(f"a cache of {cache_blocks} blocks: a change of a tree alone needs 16")
        self.device = device
        self.read_only = read_only
        self.nr_blocks = device.size // BLOCK_BYTES
        self._limit = cache_blocks
        self._writes = 0
        self._mutex = threading.RLock()
        self._locks = BlockLocks(self._mutex)
        # In the order in which they are to leave; one that was used since it was looked at last gets a second round.
        self._buffers: OrderedDict[int, _Buffer] = OrderedDict()
        self._find = self._buffers.get

    def __len__(self) -> int:
        """Blocks in memory."""
        return len(self._buffers)

    # -- locks --------------------------------------------------------------------------------------------------------

    def read_lock(self, number: int, validator: Validator) -> LockedBlock:
        """A block to read; others may read it, too. Waits for another thread's write lock.

        Raises:
            DamagedMetadataError: It is not what the validator expects, or outside of the device.
            BlockLockError: This thread writes it.
            DeadlockError: Its writer waits for this thread.
            OSError: The device failed.
        """
        with self._mutex:
            buffer = self._buffer(number, validator)
            self._locks.read(buffer)
            self._check_kept(buffer, validator, writer=False)
            return LockedBlock(buffer, is_writable=False)

    def read_try_lock(self, number: int, validator: Validator) -> LockedBlock:
        """As `read_lock`, but neither waits nor reads from the device.

        Raises:
            WouldBlockError: It would have to.
        """
        with self._mutex:
            buffer = self._at_hand(number)
            self._check_kind(buffer, validator)
            self._locks.read(buffer)
            return LockedBlock(buffer, is_writable=False)

    def write_lock(self, number: int, validator: Validator) -> LockedBlock:
        """A block to change. Waits for other threads' locks.

        Raises:
            ReadOnlyMetadataError: The device is only read.
            BlockLockError: This thread holds it already.
        """
        with self._mutex:
            self._check_writable()
            buffer = self._find(number)
            if buffer is None or buffer.validator is not validator:
                buffer = self._buffer(number, validator)
            buffer.is_used = True
            if buffer.writer or buffer.readers:
                self._locks.write(buffer)
                self._check_kept(buffer, validator, writer=True)
            else:
                buffer.writer = get_ident()
            return self._to_write(buffer)

    def write_lock_zero(self, number: int, validator: Validator) -> LockedBlock:
        """A block of zeros to fill, whatever it was before: nothing is read or checked.

        Raises:
            ReadOnlyMetadataError: The device is only read.
            BlockLockError: This thread holds it already.
            DamagedMetadataError: There is no such place.
        """
        with self._mutex:
            self._check_writable()
            buffer = self._find(number)
            if buffer is None:
                if not 0 <= number < self.nr_blocks:
                    raise self.damaged(validator, number, f"outside of the device, which has {self.nr_blocks} blocks")
                buffer = self._keep(_Buffer(number, validator, bytearray(BLOCK_BYTES)))
                self._locks.write(buffer)
            else:
                self._locks.write(buffer)
                # New bytes: somebody may still look at the old ones.
                buffer.data = bytearray(BLOCK_BYTES)
                buffer.validator = validator
            return self._to_write(buffer)

    def upgrade(self, block: LockedBlock) -> LockedBlock:
        """Turn a read lock into the write lock, with no writer in between; use what this returns instead.

        Raises:
            DeadlockError: Another reader waits for this thread, for instance to upgrade as well; the read lock stays.
            BlockLockError: It is no read lock, or not the only one of this thread.
        """
        with self._mutex:
            self._check_writable()
            buffer = block._buffer
            if buffer is None or block.is_writable:
                raise BlockLockError(
                    f"block {block.number} is not read-locked, so nothing is there to upgrade", block=block.number
                )
            self._locks.upgrade(buffer)
            block._buffer = None
            return self._to_write(buffer)

    def unlock(self, block: LockedBlock) -> None:
        """Release a block; one that was locked for writing is written sooner or later.

        Raises:
            BlockLockError: It was released before, or is another thread's.
        """
        with self._mutex:
            buffer = block._buffer
            if buffer is None:
                raise BlockLockError(f"block {block.number} was unlocked before", block=block.number)
            self._locks.release(buffer, writer=block.is_writable)
            block._buffer = None

    # -- views --------------------------------------------------------------------------------------------------------

    def peek(self, number: int, validator: Validator, decode: Callable[[memoryview], T]) -> T:
        """What `decode` makes of a block's bytes, kept until the block is rewritten; it must not be changed.

        Raises:
            As `read_lock`.
        """
        buffer = self._find(number)
        # Not even a lock: a view is there only while nobody writes. Two kinds with one decoder are told apart below.
        if buffer is not None and buffer.decode is decode and buffer.validator is validator:
            buffer.is_used = True
            view = buffer.view
            if view is not None:
                return view  # type: ignore[no-any-return]
        with self._mutex:
            buffer = self._buffer(number, validator)
            self._locks.read(buffer)
            self._check_kept(buffer, validator, writer=False)
            try:
                buffer.view = decoded = decode(memoryview(buffer.data).toreadonly())
                buffer.decode = decode
            finally:
                self._locks.release(buffer, writer=False)
            return decoded

    def peek_cached(self, number: int, validator: Validator, decode: Callable[[memoryview], T]) -> T:
        """As `peek`, but neither waits nor reads from the device.

        Raises:
            WouldBlockError: It would have to.
        """
        with self._mutex:
            self._at_hand(number)
            return self.peek(number, validator, decode)

    def prefetch(self, numbers: Iterable[int]) -> None:
        """These blocks will be wanted soon."""
        first = end = -1
        for number in numbers:
            if number in self._buffers or not 0 <= number < self.nr_blocks:
                continue
            if number != end:
                if end > first:
                    self.device.will_need((end - first) * BLOCK_BYTES, first * BLOCK_BYTES)
                first = number
            end = number + 1
        if end > first:
            self.device.will_need((end - first) * BLOCK_BYTES, first * BLOCK_BYTES)

    def fetch(self, number: int, validator: Validator) -> None:
        """Have a block in memory; other threads may use the manager while it is being read.

        Raises:
            DamagedMetadataError: It is not what the validator expects, or outside of the device.
            OSError: The device failed.
        """
        with self._mutex:
            if number in self._buffers:
                return
            writes = self._writes
        buffer = self._read(number, validator)
        with self._mutex:
            # If anything was written meanwhile, what was read may be older than that.
            if number not in self._buffers and self._writes == writes:
                self._keep(buffer)

    # -- the device ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Make all that was written durable: everything but the superblock first, then the superblock.

        Raises:
            BlockLockError: A block is still locked for writing.
            OSError: The device failed; what is durable is not known, the superblock is the old one or the new one.
        """
        with self._mutex:
            dirty = sorted((buffer for buffer in self._buffers.values() if buffer.is_dirty), key=lambda b: b.number)
            for buffer in dirty:
                if buffer.writer:
                    raise BlockLockError(
                        f"block {buffer.number} is locked for writing: unlock it before flushing", block=buffer.number
                    )
            superblock = dirty[:1] if dirty and dirty[0].number == SUPERBLOCK else []
            if len(dirty) > len(superblock):
                self._write(dirty[len(superblock) :])
        # Readers need not wait for the device.
        self.device.sync()
        if superblock:
            with self._mutex:
                self._write(superblock)
            self.device.sync()

    def drop(self) -> None:
        """Forget everything that is not on the device, and whatever is cached; locks that are held are void."""
        with self._mutex:
            self._buffers.clear()

    def grow(self, nr_blocks: int) -> None:
        """Have the device that many blocks, if it has fewer.

        Raises:
            OSError: The device cannot be made longer.
        """
        with self._mutex:
            self._check_writable()
            if self.device.size < nr_blocks * BLOCK_BYTES:
                self.device.truncate(nr_blocks * BLOCK_BYTES)
            self.nr_blocks = self.device.size // BLOCK_BYTES

    def damaged(self, validator: Validator, number: int, reason: str) -> DamagedMetadataError:
        """An error that names kind, block and file."""
        return DamagedMetadataError(f"{validator.name} in block {number} of {self.device.name}: {reason}", block=number)

    # -- the cache ----------------------------------------------------------------------------------------------------

    def _buffer(self, number: int, validator: Validator) -> _Buffer:
        """The cached block, read if it is not."""
        buffer = self._find(number)
        if buffer is not None:
            self._check_kind(buffer, validator)
            buffer.is_used = True
            return buffer
        return self._keep(self._read(number, validator))

    def _read(self, number: int, validator: Validator) -> _Buffer:
        if not 0 <= number < self.nr_blocks:
            raise self.damaged(validator, number, f"outside of the device, which has {self.nr_blocks} blocks")
        data = self.device.pread(BLOCK_BYTES, number * BLOCK_BYTES)
        if len(data) != BLOCK_BYTES:
            raise self.damaged(validator, number, "the device has been cut short")
        problem = validator.problem(data, number)
        if problem is not None:
            raise self.damaged(validator, number, problem)
        return _Buffer(number, validator, bytearray(data))

    def _check_kind(self, buffer: _Buffer, validator: Validator) -> None:
        if buffer.validator is not validator:
            raise self.damaged(validator, buffer.number, f"it is in use as a {buffer.validator.name}")

    def _check_kept(self, buffer: _Buffer, validator: Validator, *, writer: bool) -> None:
        """After a wait: whoever had the block may have made it one of another kind."""
        if buffer.validator is not validator:
            self._locks.release(buffer, writer=writer)
            self._check_kind(buffer, validator)

    def _keep(self, buffer: _Buffer) -> _Buffer:
        if len(self._buffers) >= self._limit:
            self._make_room()
        self._buffers[buffer.number] = buffer
        return buffer

    def _make_room(self) -> None:
        """Let the blocks go that were not used for longest, down to a sixteenth below the limit; dirty ones are written first."""
        leaving: list[_Buffer] = []
        surplus = len(self._buffers) - self._limit + self._limit // 16
        # Two rounds: in the first, what was used only loses its mark.
        for _ in range(2 * len(self._buffers)):
            if len(leaving) == surplus:
                break
            number, buffer = self._buffers.popitem(last=False)
            self._buffers[number] = buffer
            if buffer.is_used:
                buffer.is_used = False
            elif not buffer.is_wanted and not (buffer.is_dirty and number == SUPERBLOCK):
                leaving.append(buffer)
        # A dirty one that came round twice is in the list twice.
        dirty = sorted({buffer.number for buffer in leaving if buffer.is_dirty})
        if dirty:
            self._write([self._buffers[number] for number in dirty])
        for buffer in leaving:
            self._buffers.pop(buffer.number, None)

    def _write(self, buffers: list[_Buffer]) -> None:
        """Seal and write blocks in ascending order, neighbours in one call."""
        self._writes += 1
        start = 0
        for place, buffer in enumerate(buffers, 1):
            buffer.validator.seal(buffer.data, buffer.number)
            if place == len(buffers) or buffers[place].number != buffer.number + 1 or place - start == WRITE_BLOCKS:
                run = buffers[start:place]
                self.device.pwrite(b"".join([one.data for one in run]), run[0].number * BLOCK_BYTES)
                for one in run:
                    one.is_dirty = False
                start = place

    def _to_write(self, buffer: _Buffer) -> LockedBlock:
        buffer.decode = buffer.view = None
        buffer.is_dirty = True
        return LockedBlock(buffer, is_writable=True)

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyMetadataError(f"{self.device.name} was opened to be read only")

    def _at_hand(self, number: int) -> _Buffer:
        """A block that can be read without waiting for anything."""
        buffer = self._find(number)
        if buffer is None or buffer.writer or buffer.waiting_writers:
            raise WouldBlockError(
                f"block {number} of {self.device.name} is not in memory or is being written", block=number
            )
        return buffer
