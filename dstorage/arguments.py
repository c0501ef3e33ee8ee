"""Numbers that programs give: checked where they are given, and refused in one way."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from typing import Any

from dstorage.errors import InvalidArgumentError


def check_number(name: str, value: Any, allowed: Callable[[float], bool], give: str) -> None:
    """Return if `value` is a number, of whatever kind, and as a float `allowed`; comparisons refuse NaN by themselves.

    Raises:
        InvalidArgumentError: It is not; the message names the argument and says what to give.
    """
    try:
        good = isinstance(value, numbers.Real) and not isinstance(value, bool) and allowed(float(value))
    except OverflowError:
        good = False
    if not good:
        raise InvalidArgumentError(f"{name}={value!r:.100}: give {give}")


def checked_count(name: str, value: Any, allowed: Callable[[int], bool], give: str) -> int:
    """`value` as an int, if it is a whole number, of whatever kind (numpy's too), that is `allowed`.

    Raises:
        InvalidArgumentError: It is not; the message names the argument and says what to give.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not allowed(number):
        raise InvalidArgumentError(f"{name}={value!r:.100}: give {give}")
    return number
