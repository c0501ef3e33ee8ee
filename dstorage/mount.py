"""What a directory is mounted from, as far as a lock and a memory map care: is it over a network, and are locks honoured there?

Linux only, from proc_pid_mountinfo(5); elsewhere nothing is known. Which options keep locks to one machine is in nfs(5)
(`local_lock`, `nolock`), mount.cifs(8) (`nobrl`) and mount.lustre(8) (`localflock`); sshfs has no locks at all, the kernel keeps
them in its stead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NETWORK_TYPES = ("nfs", "cifs", "smb", "ceph", "gluster", "9p", "afs", "lustre", "fuse.sshfs", "fuse.gluster", "ncpfs")
"""How the types of network file systems begin."""

_LOCAL_LOCKS = {
    "nfs": {"local_lock=flock", "local_lock=all", "nolock"},
    "cifs": {"nobrl", "nolock"},
    "smb": {"nobrl", "nolock"},
    "lustre": {"localflock"},
}
"""Type -> options with which `flock` holds for this machine alone."""
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
        """Whether other machines may see the same files."""
        return self.kind.startswith(NETWORK_TYPES)

    @property
    def mandatory_locks(self) -> bool:
        """Whether a lock keeps all from reading and writing but the descriptor that holds it: flock(2), "CIFS details"."""
        return self.kind.startswith(("cifs", "smb"))

    @property
    def local_locks(self) -> str | None:
        """What keeps locks to this machine, though others see the same files; None where nothing is known to."""
        if self.kind == "fuse.sshfs":
            return "sshfs"
        for kind, options in _LOCAL_LOCKS.items():
            if self.kind.startswith(kind) and options & self.options:
                return f"{self.kind}, {min(options & self.options)}"
        return None


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
