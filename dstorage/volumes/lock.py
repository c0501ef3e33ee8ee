"""One writer per pool: an advisory lock on the metadata file itself, dropped by the system however the process ends.

The file's bytes are not ours to write a process id into; on Linux the kernel's list of locks tells who holds it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dstorage.errors import StoreLocked

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> None:
        os.lseek(fd, 1 << 60, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class MetadataLock:
    """Held from construction to `release`.

    Raises:
        FileNotFoundError: There is no such file.
        StoreLocked: Somebody holds it, this process included, or the file system offers no locks.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        try:
            _try_lock(self._fd)
        except (BlockingIOError, PermissionError) as error:
            pid = _holder(self._fd)
            self.release()
            whom = f"process {pid}" if pid else "another process"
            raise StoreLocked(
                f"the pool {path} is being written by {whom}: close it there, or open it here with read_only=True",
                pid=pid,
            ) from error
        except OSError as error:
            self.release()
            raise StoreLocked(
                f"{path} cannot be locked ({error.strerror}): this file system offers no locks; keep the metadata on another"
            ) from error

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _holder(fd: int) -> int | None:
    status = os.fstat(fd)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == file and int(fields[4]) > 0:
            return int(fields[4])
    return None
