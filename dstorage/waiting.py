"""How long a call may wait: what callers give as `wait` or `timeout`."""

from __future__ import annotations

import math

from dstorage.arguments import check_number


def check_wait(seconds: float | None, name: str = "wait") -> None:
    """Return if `seconds` can be waited for: None, or a finite number that is not negative.

    Raises:
        InvalidArgumentError: It cannot; the message calls it `name`.
    """
    if seconds is not None:
        check_number(name, seconds, lambda wait: 0 <= wait < math.inf, "a finite number of seconds, 0 or more, or None")
