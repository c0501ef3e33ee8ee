"""What a directory is mounted from, as far as a lock and a memory map care: is it over a network, and are locks honoured there?

Linux only, from proc_pid_mountinfo(5); elsewhere nothing is known. Which options keep locks to one machine is in nfs(5)
(`local_lock`, `nolock`), mount.cifs(8) (`nobrl`), mount.lustre(8) (`localflock`), and in the kernel's documentation of ocfs2 and gfs2
(`localflocks`) and afs (`flock=local`); BeeGFS's file of settings says it of itself.

Where a file system does not implement `flock`, the kernel keeps such locks in its stead, for its own machine. So it is with OrangeFS
and Coda (their `file_operations` in Linux), and with every FUSE file system that has no `flock` of its own (libfuse, `fuse_operations`).
Of s3fs and gcsfuse their makers say that it has none, of the others in `_NO_LOCKS` nobody says that it has. JuiceFS, Ceph and
Gluster have it. Whose locks a host honours that shares a folder with its guests (9p, virtiofs, vboxsf, vmhgfs-fuse) depends on how it
was set up, and of GPFS sources disagree: these are warned of, not refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

NETWORK_TYPES = (
    *("nfs", "cifs", "smb", "ceph", "gluster", "9p", "afs", "lustre", "ncpfs", "davfs", "coda"),
    *("beegfs", "gpfs", "pvfs2", "orangefs", "ocfs2", "gfs2", "virtiofs", "vboxsf"),
    *("fuse.ceph", "fuse.gluster", "fuse.juicefs", "fuse.vmhgfs-fuse"),
)
"""How the types of file systems begin that other machines see as well; those without locks are in `_NO_LOCKS`."""

_LOCAL_FUSE = frozenset(
    f"fuse.{name}"
    for name in (
        *("ntfs-3g", "ntfs", "exfat", "mergerfs", "unionfs", "unionfs-fuse", "fuse-overlayfs", "bindfs"),
        *("encfs", "gocryptfs", "cryfs", "securefs"),
    )
)
"""On this machine's own drives, or on top of its other file systems, which are not looked at; so are all of the type "fuseblk"."""

_NO_LOCKS = frozenset(
    {"davfs", "coda", "pvfs2", "orangefs"}
    | {f"fuse.{name}" for name in ("sshfs", "rclone", "s3fs", "gcsfuse", "smbnetfs", "curlftpfs", "davfs", "davfs2")}
)
"""Types with which `flock` holds for this machine alone, however they are mounted."""

_LOCAL_LOCKS = {
    "nfs": {"local_lock=flock", "local_lock=all", "nolock"},
    "cifs": {"nobrl", "nolock"},
    "smb": {"nobrl", "nolock"},
    "lustre": {"localflock"},
    "afs": {"flock=local"},
    "ocfs2": {"localflocks"},
    "gfs2": {"localflocks"},
}
"""Type -> options with which `flock` holds for this machine alone."""
_GLOBAL_LOCKS = re.compile(r"^\s*tuneUseGlobalFileLocks\s*=\s*(?:true|1|yes|y|on)\s*$", re.MULTILINE | re.IGNORECASE)
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A mounted file system.

    Attributes:
        kind: Its type, such as "ext4" or "nfs4".
        options: How it is mounted.
    """

    kind: str
    options: frozenset[str]

    @property
    def network(self) -> bool:
        """Whether other machines may see the same files; of a FUSE file system that is not known, that is assumed."""
        fuse = self.kind == "fuse" or self.kind.startswith("fuse.")
        return self._over_network or (fuse and self.kind not in _LOCAL_FUSE)

    @property
    def what(self) -> str:
        """A network file system, in words: a guess is called one."""
        return (
            f"a network file system ({self.kind})"
            if self._over_network
            else f"what may be a network file system ({self.kind})"
        )

    @property
    def _over_network(self) -> bool:
        return self.kind.startswith(NETWORK_TYPES) or self.kind in _NO_LOCKS

    @property
    def mandatory_locks(self) -> bool:
        """Whether a lock keeps all from reading and writing but the descriptor that holds it: flock(2), "CIFS details"."""
        return self.kind.startswith(("cifs", "smb"))

    @property
    def local_locks(self) -> str | None:
        """What keeps locks to this machine, though others see the same files; None where nothing is known to."""
        if self.kind in _NO_LOCKS:
            return self.kind.removeprefix("fuse.")
        if self.kind == "beegfs" and not self._beegfs_has_locks():
            return "beegfs without tuneUseGlobalFileLocks"
        for kind, options in _LOCAL_LOCKS.items():
            if self.kind.startswith(kind) and options & self.options:
                return f"{self.kind}, {min(options & self.options)}"
        return None

    def _beegfs_has_locks(self) -> bool:
        for option in self.options:
            name, _, path = option.partition("=")
            if name == "cfgFile":
                with suppress(OSError):
                    return _GLOBAL_LOCKS.search(Path(path).read_text(errors="replace")) is not None
        return False


def mount_of(path: Path) -> Mount | None:
    """The file system that holds `path`; None where the system does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    return find_mount(lines, path.resolve())


def find_mount(mountinfo: Sequence[str], path: Path) -> Mount | None:
    """The file system that holds `path`, or None.

    Args:
        mountinfo: Lines of proc_pid_mountinfo(5).
        path: Absolute, without symbolic links.
    """
    longest, found = -1, None
    for line in mountinfo:
        head, _, tail = line.partition(" - ")
        fields, source = head.split(" "), tail.split(" ")
        if len(fields) < 6 or len(source) < 3:
            continue
        point = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), fields[4])
        # The last of several on one point hides those before.
        if len(point) >= longest and path.is_relative_to(point):
            longest = len(point)
            found = Mount(source[0], frozenset([*fields[5].split(","), *source[2].split(",")]))
    return found
