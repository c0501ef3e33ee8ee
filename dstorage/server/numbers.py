"""The commands that count: values that are numbers in digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dstorage.server import floats
from dstorage.server.command import MAX_INTEGER, MIN_INTEGER, Command, CommandError, to_integer
from dstorage.server.keyspace import Keyspace
from dstorage.server.replies import bulk, integer

if TYPE_CHECKING:
    from dstorage.server.connection import Connection

NOT_A_FLOAT = "ERR value is not a valid float"


class Numbers:
    """Commands that add to values.

    Args:
        keyspace: The keys.
    """

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    def commands(self) -> list[Command]:
        """All of them."""

        def make(name: str, run: Any, arity: int, summary: str) -> Command:
            return Command(name, run, arity, "write denyoom fast", (1, 1, 1), "string", summary, reads=True)

        return [
            make("incr", self._incr, 2, "Add one to a number"),
            make("decr", self._decr, 2, "Take one from a number"),
            make("incrby", self._incrby, 3, "Add to a number"),
            make("decrby", self._decrby, 3, "Take from a number"),
            make("incrbyfloat", self._incrbyfloat, 3, "Add to a number with a fraction"),
        ]

    def _incr(self, link: Connection, args: list[Any]) -> None:
        self._add(link, args[1], 1)

    def _decr(self, link: Connection, args: list[Any]) -> None:
        self._add(link, args[1], -1)

    def _incrby(self, link: Connection, args: list[Any]) -> None:
        self._add(link, args[1], to_integer(args[2]))

    def _decrby(self, link: Connection, args: list[Any]) -> None:
        amount = to_integer(args[2])
        if amount == MIN_INTEGER:
            raise CommandError("ERR decrement would overflow")
        self._add(link, args[1], -amount)

    def _number(self, key: bytes) -> bytes | bytearray | None:
        """The value of a key that is to be a number."""
        found = self._keyspace.look(key)
        if found is None:
            return None
        if isinstance(found, int):
            return b"too long for a number"
        return found.buffer

    def _add(self, link: Connection, key: bytes, amount: int) -> None:
        raw = self._number(key)
        value = (0 if raw is None else to_integer(raw)) + amount
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise CommandError("ERR increment or decrement would overflow")
        self._keyspace.put(key, b"%d" % value)
        link.out.append(integer(value))

    def _incrbyfloat(self, link: Connection, args: list[Any]) -> None:
        raw = self._number(args[1])
        old = floats.parse(b"0" if raw is None else raw)
        amount = floats.parse(args[2])
        if old is not None and floats.infinite(args[2]):
            raise CommandError("ERR increment would produce NaN or Infinity")
        if old is None or amount is None:
            raise CommandError(NOT_A_FLOAT)
        value = floats.show(floats.add(old, amount))
        self._keyspace.put(args[1], value)
        link.out.append(bulk(value))
