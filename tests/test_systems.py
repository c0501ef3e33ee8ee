"""Systems with less to offer than Linux: what they lack is taken away, one thing after the other and all together, and a store works."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MISSING = {
    "uvloop": "sys.modules['uvloop'] = None",
    "reads that do not wait": "del os.RWF_NOWAIT",
    "vectored I/O": "del os.preadv, os.pwritev",
    "hints to the kernel": "del os.posix_fadvise",
    "the size of the file system": "del os.statvfs",
    "a sync of data alone": "del os.fdatasync",
    "calls of the C library": """
import ctypes
def CDLL(name, *args, original=ctypes.CDLL, **kwargs):
    if name is None:
        raise TypeError("no handle on this process's own symbols")
    return original(name, *args, **kwargs)
ctypes.CDLL = CDLL
""",
    "control groups and pressure figures": """
from dstorage.paging import pressure
from pathlib import Path
pressure._CGROUP1 = pressure._CGROUP2 = Path("/nowhere")
""",
}
"""What a system may lack -> the statements that take it away before dstorage is imported."""

PROGRAM = """
import os, sys
{missing}
from dstorage.cli import main
main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes away what Linux has")
@pytest.mark.parametrize("what", [*MISSING, "all of it"])
def test_a_store_works_without(what, tmp_path):
    missing = "\n".join(MISSING.values()) if what == "all of it" else MISSING[what]
    (tmp_path / "data").mkdir()
    for number in range(30):
        (tmp_path / "data" / str(number)).write_bytes(os.urandom(300_000))

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM.format(missing=missing), *arguments],
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr == b""
        return json.loads(done.stdout)

    figures = run("demo", "data", "--budget", "2M", "--store", "store", "--json")
    assert figures["verified"]
    assert figures["evictions"] > 0
    assert run("check", "store", "--json")["sound"]
    assert run("compact", "store", "--json")["used_after"] <= 9_100_000
    assert run("check", "store", "--json")["sound"]
