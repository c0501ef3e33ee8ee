"""A volume as a blocking binary file, for threads other than the loop's."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from dstorage.errors import ClosedError, UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from dstorage.volumes.volume import Volume

T = TypeVar("T")


class VolumeFile(io.RawIOBase):
    """What `Volume.file()` gives: seekable, readable, writable, unbuffered; wrap it in `io.BufferedRandom` for small pieces.

    Every call waits for the pool's loop, which has to be running in another thread. `flush` makes what was written durable;
    mind that flushing a buffer around it only hands over to it. Closing leaves the volume open.

    Args:
        volume: The volume.
        loop: The pool's loop.
    """

    def __init__(self, volume: Volume, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._volume = volume
        self._loop = loop
        self._position = 0
        self._closing = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Unless the pool was opened read-only."""
        return self._volume.is_writable

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position; behind the end is allowed, there is nothing to read there."""
        self._check_open()
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"whence {whence} is not one of os.SEEK_SET, os.SEEK_CUR, os.SEEK_END")
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._volume.size}[whence]
        if position < 0:
            raise ValueError(f"position {position} is before the beginning")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer as far as the volume reaches; the number of bytes read, 0 at the end."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        data = self._run(self._volume.pread(len(view), self._position))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write as much as fits before the end of the volume; the number of bytes written.

        Raises:
            OSError: The position is at the end, or the pool cannot take it.
        """
        self._check_open()
        view = memoryview(data).cast("B")
        room = max(0, self._volume.size - self._position)
        if len(view) and not room:
            raise OSError(28, f"the volume ends at {self._volume.size}: open it with a larger size")
        part = view[:room]
        self._run(self._volume.pwrite(part, self._position))
        self._position += len(part)
        return len(part)

    def flush(self) -> None:
        """Make durable what was written."""
        if self._closing or not self._volume.is_writable:
            # Closing a file promises nothing about power failures, and may be the garbage collector's doing. Buffers around it
            # flush it though nothing can have been written.
            return
        self._check_open()
        self._run(self._volume.flush())

    def close(self) -> None:
        """Close this file, not the volume."""
        self._closing = True
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file was closed: get another from the volume")

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            work.close()
            raise UsageError(
                "a blocking call on the pool's own loop would wait for itself: use `await volume.pread(...)` there, "
                "or call from `asyncio.to_thread`"
            )
        if self._loop.is_closed():
            work.close()
            raise ClosedError("the pool's loop has ended: keep it running while its files are in use")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
