"""One writer per store: what is refused and how it is told, on local and network file systems and without `flock`."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import dstorage
from dstorage import StoreLocked, lock, opening
from dstorage.mount import Mount, find_mount

MOUNTS = [
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard",
    "40 22 0:40 / /lab rw - nfs4 server:/lab rw,vers=4.2,local_lock=none",
    "41 40 0:41 / /lab/local rw - xfs /dev/sdb rw",
    "42 22 0:42 / /two\\040words rw shared:7 master:1 - cifs //server/x rw,nobrl",
    "43 22 0:43 / /hidden rw - nfs server:/x rw,nolock,local_lock=all",
    "44 43 0:44 / /hidden rw - nfs server:/y rw,local_lock=flock",
    "45 22 0:45 / /ssh rw - fuse.sshfs me@there:/ rw",
    "46 22 0:46 / /big rw - lustre a@tcp:/big rw,flock",
    "47 22 0:47 / /small rw - lustre a@tcp:/small rw,localflock",
    "48 22 0:48 / /none",
    "nonsense",
    "",
]


@pytest.mark.parametrize(
    ("path", "kind", "network", "local"),
    [
        ("/home/me", "ext4", False, None),
        ("/lab/store", "nfs4", True, None),
        ("/laboratory", "ext4", False, None),
        ("/lab/local/store", "xfs", False, None),
        ("/two words/store", "cifs", True, "cifs, nobrl"),
        ("/hidden/store", "nfs", True, "nfs, local_lock=flock"),
        ("/ssh", "fuse.sshfs", True, "sshfs"),
        ("/big/store", "lustre", True, None),
        ("/small/store", "lustre", True, "lustre, localflock"),
    ],
)
def test_a_mount_tells_whether_others_see_it_and_honour_its_locks(path, kind, network, local):
    mount = find_mount(MOUNTS, Path(path))
    assert (mount.kind, mount.network, mount.local_locks) == (kind, network, local)


NETWORK = (
    "fuse.ceph-fuse fuse.ceph fuse.glusterfs fuse.juicefs fuse.vmhgfs-fuse gpfs ocfs2 gfs2 virtiofs vboxsf 9p ceph afs"
)
NO_LOCKS = (
    "fuse.sshfs fuse.rclone fuse.s3fs fuse.gcsfuse fuse.davfs fuse.smbnetfs fuse.curlftpfs pvfs2 orangefs davfs coda"
)
UNKNOWN = "fuse fuse.anybodys"
LOCAL = "ext4 fuseblk fuse.ntfs-3g fuse.mergerfs fuse.encfs fuse.gocryptfs fuse.bindfs fuse.fuse-overlayfs fuse.unionfs tmpfs overlay"


@pytest.mark.parametrize(
    ("kinds", "network", "refused", "words"),
    [
        (NETWORK, True, False, "a network file system"),
        (NO_LOCKS, True, True, "a network file system"),
        (UNKNOWN, True, False, "what may be a network file system"),
        (LOCAL, False, False, None),
    ],
)
def test_each_type_is_local_or_warned_of_or_refused(kinds, network, refused, words):
    for kind in kinds.split():
        mount = Mount(kind, frozenset({"rw"}))
        assert (mount.network, mount.local_locks is not None) == (network, refused), kind
        if words is not None:
            assert mount.what == f"{words} ({kind})"


@pytest.mark.parametrize(
    ("kind", "option"), [("ocfs2", "localflocks"), ("gfs2", "localflocks"), ("afs", "flock=local"), ("smb3", "nobrl")]
)
def test_an_option_that_keeps_locks_to_one_machine_is_refused(kind, option):
    assert Mount(kind, frozenset({"rw", option})).local_locks == f"{kind}, {option}"


def test_beegfs_is_taken_where_its_settings_make_locks_hold_everywhere(tmp_path):
    settings = tmp_path / "beegfs-client.conf"
    mount = Mount("beegfs", frozenset({"rw", f"cfgFile={settings}"}))
    told = "beegfs without tuneUseGlobalFileLocks"
    assert mount.local_locks == told
    for value, locks in (("false", told), ("true", None)):
        settings.write_text(f"# tuneUseGlobalFileLocks = true\nlogLevel = 3\ntuneUseGlobalFileLocks        = {value}\n")
        assert mount.local_locks == locks
    assert mount.network
    assert Mount("beegfs", frozenset({"rw"})).local_locks == told


def test_where_the_system_says_nothing_nothing_is_known():
    assert find_mount(["nonsense"], Path("/home")) is None


async def test_a_mount_with_locks_for_one_machine_is_refused_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "mount_of", lambda path: Mount("nfs", frozenset({"rw", "nolock"})))
    with pytest.raises(StoreLocked, match=r"this machine alone \(nfs, nolock\), while others can write"):
        await dstorage.open(tmp_path / "store", pressure=None)
    assert not (tmp_path / "store" / "catalog").exists()


async def test_a_store_on_a_network_file_system_is_warned_of_also_by_a_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "mount_of", lambda path: Mount("nfs4", frozenset({"rw"})))
    for read_only in (False, True):
        with pytest.warns(
            RuntimeWarning, match=r"network file system \(nfs4\): its catalog must be open on one machine"
        ):
            async with dstorage.open(tmp_path / "store", pressure=None, read_only=read_only):
                pass


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def refuse(fd):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_lock", refuse)
    with pytest.raises(StoreLocked, match="this file system offers no locks"):
        lock.StoreLock(tmp_path / "lock")


def test_the_holder_is_told_with_its_machine_where_that_is_another(tmp_path, monkeypatch):
    held = lock.StoreLock(tmp_path / "lock")
    with pytest.raises(StoreLocked, match=f"by process {os.getpid()}:") as here:
        lock.StoreLock(tmp_path / "lock")
    monkeypatch.setattr(lock.platform, "node", lambda: "elsewhere")
    with pytest.raises(StoreLocked, match=f"by process {os.getpid()} on .+:"):
        lock.StoreLock(tmp_path / "lock")
    assert here.value.pid == os.getpid()
    held.release()
    lock.StoreLock(tmp_path / "lock").release()


@pytest.mark.parametrize("text", [b"", b"-1", "²".encode(), b"\xff\xfe", b"12 \x1b[2J", b"9" * 5000])
def test_what_somebody_wrote_into_the_file_is_no_holder(tmp_path, text):
    held = lock.StoreLock(tmp_path / "lock")
    (tmp_path / "lock").write_bytes(text)
    with pytest.raises(StoreLocked, match=r"being written by (another process|process \d+):"):
        lock.StoreLock(tmp_path / "lock")
    held.release()


WRITER = """
import asyncio, dstorage, sys

async def main():
    try:
        async with dstorage.open(sys.argv[1], budget="1M", pressure=False):
            print("opened")
    except dstorage.StoreLocked as error:
        print(error)

asyncio.run(main())
"""


@pytest.mark.parametrize("new", [True, False])
async def test_removing_the_file_of_the_lock_lets_nobody_in(tmp_path, new):
    """As people do with locks that they take for stale."""
    if not new:
        await (await dstorage.open(tmp_path, pressure=None)).close()
    async with dstorage.open(tmp_path, pressure=None) as store:
        for _ in range(2):
            (tmp_path / "lock").unlink()
            with pytest.raises(StoreLocked, match="by another process, whose lock file was removed: close it there"):
                await dstorage.open(tmp_path, pressure=None)
            (tmp_path / "lock").unlink()
            told = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", WRITER, tmp_path], capture_output=True, text=True, timeout=60
            )
            assert "whose lock file was removed" in told.stdout, told
            with await store.create(b"mine") as handle:
                await store.commit()
                assert await handle == b"mine"
            async with dstorage.open(tmp_path, pressure=None, read_only=True) as reader:
                assert reader.stats().chunks == store.stats().chunks
    async with dstorage.open(tmp_path, pressure=None) as store:
        assert store.stats().chunks == 2


async def test_over_smb_where_a_lock_keeps_lmdb_from_reading_the_catalog_is_not_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "mount_of", lambda path: Mount("smb3", frozenset({"rw"})))
    for _ in range(2):
        async with dstorage.open(tmp_path, pressure=None):
            with (tmp_path / "catalog" / "data.mdb").open("r+b") as data:
                fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_that_cannot_be_read_while_it_is_locked_names_nobody(tmp_path, monkeypatch):
    held = lock.StoreLock(tmp_path / "lock")

    def refuse(fd, size):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(lock.os, "read", refuse)
    with pytest.raises(StoreLocked, match="another process") as refused:
        lock.StoreLock(tmp_path / "lock")
    assert refused.value.pid is None
    held.release()


def test_a_lock_whose_file_cannot_be_written_is_not_kept(tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(lock.os, "write", full)
        with pytest.raises(OSError, match="No space"):
            lock.StoreLock(tmp_path / "lock")
    lock.StoreLock(tmp_path / "lock").release()


def test_without_flock_it_locks_a_byte_as_windows_does(tmp_path, monkeypatch):
    """The branch for Windows, over record locks of this system in the place of its own."""

    def locking(fd, mode, count):
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    spec = importlib.util.spec_from_file_location("lock_of_windows", lock.__file__)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "win32")
        windows = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(windows)
    held = windows.StoreLock(tmp_path / "lock")
    # Not by another descriptor: with record locks, closing that would give up the lock.
    assert os.pread(held._fd, 100, 0).split()[0] == str(os.getpid()).encode()
    pid = os.fork()
    if pid == 0:
        # Record locks are a process's own, so another one has to ask.
        try:
            windows.StoreLock(tmp_path / "lock")
        except StoreLocked as error:
            os._exit(7 if error.pid == os.getppid() else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    held.release()
