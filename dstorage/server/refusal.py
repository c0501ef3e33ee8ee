"""What clients are told when a command fails: messages of errors, each with a prefix that says whose doing it is."""

from __future__ import annotations

import logging

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


def shown(arg: bytes | bytearray | Upload, limit: int) -> str:
    """As much of an argument as an error message repeats."""
    if isinstance(arg, Upload):
        return f"{arg.size} bytes"
    return bytes(arg[:limit]).partition(b"\0")[0].decode(errors="surrogateescape")
