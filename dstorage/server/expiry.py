"""When keys expire: the options and arguments that say so, checked as Redis checks them."""

from __future__ import annotations

from typing import Any

from dstorage.server.command import MAX_INTEGER, MIN_INTEGER, SYNTAX, CommandError, to_integer
from dstorage.server.keyspace import now

SECONDS = 1000
MILLISECONDS = 1
_OPTIONS = {
    b"EX": (SECONDS, True),
    b"PX": (MILLISECONDS, True),
    b"EXAT": (SECONDS, False),
    b"PXAT": (MILLISECONDS, False),
}
"""Option -> milliseconds in its unit, and whether it counts from now."""


class Expiry:
    """The options EX, PX, EXAT, PXAT, and the one that stands for none of them, in one command.

    Attributes:
        keep: Whether the last was given.
    """

    def __init__(self) -> None:
        self.keep = False
        self._option: bytes | None = None
        self._raw: bytes | None = None
        self._unit = 0
        self._relative = False

    def option(self, args: list[Any], position: int, keep: bytes) -> int:
        """Read the option at `position`; returns how many arguments belong to it.

        Raises:
            CommandError: It is none of them, or comes on top of another one.
        """
        option = args[position].upper()
        if self._option not in (None, option):
            raise CommandError(SYNTAX)
        self._option = option
        if option == keep:
            self.keep = True
            return 0
        if option not in _OPTIONS or position + 1 >= len(args):
            raise CommandError(SYNTAX)
        self._unit, self._relative = _OPTIONS[option]
        self._raw = args[position + 1]
        return 1

    def moment(self, command: str) -> int | None:
        """When the key is to expire (milliseconds since 1970), or None if that was not said.

        Raises:
            CommandError: The time makes no sense.
        """
        return None if self._raw is None else to_moment(self._raw, self._unit, command, relative=self._relative)


def to_moment(raw: bytes, unit: int, command: str, *, relative: bool) -> int:
    """A time that has to be positive, in milliseconds since 1970.

    Raises:
        CommandError: It is no number, not positive, or out of range.
    """
    time = to_integer(raw) * unit
    moment = time + now() if relative else time
    if time <= 0 or not 0 < moment <= MAX_INTEGER:
        raise CommandError(f"ERR invalid expire time in '{command}' command")
    return moment


def to_any_moment(raw: bytes, unit: int, command: str, *, relative: bool) -> int:
    """A time that may lie in the past, for EXPIRE and its like.

    Raises:
        CommandError: It is no number, or out of range.
    """
    time = to_integer(raw) * unit
    moment = time + now() if relative else time
    if not MIN_INTEGER <= time <= MAX_INTEGER or moment > MAX_INTEGER:
        raise CommandError(f"ERR invalid expire time in '{command}' command")
    return moment


class Condition:
    """The options NX, XX, GT and LT of EXPIRE and its like.

    Raises:
        CommandError: They are unknown or exclude each other.
    """

    def __init__(self, options: list[bytes]) -> None:
        given = {option.upper() for option in options}
        for option in options:
            if option.upper() not in (b"NX", b"XX", b"GT", b"LT"):
                raise CommandError(f"ERR Unsupported option {option.decode(errors='replace')}")
        if b"NX" in given and len(given) > 1:
            raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
        if {b"GT", b"LT"} <= given:
            raise CommandError("ERR GT and LT options at the same time are not compatible")
        self._given = given

    def allows(self, moment: int, present: int | None) -> bool:
        """Whether a key that expires at `present` (None: never) is to expire at `moment`."""
        given = self._given
        if b"NX" in given:
            return present is None
        if b"XX" in given and present is None:
            return False
        if b"GT" in given:
            return present is not None and moment > present
        return not (b"LT" in given and present is not None and moment >= present)
