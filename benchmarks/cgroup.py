"""A memory control group for a benchmark's process, where the system lets one be made."""

from __future__ import annotations

import os
import time
from pathlib import Path


def memory_group(limit: int) -> Path | None:
    """A memory control group of our own, or None where that cannot be made."""
    if not limit:
        return None
    base = Path("/sys/fs/cgroup/memory")
    limit_file = "memory.limit_in_bytes"
    if not base.exists():
        base, limit_file = Path("/sys/fs/cgroup"), "memory.max"
    group = base / f"dstorage-bench-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
        (group / limit_file).write_text(str(limit))
    except OSError:
        return None
    return group
