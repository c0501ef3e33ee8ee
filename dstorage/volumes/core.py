"""What keeps a pool's metadata and data in step: changes, commits, and the way back when one of them fails.

Metadata hold nothing that is not durable in the data: before each commit the data device is flushed, and while that lasts nothing
is half done. A change that breaks off half done is taken back, with everything since the last commit; the pool is then read-only.

Source of the rules: Linux `drivers/md/dm-thin.c` (commit, metadata_operation_failed, abort_transaction).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from dstorage.errors import ClosedError, InvalidArgumentError, UsageError
from dstorage.persistent.errors import DamagedMetadataError
from dstorage.volumes.device import DataDevice
from dstorage.volumes.errors import (
    DeviceBusyError,
    DeviceExistsError,
    NoSuchDeviceError,
    PoolFullError,
    PoolReadOnlyError,
)
from dstorage.volumes.figures import CHANGE_BLOCKS
from dstorage.volumes.finish import finish, in_thread
from dstorage.volumes.gate import Gate
from dstorage.volumes.metadata import ThinMetadata
from dstorage.volumes.status import LowSpace, Mode, PoolStatus, SpaceWatch

if TYPE_CHECKING:
    from dstorage.volumes.volume import Volume

COMMIT_INTERVAL_S = 1.0

UNCHANGED = (DeviceExistsError, NoSuchDeviceError, DeviceBusyError, InvalidArgumentError, UsageError)
"""Raised by the metadata before anything is changed."""

T = TypeVar("T")


class PoolCore:
    """The part of `ThinPool` that volumes work with.

    Args:
        metadata: Opened; closed with the pool.
        data: Where the bytes are; the caller closes it.
        commit_interval: Seconds between commits in the background, None for none.
        low_space: Whom to tell that free space has fallen to a mark.

    Attributes:
        metadata: The maps.
        data: The device of the bytes.
        gate: Passed by whatever uses either.
        path: Of the metadata, for messages.
        block_bytes: Bytes of a data block.
        loop: What it belongs to.
        is_closed: Whether `close` was called.
    """

    def __init__(
        self,
        metadata: ThinMetadata,
        data: DataDevice,
        *,
        commit_interval: float | None = COMMIT_INTERVAL_S,
        low_space: LowSpace | None = None,
    ) -> None:
        self.metadata = metadata
        self.data = data
        self.gate = Gate()
        self.path = metadata.path
        self.block_bytes = metadata.block_bytes
        self.is_closed = False
        self._volumes: dict[int, Volume] = {}
        self._allocations = 0
        self._broken: BaseException | None = None
        self._flush_failure: Exception | None = None
        self._space = SpaceWatch(low_space)
        self.loop = asyncio.get_running_loop()
        self._shown: PoolStatus | None = None
        """While a thread changes the metadata: how they were before."""
        # Short of space already? Nothing else may happen for long that would tell.
        self._watch_space()
        self._committer: asyncio.Task[None] | None = None
        if commit_interval is not None and not metadata.read_only:
            self._committer = self.loop.create_task(self._commit_now_and_then(commit_interval))

    @property
    def mode(self) -> Mode:
        """What the pool takes now."""
        if self._broken is not None or self.metadata.read_only:
            return Mode.READ_ONLY
        figures = self._shown or self.metadata
        if figures.free_metadata_blocks < CHANGE_BLOCKS:
            return Mode.OUT_OF_METADATA_SPACE
        return Mode.WRITE if figures.free_data_blocks else Mode.OUT_OF_DATA_SPACE

    def status(self) -> PoolStatus:
        """The pool in numbers, from memory; while it is being committed or changed as a whole, how it was before."""
        self._check_open()
        # The mode is another one as soon as anything fails.
        return replace(self._shown or self._look(), mode=self.mode, devices=len(self.metadata.ids()))

    def devices(self) -> list[int]:
        """The ids of all devices, ascending, from memory."""
        self._check_open()
        return self.metadata.ids()

    async def commit(self) -> None:
        """Make everything durable: first the bytes, then the mappings.

        Raises:
            OSError: That failed; the pool is as at the last commit, and read-only.
            PoolReadOnlyError: The pool takes no changes.
        """
        self._check_open()
        self.check_changeable()
        # Most of the bytes go without holding anybody up.
        await _to_its_end(self._flush())
        async with self.gate.alone:
            self._check_open()
            self.check_changeable()
            if self._flush_failure is not None:
                self._fall_back(self._flush_failure)
                raise self._flush_failure
            await self._commit()

    # -- for volumes --------------------------------------------------------------------------------------------------

    def check_changeable(self) -> None:
        """Raise if the pool takes no changes.

        Raises:
            PoolReadOnlyError: It does not.
        """
        if self._broken is not None:
            raise PoolReadOnlyError(
                f"the pool {self.path} is read-only and as at its last commit, because of: {self._broken}; "
                "close it, mend the cause, and open it again"
            ) from self._broken
        if self.metadata.read_only:
            raise PoolReadOnlyError(f"the pool {self.path} was opened read-only")

    def check_room(self) -> None:
        """Raise unless there are metadata blocks for one change more, beside those that allocations under way will need.

        A change that found none half way would cost everything since the last commit.

        Raises:
            PoolFullError: There are not.
            PoolReadOnlyError: The pool takes no changes.
            ClosedError: The pool was closed.
        """
        self._check_open()
        self.check_changeable()
        changes = self._allocations + 1
        if not self._change(lambda: self.metadata.has_room(changes)):
            raise self._out_of_metadata()

    def allocate(self, count: int) -> list[int]:
        """Take so many data blocks, or none; they belong to the caller until `map` or `release`.

        Raises:
            PoolFullError: There are not so many, or no metadata to map them.
        """
        self.check_room()
        places = self._change(lambda: self.metadata.allocate(count))
        self._allocations += 1
        self._watch_space()
        return places

    def release(self, places: Iterable[int]) -> None:
        """Give blocks back that were not mapped: all of one allocation."""
        self._allocations -= 1
        # After a fall back to the last commit they never were taken.
        if self._broken is None:
            self._change(lambda: self.metadata.release(places))

    def map(self, id: int, new: dict[int, int]) -> None:
        """Let virtual blocks of a device be at the data blocks of one allocation.

        Raises:
            PoolReadOnlyError: The pool fell back meanwhile.
        """
        self._allocations -= 1
        self.check_changeable()
        self._change(lambda: self.metadata.map(id, new))
        self._watch_space()

    def unmap(self, id: int, first: int, last: int) -> None:
        """Unmap virtual blocks from `first` to `last` (exclusive).

        Raises:
            PoolFullError: Not even the reserve has the metadata blocks that this needs.
        """
        # Beside what allocations under way were promised.
        changes = self._allocations + 1
        if not self._change(lambda: self.metadata.has_room(changes, in_reserve=True)):
            raise self._out_of_metadata()
        self._change(lambda: self.metadata.unmap(id, first, last))
        self._watch_space()

    async def reclaim(self) -> bool:
        """Commit, so that what was freed since the last one can be had, and what others are about to use up is known.

        Returns:
            False if there is no hope that it helps; nothing was done.
        """
        if not self.metadata.freed and not self._allocations:
            return False
        await self.commit()
        return True

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Change the metadata in a thread, to the end whatever happens; the caller is alone."""
        self._shown = self._look()
        try:
            return await in_thread(work)
        finally:
            self._shown = None

    def closed(self, volume: Volume) -> None:
        """A volume has been closed."""
        if self._volumes.get(volume.id) is volume:
            del self._volumes[volume.id]

    # -- private ------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.is_closed:
            raise ClosedError(f"the pool {self.path} was closed: open it again")

    def _look(self) -> PoolStatus:
        """The figures, without the number of devices, for which a tree may have to be read."""
        metadata = self.metadata
        return PoolStatus(
            mode=self.mode,
            needs_check=metadata.needs_check,
            transaction_id=metadata.transaction_id,
            time=metadata.time,
            block_bytes=self.block_bytes,
            data_blocks=metadata.nr_data_blocks,
            free_data_blocks=metadata.free_data_blocks,
            metadata_blocks=metadata.nr_metadata_blocks,
            free_metadata_blocks=metadata.free_metadata_blocks,
            held_root=metadata.held_root,
            devices=0,
        )

    def _change(self, work: Callable[[], T]) -> T:
        """Run a change of the metadata; if it breaks off half done, fall back to the last commit."""
        try:
            return work()
        except UNCHANGED:
            raise
        except PoolFullError as error:
            if error.kind == "metadata":
                self._fall_back(error, needs_check=True)
            raise
        except Exception as error:
            self._fall_back(error, needs_check=True)
            raise

    def _fall_back(self, error: Exception, *, needs_check: bool = False) -> None:
        self._broken = error
        try:
            self._abort()
            if needs_check:
                self.metadata.set_needs_check()
        except Exception as second:
            # The device is gone altogether: the first error says so to everybody.
            error.add_note(f"nor could the last commit be read again and marked as needing a check: {second}")

    def _abort(self) -> None:
        try:
            self.metadata.abort()
        except Exception as error:
            # What is in memory is neither the last commit nor anything else: nobody may read by it.
            self._broken = self._broken or error
            for volume in list(self._volumes.values()):
                volume.close()
            self.metadata.close()
            raise
        there: list[int] = []
        try:
            # Also to have them in memory.
            there = self.metadata.ids()
        except DamagedMetadataError:
            if self._volumes:
                raise
        for id, volume in list(self._volumes.items()):
            if id in there:
                volume.forget()
            else:
                volume.close()

    def _out_of_metadata(self) -> PoolFullError:
        return PoolFullError(
            f"the pool {self.path} is out of metadata space: delete devices or discard, commit, or grow the metadata",
            kind="metadata",
        )

    async def _flush(self) -> None:
        try:
            await self.data.flush()
        except Exception as error:
            # Told once by the device: the next flush may succeed, and the bytes be lost all the same.
            self._flush_failure = error

    async def _commit(self) -> None:
        """The commit itself, alone; to its end, whoever is cancelled."""
        if self.metadata.changed:
            await _to_its_end(self._commit_changes())

    async def _commit_changes(self) -> None:
        try:
            await self.data.flush()
        except Exception as error:
            # The bytes of new mappings may be lost: the mappings must not outlive them.
            self._fall_back(error)
            raise
        try:
            freed = await self.in_thread(self.metadata.commit)
        except Exception as error:
            self._fall_back(error, needs_check=True)
            raise
        for first, length in freed:
            # Only a hint: a device that cannot take it keeps the bytes.
            with contextlib.suppress(OSError):
                await self.data.discard(first * self.block_bytes, length * self.block_bytes)
        self._watch_space()

    async def _commit_now_and_then(self, interval: float) -> None:
        while self.mode is not Mode.READ_ONLY:
            await asyncio.sleep(interval)
            if not self.metadata.changed:
                continue
            try:
                await self.commit()
            except Exception as error:
                # Whoever writes next gets it as the cause; this tells those who only wait.
                self.loop.call_exception_handler(
                    {"message": f"the pool {self.path} could not commit and is read-only now", "exception": error}
                )

    def _watch_space(self) -> None:
        # Some changes are made in a thread.
        tell = self.loop.call_soon_threadsafe
        self._space.look(self.metadata.free_data_blocks, self.metadata.free_metadata_blocks, tell)


async def _to_its_end(work: Coroutine[None, None, None]) -> None:
    """Do all of it, even if whoever waits is cancelled: what fails must be known, and be dealt with."""
    await finish(asyncio.ensure_future(work))
