"""CLIENT: what connections there are, what they are called, and an end to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dstorage.server.command import SYNTAX, Command, CommandError, to_integer
from dstorage.server.replies import OK, bulk, integer, text
from dstorage.server.subcommands import Container, Subcommand

if TYPE_CHECKING:
    from dstorage.server.connection import Connection
    from dstorage.server.server import Server

TYPES = (b"normal", b"master", b"replica", b"slave", b"pubsub")
"""Kinds of connections in Redis; here all are of the first."""


class Clients:
    """The command CLIENT.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    def commands(self) -> list[Command]:
        """It alone."""
        known = Container(
            "client",
            [
                Subcommand("ID", self._id, 2, "Number of this connection."),
                Subcommand("GETNAME", self._getname, 2, "Name of this connection."),
                Subcommand("SETNAME <name>", self._setname, 3, "Name this connection."),
                Subcommand("SETINFO <option> <value>", self._setinfo, 4, "Tell LIB-NAME or LIB-VER of the client."),
                Subcommand("INFO", self._info, 2, "Tell about this connection."),
                Subcommand("LIST [TYPE <type> | ID <id> ...]", self._list, -2, "Tell about connections."),
                Subcommand(
                    "KILL <ip:port> | [ID <id>] [ADDR <ip:port>] [TYPE <type>] [SKIPME (YES|NO)]",
                    self._kill,
                    -3,
                    "End connections.",
                ),
                Subcommand("NO-EVICT (ON|OFF)", self._switch, 3, "Nothing: no connection is evicted."),
                Subcommand("NO-TOUCH (ON|OFF)", self._switch, 3, "Nothing: commands always count as use of a key."),
                Subcommand("REPLY ON", self._reply, 3, "Nothing: every command is replied to."),
                Subcommand("TRACKING OFF", self._tracking, -3, "Nothing: no client is told when keys change."),
                Subcommand("GETREDIR", self._getredir, 2, "Where changes of keys are told: nowhere (-1)."),
            ],
        )
        return [Command("client", known, -2, "loading stale", (0, 0, 0), "connection", "Tell about connections")]

    def _id(self, link: Connection, args: list[Any]) -> None:
        link.out.append(integer(link.id))

    def _getname(self, link: Connection, args: list[Any]) -> None:
        link.out.append(bulk(link.name) if link.name else link.nil)

    def _setname(self, link: Connection, args: list[Any]) -> None:
        link.name = checked_name(args[2])
        link.out.append(OK)

    def _setinfo(self, link: Connection, args: list[Any]) -> None:
        what = args[2].lower()
        if what not in (b"lib-name", b"lib-ver"):
            raise CommandError(f"ERR Unrecognized option '{args[2].decode(errors='replace')}'")
        link.library[what] = checked_name(args[3], what.decode())
        link.out.append(OK)

    def _info(self, link: Connection, args: list[Any]) -> None:
        link.out.append(text([_described(link)], link.version))

    def _list(self, link: Connection, args: list[Any]) -> None:
        chosen: Callable[[Connection], bool]
        match [args[2].upper(), *args[3:]] if len(args) > 2 else []:
            case []:
                chosen = _any
            case [b"TYPE", kind]:
                chosen = _of_type(kind)
            case [b"ID", _, *_]:
                chosen = _with_id({_number(raw, "ERR Invalid client ID") for raw in args[3:]})
            case _:
                raise CommandError(SYNTAX)
        described = [_described(one) for one in self._server.connections if chosen(one)]
        link.out.append(text(described, link.version))

    def _kill(self, link: Connection, args: list[Any]) -> None:
        if len(args) == 3:
            killed = self._end(link, [lambda one: one.peer.encode() == args[2]], skip_me=False)
            if not killed:
                raise CommandError("ERR No such client")
            link.out.append(OK)
            return
        if len(args) % 2:
            raise CommandError(SYNTAX)
        wanted: list[Callable[[Connection], bool]] = []
        skip_me = True
        for option, value in zip(args[2::2], args[3::2], strict=True):
            match option.upper():
                case b"ID":
                    wanted.append(_with_id({_number(value, "ERR client-id should be greater than 0")}))
                case b"ADDR":
                    wanted.append(lambda one, value=value: one.peer.encode() == value)  # type: ignore[misc]
                case b"TYPE":
                    wanted.append(_of_type(value))
                case b"SKIPME" if value.upper() in (b"YES", b"NO"):
                    skip_me = value.upper() == b"YES"
                case _:
                    raise CommandError(SYNTAX)
        link.out.append(integer(self._end(link, wanted, skip_me=skip_me)))

    def _end(self, link: Connection, wanted: list[Callable[[Connection], bool]], *, skip_me: bool) -> int:
        found = [one for one in self._server.connections if all(want(one) for want in wanted)]
        if skip_me:
            found = [one for one in found if one is not link]
        for one in found:
            if one is link:
                # After its reply.
                link.closing = True
            else:
                one.abort()
        return len(found)

    def _switch(self, link: Connection, args: list[Any]) -> None:
        if args[2].upper() not in (b"ON", b"OFF"):
            raise CommandError(SYNTAX)
        link.out.append(OK)

    def _reply(self, link: Connection, args: list[Any]) -> None:
        if args[2].upper() in (b"OFF", b"SKIP"):
            raise CommandError("ERR this server replies to every command")
        if args[2].upper() != b"ON":
            raise CommandError(SYNTAX)
        link.out.append(OK)

    def _tracking(self, link: Connection, args: list[Any]) -> None:
        if args[2].upper() == b"ON":
            raise CommandError("ERR this server does not tell clients when keys change: use no client-side cache")
        if args[2].upper() != b"OFF":
            raise CommandError(SYNTAX)
        link.out.append(OK)

    def _getredir(self, link: Connection, args: list[Any]) -> None:
        link.out.append(integer(-1))


def _any(link: Connection) -> bool:
    return True


def _with_id(ids: set[int]) -> Callable[[Connection], bool]:
    return lambda one: one.id in ids


def _of_type(kind: bytes) -> Callable[[Connection], bool]:
    if kind.lower() not in TYPES:
        raise CommandError(f"ERR Unknown client type '{kind.decode(errors='replace')}'")
    return lambda one: kind.lower() == b"normal"


def _number(raw: bytes, error: str) -> int:
    if (number := to_integer(raw, error)) < 1:
        raise CommandError(error)
    return number


def _described(link: Connection) -> str:
    server = link.server
    begun = link.transaction
    queued = -1 if begun is None or begun.queued is None else len(begun.queued)
    library = {key: value.decode() for key, value in link.library.items()}
    return (
        f"id={link.id} addr={link.peer} laddr={link.here} name={link.name.decode()} age={server.second - link.since} "
        f"idle={server.second - link.last} flags={'N' if queued < 0 else 'x'} db=0 sub=0 psub=0 multi={queued} "
        f"omem={link.unread} tot-mem={link.memory} resp={link.version} user=default "
        f"lib-name={library.get(b'lib-name', '')} lib-ver={library.get(b'lib-ver', '')}"
    )


def checked_name(name: bytes | bytearray, what: str = "Client names") -> bytes:
    """A name that can stand in a line of the list.

    Raises:
        CommandError: It cannot.
    """
    if any(not 33 <= byte <= 126 for byte in name):
        raise CommandError(f"ERR {what} cannot contain spaces, newlines or special characters.")
    return bytes(name)
