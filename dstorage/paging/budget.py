"""What a memory budget may look like: bytes, "512M", a share of memory."""

from __future__ import annotations

import re

from dstorage.errors import InvalidArgumentError
from dstorage.paging.pressure import memory_total

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*%", re.ASCII)
_FORMS = 'a number of bytes, "512M", "1.5GiB", a share such as "25%", or a float between 0 and 1'


def parse_bytes(value: int | float | str) -> int:
    """Bytes that `value` stands for; units are powers of 1024, shares are of the memory this process may use.

    Raises:
        InvalidArgumentError: It is none of the accepted forms, or less than one byte.
    """
    size: float = 0
    if isinstance(value, bool):
        pass
    elif isinstance(value, int):
        size = value
    elif isinstance(value, float):
        size = value * memory_total() if 0 < value <= 1 else 0
    elif not isinstance(value, str):
        pass
    elif match := _SIZE.fullmatch(value.strip()):
        size = (float if "." in match[1] else int)(match[1]) * _UNITS[match[2].upper()]
    elif (match := _SHARE.fullmatch(value.strip())) and 0 < float(match[1]) <= 100:
        size = float(match[1]) / 100 * memory_total()
    if size < 1:
        raise InvalidArgumentError(f"{value!r} is no size: give {_FORMS}")
    return int(size)
