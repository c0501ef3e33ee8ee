"""One writer per store: an advisory lock on a file that names the holder's process.

`flock` is dropped by the operating system when the process ends, however it ends, and works over NFS (Linux turns it into a
byte-range lock there). Where the file system refuses locks, so does opening the store: two writers would destroy it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dstorage.errors import StoreLocked

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        os.lseek(fd, 1 << 20, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class StoreLock:
    """Held from construction to `release`.

    Raises:
        StoreLocked: Another process (or this one) holds it, or the file system offers no locks.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            _lock(self._fd)
        except (BlockingIOError, PermissionError) as error:
            pid = self._holder()
            os.close(self._fd)
            whom = f"process {pid}" if pid else "another process"
            raise StoreLocked(
                f"{path.parent} is being written by {whom}: close it there, or open it here with read_only=True",
                pid=pid,
            ) from error
        except OSError as error:
            os.close(self._fd)
            raise StoreLocked(
                f"{path} cannot be locked ({error.strerror}): this file system offers no locks; keep the store on another"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0) if hasattr(os, "pwrite") else os.write(
            self._fd, str(os.getpid()).encode()
        )

    def _holder(self) -> int | None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        text = os.read(self._fd, 32)
        return int(text) if text.isdigit() else None

    def release(self) -> None:
        """Let others write."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def forget(self) -> None:
        """In a forked child: close the copy; the parent keeps the lock."""
        self.release()
