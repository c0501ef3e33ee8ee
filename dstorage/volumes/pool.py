"""A thin pool: volumes that take space when written, snapshots in O(1), on any data device.

What a commit promises: after a crash or power failure the pool is, as to which blocks each volume has, exactly as at the last
commit, and every byte written before that commit is there. Bytes written later over blocks mapped already may be old or new,
as on a disk.

Who does what: `ThinMetadata` holds the maps, `Volume` moves bytes, the pool keeps the two in step: what changes the whole
(commit, snapshot, growth) waits until no read or write is half done and holds back new ones meanwhile.

Source of the rules (modes, commit order, out of space): Linux `drivers/md/dm-thin.c`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from dstorage.errors import ClosedError, InvalidArgumentError
from dstorage.persistent.errors import DamagedMetadataError
from dstorage.volumes.core import COMMIT_INTERVAL_S, PoolCore
from dstorage.volumes.device import DataDevice
from dstorage.volumes.errors import (
    DeviceBusyError,
    NotAPoolError,
)
from dstorage.volumes.finish import in_thread
from dstorage.volumes.metadata import ThinMetadata
from dstorage.volumes.status import DeviceStatus, LowSpace, Mode
from dstorage.volumes.volume import Volume

DATA_BLOCK_BYTES = 64 * 1024
METADATA_BYTES = 16 * 2**20
"""Of a new pool, unless told: some 400 000 mappings without sharing."""
STEP_MAPPINGS = 4096
"""Looked at between two looks at the loop."""


class ThinPool(PoolCore):
    """A pool of thin devices; belongs to the loop that opened it.

    Opened by `create` or `open`, both a context manager; ``close()`` commits. One process may write a pool at a time.

    Example:
        >>> async def demo():
        ...     data = FileDevice("data", create=True)
        ...     async with await ThinPool.create("metadata", data, data_bytes=2**30) as pool:
        ...         await pool.create_device(1)
        ...         volume = await pool.volume(1, size=2**40)
        ...         await volume.pwrite(b"hello", 2**39)
        ...         await pool.snapshot(2, origin=1)
    """

    # -- opening and closing ------------------------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        metadata: Path | str,
        data: DataDevice,
        *,
        block_bytes: int = DATA_BLOCK_BYTES,
        data_bytes: int | None = None,
        metadata_bytes: int = METADATA_BYTES,
        commit_interval: float | None = COMMIT_INTERVAL_S,
        low_space: LowSpace | None = None,
    ) -> Self:
        """Make a pool.

        Args:
            metadata: File to be made; one that is there must be empty or all zeros at its beginning.
            data: Where the bytes go; the caller closes it after the pool.
            block_bytes: Of a data block: 64 KiB to 1 GiB, a multiple of 64 KiB, for ever. Small ones copy less after a
                snapshot, large ones need fewer metadata.
            data_bytes: Of the data device, which is made that long; None takes it as long as it is.
            metadata_bytes: Of the metadata file, up to 15.9 GiB.
            commit_interval: Seconds between commits in the background, None for none.
            low_space: Whom to tell that free space has fallen to a mark, or is there already.

        Raises:
            InvalidArgumentError: A size out of its range, or a file that holds something.
            StoreLocked: Somebody writes that file.
            OSError: Either device failed.
        """
        if data_bytes is not None:
            blocks = data_bytes // block_bytes if block_bytes > 0 else 0
        else:
            blocks = data.size // block_bytes if block_bytes > 0 else 0
        before = data.size
        if before < blocks * block_bytes:
            await data.truncate(blocks * block_bytes)
        try:
            made = await _opened(
                lambda: ThinMetadata.create(
                    metadata, metadata_bytes=metadata_bytes, block_bytes=block_bytes, nr_data_blocks=blocks
                )
            )
        except Exception:
            if data.size > before:
                await data.truncate(before)
            raise
        return cls(made, data, commit_interval=commit_interval, low_space=low_space)

    @classmethod
    async def open(
        cls,
        metadata: Path | str,
        data: DataDevice,
        *,
        read_only: bool = False,
        commit_interval: float | None = COMMIT_INTERVAL_S,
        low_space: LowSpace | None = None,
    ) -> Self:
        """Open a pool; it is as at its last commit.

        Args:
            metadata: Its file.
            data: Where the bytes are; the caller closes it after the pool.
            read_only: Change nothing and take no lock; whoever writes the pool meanwhile may confuse this reader.
            commit_interval: As in `create`.
            low_space: As in `create`.

        Raises:
            NotAPoolError: There is no pool, or the data device is shorter than the pool says.
            PoolReadOnlyError: The metadata need a check first; opening with `read_only` is possible.
            StoreLocked: Another process writes it; the message names it.
            DamagedMetadataError: The metadata are damaged.
            VersionError: It uses features not known here.
        """
        opened = await _opened(lambda: ThinMetadata.open(metadata, read_only=read_only))
        due = opened.nr_data_blocks * opened.block_bytes
        if data.size < due:
            opened.close()
            raise NotAPoolError(
                f"the data device has {data.size} bytes, the pool {metadata} is made for {due}: "
                "it is another one, or has been cut short"
            )
        return cls(opened, data, commit_interval=commit_interval, low_space=low_space)

    async def close(self) -> None:
        """Commit, close all volumes, release the lock; a second call does nothing. The data device stays open.

        Raises:
            OSError: The commit failed; the pool is closed nevertheless, and as at the last commit.
        """
        if self.is_closed:
            return
        before = self._broken
        if self._committer is not None:
            self._committer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._committer
        try:
            if self._broken is not None and before is None:
                # The commit that was under way failed, and nobody has been told.
                raise self._broken
            if self.mode is not Mode.READ_ONLY:
                await self.commit()
        except ClosedError:
            # Closed twice at once, the other one was faster; or it is the data device that was closed too early.
            if not self.is_closed:
                raise
        finally:
            async with self.gate.alone:
                self.is_closed = True
                for volume in list(self._volumes.values()):
                    volume.close()
                self.metadata.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    # -- devices ------------------------------------------------------------------------------------------------------

    async def create_device(self, id: int) -> None:
        """Make an empty thin device; durable with the next commit.

        Args:
            id: 0 to 16777215.

        Raises:
            DeviceExistsError: There is one of that id.
            PoolFullError: No metadata are free.
            PoolReadOnlyError: The pool takes no changes.
        """
        async with self.gate.alone:
            self.check_room()
            self._change(lambda: self.metadata.create_device(id))

    async def snapshot(self, id: int, *, origin: int) -> None:
        """Make device `id` the same as `origin` is now; from then on each goes its own way. Durable with the next commit.

        It takes the same time whatever the size. Writes to the origin that have not returned are in it wholly.

        Raises:
            DeviceExistsError: There is one of that id.
            NoSuchDeviceError: There is no origin.
            PoolFullError: No metadata are free.
            PoolReadOnlyError: The pool takes no changes.
        """
        async with self.gate.alone:
            self.check_room()
            self._change(lambda: self.metadata.create_snapshot(id, origin))

    async def delete_device(self, id: int) -> None:
        """Delete a device; what only it has is free at the next commit.

        Raises:
            NoSuchDeviceError: There is none.
            DeviceBusyError: It is open as a volume.
            PoolReadOnlyError: The pool takes no changes.
        """
        async with self.gate.alone:
            self.check_changeable()
            if id in self._volumes:
                raise DeviceBusyError(f"device {id} is open as a volume: close that first")
            # A large one takes a while.
            await self.in_thread(lambda: self._change(lambda: self.metadata.delete_device(id)))

    async def device(self, id: int, *, shared: bool = False) -> DeviceStatus:
        """About one device.

        Args:
            id: Its id.
            shared: Count the shared blocks, too.

        Raises:
            NoSuchDeviceError: There is none.
        """
        async with self.gate:
            self._check_open()
            details = self.metadata.details(id)
            count: int | None = None
            if shared:
                count = 0
                for number, (_, value) in enumerate(self.metadata.mappings(id)):
                    count += (value & 0xFFFFFF) < details.snapshotted_time
                    if number % STEP_MAPPINGS == STEP_MAPPINGS - 1:
                        await asyncio.sleep(0)
            return DeviceStatus(
                id,
                details.mapped_blocks,
                count,
                details.transaction_id,
                details.creation_time,
                details.snapshotted_time,
            )

    async def volume(self, id: int, *, size: int | None = None) -> Volume:
        """Open a device.

        Args:
            id: Its id.
            size: Bytes of the volume; may be far more than the pool has. None: as much as the pool has, or up to the last
                mapped block where that is more.

        Raises:
            NoSuchDeviceError: There is none.
            DeviceBusyError: It is open already.
            InvalidArgumentError: An impossible size.
        """
        async with self.gate:
            self._check_open()
            self.metadata.details(id)
            if id in self._volumes:
                raise DeviceBusyError(f"device {id} is open already: use that volume, or close it")
            if size is None:
                size = max(self.metadata.nr_data_blocks, self.metadata.mapped_end(id)) * self.block_bytes
            if not 0 <= size <= 2**63 - 1:
                raise InvalidArgumentError(f"a volume of {size} bytes: 0 to 2**63 - 1 are possible")
            volume = self._volumes[id] = Volume(self, id, size)
            return volume

    # -- the whole ----------------------------------------------------------------------------------------------------

    async def rollback(self) -> None:
        """Take everything back to the last commit: devices, snapshots and mappings made since are gone.

        Bytes written over blocks that were mapped and not shared at that commit stay. Volumes of devices that are gone are closed.

        Raises:
            PoolReadOnlyError: The pool takes no changes.
        """
        async with self.gate.alone:
            self._check_open()
            self.check_changeable()
            self._abort()
            self._watch_space()

    async def grow_data(self, data_bytes: int) -> None:
        """Make the pool larger, and the data device where that is shorter; commits.

        Raises:
            InvalidArgumentError: That would be smaller.
            PoolFullError: No metadata are free to count the new blocks.
        """
        blocks = data_bytes // self.block_bytes
        if blocks < self.metadata.nr_data_blocks:
            raise InvalidArgumentError(
                f"{data_bytes} bytes are {blocks} blocks, the pool has {self.metadata.nr_data_blocks}: it can only grow"
            )
        async with self.gate.alone:
            self.check_room()
            if self.data.size < blocks * self.block_bytes:
                await self.data.truncate(blocks * self.block_bytes)
            self._change(lambda: self.metadata.grow_data(blocks))
            await self._commit()

    async def grow_metadata(self, metadata_bytes: int) -> None:
        """Make the metadata file longer; commits.

        Raises:
            InvalidArgumentError: That would be smaller, or more than 15.9 GiB.
        """
        async with self.gate.alone:
            self._check_open()
            self.check_changeable()
            await self.in_thread(lambda: self._change(lambda: self.metadata.grow_metadata(metadata_bytes)))
            await self._commit()

    async def take_metadata_snapshot(self) -> int:
        """Freeze the present state for `dump(path, ..., snapshot=True)` while the pool goes on; commits.

        Returns:
            The block it is in.

        Raises:
            DeviceBusyError: There is one already: release that first.
        """
        async with self.gate.alone:
            self.check_room()
            await self._commit()
            self._change(self.metadata.take_snapshot)
            await self._commit()
            return self.metadata.held_root

    async def release_metadata_snapshot(self) -> None:
        """Let it go; commits.

        Raises:
            InvalidArgumentError: There is none.
        """
        async with self.gate.alone:
            self._check_open()
            self.check_changeable()
            await self.in_thread(lambda: self._change(self.metadata.release_snapshot))
            await self._commit()

    async def set_transaction_id(self, new: int, *, expected: int) -> None:
        """Set the number that the program keeps in the pool for itself; durable with the next commit.

        Raises:
            InvalidArgumentError: It is not `expected` now.
        """
        async with self.gate.alone:
            self._check_open()
            self.check_changeable()
            self._change(lambda: self.metadata.set_transaction_id(expected, new))

    def __repr__(self) -> str:
        if self.is_closed:
            return f"<ThinPool {str(self.path)!r}: closed>"
        status = self.status()
        return (
            f"<ThinPool {str(self.path)!r}: {status.mode.value}, {status.free_data_blocks} of "
            f"{status.data_blocks} blocks free, {len(self._volumes)} volumes open>"
        )


async def _opened(work: Callable[[], ThinMetadata]) -> ThinMetadata:
    """Open metadata in a thread; if nobody waits any more when they are open, they are closed again."""
    opened: list[ThinMetadata] = []

    def read() -> None:
        opened.append(work())
        # Into memory while nobody waits for the loop. What is damaged there is told to who asks for it.
        with contextlib.suppress(DamagedMetadataError):
            opened[0].ids()

    try:
        await in_thread(read)
    except asyncio.CancelledError:
        for metadata in opened:
            metadata.close()
        raise
    return opened[0]
