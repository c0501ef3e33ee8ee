"""What a disk controller can be told, checked: settings come from the catalog and count as hostile."""

from __future__ import annotations

from dstorage.controller import Settings
from dstorage.errors import InvalidArgumentError
from dstorage_controllers.disk.layout import MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES

_TYPES: dict[str, tuple[type, ...]] = {
    "path": (str, type(None)),
    "capacity": (int, type(None)),
    "rank": (int,),
    "segment_bytes": (int, type(None)),
    "compress": (int,),
    "key_file": (str, type(None)),
    "key_env": (str, type(None)),
    "punch": (bool,),
    "direct": (bool,),
    "threads": (int,),
    "timeout": (int, float),
}
_RANGES: dict[str, tuple[float, float]] = {
    "rank": (-(2**31), 2**31),
    "capacity": (0, 2**63),
    "segment_bytes": (MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES),
    "compress": (0, 22),
    "threads": (1, 64),
    "timeout": (0.001, 86400),
}


def check_settings(name: str, settings: Settings) -> None:
    """Check names, types and ranges.

    Args:
        name: Of the controller, for messages.
        settings: Keyword arguments of `DiskController`.

    Raises:
        InvalidArgumentError: One is unknown, of the wrong type or out of range, or two exclude each other.
    """
    for key, value in settings.items():
        if key not in _TYPES:
            raise InvalidArgumentError(f"disk controller {name!r} knows no setting {key!r}; it has {', '.join(_TYPES)}")
        if not isinstance(value, _TYPES[key]) or (
            isinstance(value, bool) and key not in ("compress", "punch", "direct")
        ):
            kinds = " or ".join(kind.__name__ for kind in _TYPES[key])
            raise InvalidArgumentError(f"disk controller {name!r}: {key} must be {kinds}, not {value!r}")
        if key in _RANGES and isinstance(value, int | float):
            low, high = _RANGES[key]
            if not low <= value <= high:
                raise InvalidArgumentError(
                    f"disk controller {name!r}: {key} must be {low:g} to {high:g}, not {value!r}"
                )
    if settings.get("key_file") is not None and settings.get("key_env") is not None:
        raise InvalidArgumentError(f"disk controller {name!r}: give key_file or key_env, not both")
