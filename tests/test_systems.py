"""Systems with less to offer than Linux: what they lack is taken away, one thing after the other and all together, and a store works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

import dstorage
from dstorage.server.server import Server

MISSING = {
    "uvloop": "sys.modules['uvloop'] = None",
    "reads that do not wait": "del os.RWF_NOWAIT",
    "positioned and vectored I/O": "del os.pread, os.pwrite, os.preadv, os.pwritev",
    "hints to the kernel": "del os.posix_fadvise",
    "the size of the file system": "del os.statvfs",
    "a sync of data alone": "del os.fdatasync",
    "forks": "del os.fork, os.register_at_fork",
    "figures of processes": """
from pathlib import Path
def unknown(path, *args, original=Path.read_text, **kwargs):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(2, "no such thing here", str(path))
    return original(path, *args, **kwargs)
Path.read_text = unknown
""",
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes away what Linux has")
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_node_ends_in_order_where_the_loop_takes_no_signals(told, tmp_path):
    missing = """
sys.modules["uvloop"] = None
import asyncio
def refuse(*args):
    raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = refuse
"""
    program = [sys.executable, "-W", "error", "-c", PROGRAM.format(missing=missing)]
    subprocess.run([*program, "init", "store"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    with subprocess.Popen(
        [*program, "serve", "store", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as node:
        try:
            assert b"serving 0 keys" in node.stdout.readline()
            node.send_signal(told)
            out, err = node.communicate(timeout=60)
        finally:
            node.kill()
    assert (out, err, node.returncode) == (b"committed and closed\n", b"", 0)


async def test_where_there_are_no_unix_sockets_a_node_says_so(tmp_path, monkeypatch):
    monkeypatch.delattr("socket.AF_UNIX")
    async with (
        dstorage.open(tmp_path / "store", budget="4M", pressure=None) as store,
        Server(store) as server,
    ):
        with pytest.raises(dstorage.InvalidArgumentError, match="no unix sockets"):
            await server.listen_unix(tmp_path / "socket")
