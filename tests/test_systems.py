"""Systems with less to offer than Linux: what they lack is taken away, one thing after the other and all together, and a store works."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys

import pytest
from dstorage_controllers.disk import DiskController

import dstorage
from dstorage import TemporarilyUnavailable
from dstorage.persistent import BlockFile
from dstorage.server.server import Server

try:
    import fcntl
except ImportError:
    fcntl = None

FCNTL = getattr(fcntl, "fcntl", None)
FULL_SYNC = 51
"""macOS's F_FULLFSYNC."""

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


class Syncs:
    """On another system: names of the files that were made durable, by the drive's cache or plainly."""

    def __init__(self, monkeypatch, platform):
        self.fully, self.plainly = [], []
        self.refusal = None
        self._of_system = fsync = os.fsync
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.delattr(os, "fdatasync", raising=False)

        def record(fd):
            self.plainly.append(self._name(fd))
            fsync(fd)

        monkeypatch.setattr(os, "fsync", record)

    def full(self, fd, operation, *arguments):
        """macOS's fcntl."""
        if operation != FULL_SYNC:
            return FCNTL(fd, operation, *arguments)
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.fully.append(self._name(fd))
        self._of_system(fd)
        return 0

    @staticmethod
    def _name(fd):
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


@pytest.fixture
def macos(monkeypatch):
    syncs = Syncs(monkeypatch, "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL_SYNC, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", syncs.full)
    return syncs


@pytest.fixture
def windows(monkeypatch):
    """Where no directory can be opened."""
    syncs = Syncs(monkeypatch, "win32")
    opened = os.open

    def refuse(path, *arguments, **options):
        fd = opened(path, *arguments, **options)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise PermissionError(errno.EACCES, "it is a directory", str(path))
        return fd

    monkeypatch.setattr(os, "open", refuse)
    return syncs


async def keep(path):
    """Commit a chunk, and sync a file of blocks; returns the chunk read again."""
    options = {"budget": "1M", "pressure": None, "commit_interval": None}
    async with dstorage.open(path / "store", controllers=[DiskController("disk")], **options) as store:
        with await store.create(b"kept" * 1000) as handle:
            await store.commit()
    (path / "blocks").write_bytes(bytes(8192))
    blocks = BlockFile(path / "blocks")
    blocks.sync()
    blocks.close()
    async with dstorage.open(path / "store", **options) as store, store.handle(handle.id) as data:
        return bytes(data)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks up what is synced as Linux tells it")


@linux
async def test_on_macos_the_drives_own_cache_is_synced(tmp_path, macos):
    assert await keep(tmp_path) == b"kept" * 1000
    assert {"00000001.seg", "blocks"} <= set(macos.fully)
    assert "disk" in macos.plainly
    assert not {"00000001.seg", "blocks"} & set(macos.plainly)


@linux
@pytest.mark.parametrize("refusal", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY])
async def test_on_macos_a_volume_that_cannot_sync_the_drives_cache_is_synced_as_it_can(tmp_path, macos, refusal):
    macos.refusal = refusal
    assert await keep(tmp_path) == b"kept" * 1000
    assert {"00000001.seg", "blocks"} <= set(macos.plainly)


@linux
async def test_on_macos_a_sync_that_fails_fails_the_commit(tmp_path, macos):
    async with dstorage.open(tmp_path, budget="1M", pressure=None, commit_interval=None) as store:
        with await store.create(b"kept" * 1000):
            macos.refusal = errno.EIO
            with pytest.raises(TemporarilyUnavailable, match="durable"):
                await store.commit()
            macos.refusal = None
            await store.commit()


@linux
async def test_on_windows_files_are_synced_and_directories_are_not_opened(tmp_path, windows):
    assert await keep(tmp_path) == b"kept" * 1000
    assert {"00000001.seg", "blocks"} <= set(windows.plainly)
    assert "disk" not in windows.plainly
