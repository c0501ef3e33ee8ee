"""One writer per store: an advisory lock on a file that names the holder's process and machine, and on the catalog.

The file of the lock is never stale, and nobody need remove it. Whoever does all the same takes no lock away: `StoreLock.keep`
locks the catalog's data as well, which nobody removes who wants to keep the store.

`flock` is dropped by the operating system when the process ends, however it ends, and works over NFS (Linux turns it into a
byte-range lock there). Where the file system refuses locks, or is mounted so that they hold for one machine alone, so does
opening the store: two writers would destroy it.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from dstorage.errors import StoreLocked
from dstorage.mount import mount_of

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        os.lseek(fd, 1 << 20, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


MAX_TEXT = 512


class StoreLock:
    """Held from construction to `release`.

    Raises:
        StoreLocked: Another process (or this one) holds it, or there are no locks that other machines would honour.
        OSError: The file cannot be made or written to; the lock is not held.
    """

    def __init__(self, path: Path) -> None:
        self._data_fd = -1
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            self._take(path)
        except BaseException:
            self.release()
            raise

    def keep(self, data: Path) -> None:
        """Lock the catalog's data as well, if there is any; a second call does nothing.

        LMDB takes no locks on it that this one could meet: its own are on the file beside it. Over SMB that lock would keep LMDB from
        reading; there the lock file is all there is.

        Raises:
            StoreLocked: Another process (or this one) holds it, and the file of its lock was removed.
            OSError: It cannot be opened for writing.
        """
        # Windows removes no file that is open, and its locks keep others from reading, too.
        if sys.platform == "win32" or self._data_fd >= 0:
            return
        mount = mount_of(data)
        if mount is not None and mount.mandatory_locks:
            return
        try:
            self._data_fd = os.open(data, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            return
        try:
            _lock(self._data_fd)
        except (BlockingIOError, PermissionError) as error:
            raise StoreLocked(
                f"{data.parent.parent} is being written by another process, whose lock file was removed: close it there, or open it "
                "here with read_only=True"
            ) from error

    def _take(self, path: Path) -> None:
        mount = mount_of(path)
        if mount is not None and mount.local_locks is not None:
            raise StoreLocked(
                f"{path} cannot be locked: locks there hold for this machine alone ({mount.local_locks}), while others can write "
                "the same files; mount it with locks, or keep the store on another file system"
            )
        try:
            _lock(self._fd)
        except (BlockingIOError, PermissionError) as error:
            pid, machine = self._holder()
            whom = f"process {pid}" if pid else "another process"
            if machine not in (None, platform.node()):
                whom += f" on {machine}"
            raise StoreLocked(
                f"{path.parent} is being written by {whom}: close it there, or open it here with read_only=True",
                pid=pid,
            ) from error
        except OSError as error:
            raise StoreLocked(
                f"{path} cannot be locked ({error.strerror}): this file system offers no locks; keep the store on another"
            ) from error
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, f"{os.getpid()} {platform.node()}".encode())

    def _holder(self) -> tuple[int | None, str | None]:
        """Process and machine, as far as the file says and can be read (some systems lock against reading, too)."""
        try:
            os.lseek(self._fd, 0, os.SEEK_SET)
            pid, _, machine = os.read(self._fd, MAX_TEXT).decode(errors="replace").partition(" ")
        except OSError:
            return None, None
        return int(
            pid
        ) if pid.isascii() and pid.isdigit() else None, machine if machine.isprintable() and machine else None

    def release(self) -> None:
        """Let others write."""
        for fd in (self._data_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._data_fd = self._fd = -1

    def forget(self) -> None:
        """In a forked child: close the copy; the parent keeps the lock."""
        self.release()
