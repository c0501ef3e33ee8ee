"""What the parts of an open controller share."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import NamedTuple

from dstorage.controller import OpenContext
from dstorage_controllers.health import Health
from dstorage_controllers.internet.books import TOKEN_BYTES, Books
from dstorage_controllers.internet.bucket import Bucket
from dstorage_controllers.internet.cleaning import Cleaning
from dstorage_controllers.internet.codec import Codec
from dstorage_controllers.internet.layout import MAX_NUMBER, Layout

INLINE_BYTES = 64 * 2**10
"""Sealing and opening more goes to a thread."""
_ROOM = 2**32
"""So many numbers are free behind a session's first one."""


class Session:
    """The numbers that objects written between one `open` and `close` have: never used before, nor by anybody else.

    The first is random among 2^55: two sessions that write a million objects each overlap with a probability of 10^-10, and then
    only matter to each other if a write of the one, given up for lost, arrives at the time of the other.

    Args:
        known: Numbers in use.
    """

    def __init__(self, known: Iterable[int]) -> None:
        known = list(known)
        self.token = secrets.token_bytes(TOKEN_BYTES)
        """Names the session."""
        while True:
            self.first = secrets.randbits(55) + 1
            if self.first + _ROOM <= MAX_NUMBER and not any(
                self.first <= number < self.first + _ROOM for number in known
            ):
                break
        self._next = self.first

    def number(self) -> int:
        """A number for a new object."""
        number = self._next
        self._next += 1
        return number

    def has(self, number: int) -> bool:
        """Whether a number was given out."""
        return self.first <= number < self._next


class Parts(NamedTuple):
    """What there is between `open` and `close`."""

    context: OpenContext
    layout: Layout
    codec: Codec
    books: Books
    bucket: Bucket
    health: Health
    cleaning: Cleaning
    session: Session
