"""What clients are told when a command fails: messages of errors, each with a prefix that says whose doing it is."""

from __future__ import annotations

import logging
from typing import Any

from dstorage.errors import (
    CorruptData,
    DStorageError,
    Lost,
    MemoryUnavailable,
    ReadOnlyError,
    StoreFull,
    TemporarilyUnavailable,
)
from dstorage.server.command import CommandError
from dstorage.server.large import Upload

log = logging.getLogger("dstorage.server")

CLUSTER = (b"cluster", b"readonly", b"readwrite", b"asking")
"""What clients of a Cluster say at first."""
MOST_SHOWN = 128
"""Characters of a request that an error repeats."""


def message(failure: Exception) -> str:
    """The reply to a command that raised this."""
    match failure:
        case CommandError():
            return str(failure)
        case MemoryUnavailable() | StoreFull():
            return f"OOM {failure}"
        case TemporarilyUnavailable():
            return f"TRYAGAIN {failure}"
        case Lost() | CorruptData():
            return f"LOST {failure}"
        case ReadOnlyError():
            return f"READONLY {failure}"
        case DStorageError():
            return f"ERR {failure}"
        case _:
            log.error("a command failed", exc_info=failure)
            return "ERR internal error; the server's log has more"


def unknown(name: bytes, args: list[Any], *, known: bool) -> str:
    """The reply to a command that this connection has not; `known`: others have."""
    if known:
        return "NOAUTH Authentication required."
    if name in CLUSTER:
        return "ERR This instance has cluster support disabled"
    some = ""
    for arg in args[1:]:
        if len(some) < MOST_SHOWN:
            some += f"'{_shown(arg, MOST_SHOWN - len(some))}' "
    return f"ERR unknown command '{_shown(args[0], MOST_SHOWN)}', with args beginning with: {some}"


def _shown(arg: bytes | bytearray | Upload, limit: int) -> str:
    """As much of an argument as an error message repeats."""
    if isinstance(arg, Upload):
        return f"{arg.size} bytes"
    return bytes(arg[:limit]).partition(b"\0")[0].decode(errors="surrogateescape")
