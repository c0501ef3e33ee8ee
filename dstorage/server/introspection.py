"""COMMAND: which commands there are, and how they are called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dstorage.server.command import SYNTAX, Command, CommandError
from dstorage.server.glob import matcher
from dstorage.server.replies import array, bulk, integer, mapping
from dstorage.server.subcommands import Container, Subcommand

if TYPE_CHECKING:
    from dstorage.server.connection import Connection
    from dstorage.server.server import Server

CATEGORIES = {"generic": "keyspace", "transactions": "transaction", "server": "admin"}
"""Group -> category of access, where they differ."""


class Introspection:
    """The command COMMAND.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    def commands(self) -> list[Command]:
        """It alone."""
        known = Container(
            "command",
            [
                Subcommand("COUNT", self._count, 2, "How many commands there are."),
                Subcommand(
                    "LIST [FILTERBY (MODULE <name>|ACLCAT <category>|PATTERN <pattern>)]",
                    self._list,
                    -2,
                    "Names of commands.",
                ),
                Subcommand("INFO [<command> ...]", self._info, -2, "How commands are called."),
                Subcommand("DOCS [<command> ...]", self._docs, -2, "What commands do."),
                Subcommand("GETKEYS <command> [<argument> ...]", self._getkeys, -4, "Which of the arguments are keys."),
            ],
            alone=self._info,
        )
        return [Command("command", known, -1, "loading stale", (0, 0, 0), "server", "Tell about commands")]

    @property
    def _table(self) -> dict[str, Command]:
        return {command.name: command for command in self._server.table.values()}

    def _count(self, link: Connection, args: list[Any]) -> None:
        link.out.append(integer(len(self._table)))

    def _list(self, link: Connection, args: list[Any]) -> None:
        found: Iterable[Command] = self._table.values()
        match [arg.upper() for arg in args[2:4]], args[4:]:
            case [], []:
                pass
            case [b"FILTERBY", b"MODULE"], [_]:
                found = []
            case [b"FILTERBY", b"ACLCAT"], [category]:
                found = [one for one in found if category.decode(errors="replace").lower() in _categories(one)]
            case [b"FILTERBY", b"PATTERN"], [pattern]:
                matches = matcher(pattern.lower())
                found = [one for one in found if matches(one.name.encode())]
            case _:
                raise CommandError(SYNTAX)
        link.out.append(array([bulk(one.name.encode()) for one in found]))

    def _info(self, link: Connection, args: list[Any]) -> None:
        table = self._table
        chosen = [table.get(_name(arg)) for arg in args[2:]] or list(table.values())
        link.out.append(array([_info(one) if one else link.nil for one in chosen]))

    def _docs(self, link: Connection, args: list[Any]) -> None:
        table = self._table
        chosen = [table[_name(arg)] for arg in args[2:] if _name(arg) in table] if len(args) > 2 else table.values()
        link.out.append(mapping([_docs(one, link.version) for one in chosen], link.version))

    def _getkeys(self, link: Connection, args: list[Any]) -> None:
        command = self._table.get(_name(args[2]))
        if command is None:
            raise CommandError("ERR Invalid command specified")
        first, last, step = command.keys
        if not first:
            raise CommandError("ERR The command has no key arguments")
        if not command.least <= len(args) - 2 <= command.most:
            raise CommandError("ERR Invalid number of arguments specified for command")
        link.out.append(array([bulk(key) for key in args[2:][first : (last + 1) or None : step]]))


def _name(raw: bytes | bytearray) -> str:
    return raw.decode(errors="replace").lower()


def _categories(command: Command) -> list[str]:
    flags = command.flags.split()
    found = [{"readonly": "read", "write": "write"}[flag] for flag in flags if flag in ("readonly", "write")]
    return [*found, CATEGORIES.get(command.group, command.group), "fast" if "fast" in flags else "slow"]


def _info(command: Command) -> bytes:
    first, last, step = command.keys
    return array(
        [
            bulk(command.name.encode()),
            integer(command.arity),
            array([b"+%b\r\n" % flag.encode() for flag in command.flags.split()]),
            integer(first),
            integer(last),
            integer(step),
            array([b"+@%b\r\n" % category.encode() for category in _categories(command)]),
            *[b"*0\r\n"] * 3,
        ]
    )


def _docs(command: Command, version: int) -> tuple[bytes, bytes]:
    facts = [("summary", command.summary), ("since", "1.0.0"), ("group", command.group), ("complexity", "O(1)")]
    return bulk(command.name.encode()), mapping([(bulk(k.encode()), bulk(v.encode())) for k, v in facts], version)
