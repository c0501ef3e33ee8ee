"""What a disk controller can be told, checked: settings come from the catalog and count as hostile."""

from __future__ import annotations

from dstorage.controller import Settings
from dstorage.errors import InvalidArgumentError
from dstorage_controllers.compression import MAX_LEVEL
from dstorage_controllers.disk.layout import MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES
from dstorage_controllers.settings import CAPACITY, RANK, SWITCH, TEXT_OR_NONE, Setting, check

_SETTINGS = {
    "path": TEXT_OR_NONE,
    "capacity": CAPACITY,
    "rank": RANK,
    "segment_bytes": Setting((int, type(None)), MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES),
    "compress": Setting((int, bool), 0, MAX_LEVEL),
    "key_file": TEXT_OR_NONE,
    "key_env": TEXT_OR_NONE,
    "punch": SWITCH,
    "direct": SWITCH,
    "threads": Setting((int,), 1, 64),
    "timeout": Setting((int, float), 0.001, 86400),
}


def check_settings(name: str, settings: Settings) -> None:
    """Check names, types and ranges.

    Args:
        name: Of the controller, for messages.
        settings: Keyword arguments of `DiskController`.

    Raises:
        InvalidArgumentError: One is unknown, of the wrong type or out of range, or two exclude each other.
    """
    check(f"disk controller {name!r}", _SETTINGS, settings)
    if settings.get("key_file") is not None and settings.get("key_env") is not None:
        raise InvalidArgumentError(f"disk controller {name!r}: give key_file or key_env, not both")
