"""Patterns of keys, as in `SCAN MATCH` and `KEYS`: ``*``, ``?``, ``[a-z]``, ``[^...]``, and a backslash before what is meant itself.

A pattern becomes a regular expression in which no star takes back what it matched, so that no pattern takes long.
"""

from __future__ import annotations

import re
from collections.abc import Callable


def matcher(pattern: bytes) -> Callable[[bytes], object]:
    """What tells whether a key matches `pattern`."""
    if not pattern.strip(b"*"):
        return _anything if pattern else _nothing
    # Between stars: each part is found at its first place, the last one at the end.
    parts: list[bytes] = [b""]
    position = 0
    while position < len(pattern):
        byte = pattern[position : position + 1]
        if byte == b"*":
            parts.append(b"")
            position += 1
        elif byte == b"[":
            regex, position = _class(pattern, position + 1)
            parts[-1] += regex
        else:
            if byte == b"\\" and position + 1 < len(pattern):
                position += 1
            parts[-1] += b"." if byte == b"?" else re.escape(pattern[position : position + 1])
            position += 1
    first, *others = parts
    if others:
        *middle, last = others
        first += b"".join(b"(?>.*?%b)" % part for part in middle if part) + b".*" + last
    return re.compile(first, re.DOTALL).fullmatch


def _anything(key: bytes) -> bool:
    return True


def _nothing(key: bytes) -> bool:
    return not key


def _class(pattern: bytes, position: int) -> tuple[bytes, int]:
    """A class of characters, of which `position` is the first; returns it as a regular expression, and what follows."""
    negated = pattern[position : position + 1] == b"^"
    position += negated
    members: set[int] = set()
    while position < len(pattern) and pattern[position] != 93:
        if pattern[position] == 92 and position + 1 < len(pattern):
            position += 1
            members.add(pattern[position])
        elif pattern[position + 1 : position + 2] == b"-" and position + 2 < len(pattern):
            low, high = sorted((pattern[position], pattern[position + 2]))
            members.update(range(low, high + 1))
            position += 2
        else:
            members.add(pattern[position])
        position += 1
    chosen = members if not negated else set(range(256)) - members
    return b"[%b]" % b"".join(b"\\x%02x" % byte for byte in sorted(chosen)) if chosen else b"(?!)", position + 1
