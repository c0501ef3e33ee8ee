"""Commands of two words, as CLIENT ID: which there are, how they are called, and HELP on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dstorage.server.command import CommandError, Work
from dstorage.server.replies import array

if TYPE_CHECKING:
    from dstorage.server.connection import Connection


@dataclass(frozen=True, slots=True)
class Subcommand:
    """The second word.

    Attributes:
        usage: Its name in upper case, and its arguments for people.
        run: Does it, given all arguments.
        arity: Number of arguments with both words; negative: at least so many.
        summary: One sentence.
    """

    usage: str
    run: Callable[[Connection, list[Any]], Work | None]
    arity: int
    summary: str

    @property
    def name(self) -> str:
        """In upper case."""
        return self.usage.partition(" ")[0]


class Container:
    """Runs the subcommands of one command, and refuses others as Redis does.

    Args:
        command: The first word, in lower case.
        subcommands: All of them but HELP.
        alone: Does the command where it stands alone, if it can.
    """

    def __init__(
        self,
        command: str,
        subcommands: list[Subcommand],
        alone: Callable[[Connection, list[Any]], Work | None] | None = None,
    ) -> None:
        self.command = command
        self._alone = alone
        self._table = {one.name.encode(): one for one in subcommands}
        self._table[b"HELP"] = Subcommand("HELP", self._help, 2, "Print this help.")

    def __call__(self, link: Connection, args: list[Any]) -> Work | None:
        """Do one; a command's `run`."""
        return self.chosen(args)(link, args)

    def chosen(self, args: list[Any]) -> Callable[[Connection, list[Any]], Work | None]:
        """What does one, whose arguments are as many as there should be.

        Raises:
            CommandError: There is no such subcommand, or it takes another number of arguments.
        """
        if len(args) == 1 and self._alone is not None:
            return self._alone
        chosen = self._table.get(args[1].upper())
        if chosen is None:
            shown = bytes(args[1][:128]).decode(errors="replace")
            raise CommandError(f"ERR unknown subcommand '{shown}'. Try {self.command.upper()} HELP.")
        if len(args) != chosen.arity and not 0 < -chosen.arity <= len(args):
            raise CommandError(f"ERR wrong number of arguments for '{self.command}|{chosen.name.lower()}' command")
        return chosen.run

    def _help(self, link: Connection, args: list[Any]) -> None:
        lines = [f"{self.command.upper()} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"]
        for one in self._table.values():
            lines += [one.usage, f"    {one.summary}"]
        link.out.append(array([f"+{line}\r\n".encode() for line in lines]))
