"""Giving memory that was freed back to the system.

An allocator keeps what is freed for later; the machine does not get it back by eviction alone. Measured with glibc: after 256 MiB of
chunks of 4 KiB have left, the process still holds all of it, and a third of that after `malloc_trim`; chunks of 1 MiB are mapped one
by one and go back at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _find() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        # Another allocator, or another system.
        return None
    return found


_malloc_trim = _find()


def trim() -> None:
    """Have the allocator give back what it can, where it knows how. Takes milliseconds, and lets other threads run."""
    if _malloc_trim is not None:
        _malloc_trim(0)
