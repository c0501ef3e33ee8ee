"""How long a call may wait: what callers give as `wait` or `timeout`."""

from __future__ import annotations

import math

from dstorage.errors import InvalidArgumentError


def check_wait(seconds: float | None, name: str = "wait") -> None:
    """Return if `seconds` can be waited for: None, or a finite number that is not negative.

    Raises:
        InvalidArgumentError: It cannot; the message calls it `name`.
    """
    if seconds is None:
        return
    try:
        good = math.isfinite(seconds) and seconds >= 0
    except (TypeError, OverflowError):
        good = False
    if not good:
        raise InvalidArgumentError(f"{name}={seconds!r}: give a finite number of seconds, 0 or more, or None")
