"""What a command is: its name, how it is called, and what runs it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dstorage.server.protocol import MAX_ARGUMENTS

if TYPE_CHECKING:
    from dstorage.server.connection import Connection
    from dstorage.server.large import Upload

Work = Coroutine[Any, Any, None]
"""The rest of a command that could not be done in one step."""
Run = Callable[["Connection", list[Any]], Work | None]
"""Does a command for a connection, given all its arguments, and appends the reply to `Connection.out`.

It may raise `Absent` or `NoRoom` before it has changed anything: then it is run again when that is over.
"""


class CommandError(Exception):
    """A command was not done; the message, with its prefix as in "ERR ...", is the reply."""


COMPATIBLE = "7.0.0"
"""The version of Redis whose replies these are, for clients that ask."""
SYNTAX = "ERR syntax error"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"
TOO_LONG = "ERR string exceeds maximum allowed size (proto-max-bulk-len)"


@dataclass(slots=True, eq=False)
class Command:
    """One command of the server.

    Attributes:
        name: In lower case.
        run: Does it.
        arity: Number of arguments with the name; negative: at least so many.
        flags: As in Redis: "readonly", "write", "fast"...
        keys: Positions of the first key and the last (negative: from the end), and the step; zeros: none.
        group: As in Redis: "string", "generic", "connection", "server".
        summary: One sentence.
        value_at: Position of the argument that may be long.
        uploads: That argument may also be an `Upload`.
        reads: It needs the values of its keys, not only to know which there are.
        prepare: For what `reads` does not tell of a command that writes: given the arguments, and the long values that keys will have by
            then, raises Absent if chunks it needs are not in memory, and returns how much room it takes beside its arguments.
        least: Fewest arguments.
        most: Most arguments.
    """

    name: str
    run: Run
    arity: int
    flags: str
    keys: tuple[int, int, int]
    group: str
    summary: str
    value_at: int = 0
    uploads: bool = False
    reads: bool = False
    prepare: Callable[[list[Any], Mapping[bytes, Upload]], int] | None = None
    least: int = field(init=False)
    most: int = field(init=False)

    def __post_init__(self) -> None:
        self.least = abs(self.arity)
        self.most = self.arity if self.arity > 0 else MAX_ARGUMENTS

    @property
    def wrong_arity(self) -> str:
        """The reply to a wrong number of arguments."""
        return f"ERR wrong number of arguments for '{self.name}' command"


MIN_INTEGER = -(2**63)
MAX_INTEGER = 2**63 - 1


def to_integer(raw: bytes | bytearray, error: str = NOT_AN_INTEGER) -> int:
    """A 64-bit number as Redis reads it: no spaces, no plus, no leading zeros.

    Raises:
        CommandError: It is none.
    """
    if len(raw) > 20:
        raise CommandError(error)
    digits = raw[1:] if raw[:1] == b"-" else raw
    if not digits.isdigit() or (digits[0] == 48 and raw != b"0"):
        raise CommandError(error)
    value = int(raw)
    if not MIN_INTEGER <= value <= MAX_INTEGER:
        raise CommandError(error)
    return value
