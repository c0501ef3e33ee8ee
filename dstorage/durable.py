"""Making files durable: their bytes and lengths, and their names.

Source: POSIX `fsync` and `fdatasync`; fcntl(2) of macOS for `F_FULLFSYNC`.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_NO_FULL_SYNC = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY})
"""What a volume without `F_FULLFSYNC` says, such as one of the network."""


def sync_file(fd: int) -> None:
    """Return when a file's bytes and length are durable.

    Raises:
        OSError: From the device.
    """
    if sys.platform == "darwin":
        import fcntl

        try:
            # fsync leaves the bytes in the drive's own cache there.
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in _NO_FULL_SYNC:
                raise
            os.fsync(fd)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are durable (where directories can be opened; elsewhere the system does it).

    Raises:
        OSError: From the device.
    """
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
