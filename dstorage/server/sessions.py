"""The commands about the connection itself."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import TYPE_CHECKING, Any

from dstorage.server.clients import checked_name
from dstorage.server.command import COMPATIBLE, SYNTAX, Command, CommandError, Work, to_integer
from dstorage.server.replies import OK, bulk, integer, mapping

if TYPE_CHECKING:
    from dstorage.server.connection import Connection
    from dstorage.server.server import Server

WRONG_PASSWORD = "WRONGPASS invalid username-password pair or user is disabled."  # noqa: S105 - a message
WRONG_PASSWORD_S = 0.2
"""How long who gave a wrong password waits for the reply, so that guessing takes long."""
NO_PASSWORD = (
    "ERR AUTH <password> called without any password configured for the default user. "  # noqa: S105 - a message
    "Are you sure your configuration is correct?"
)
BEFORE_PASSWORD = ("auth", "hello", "quit", "reset")
"""Commands for who has not shown the password yet."""


def digest(password: bytes | bytearray) -> bytes:
    """What is kept of a password: equal lengths make the comparison's time tell nothing."""
    return hashlib.sha256(password).digest()


class Sessions:
    """Commands that make a connection what it is.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    def commands(self) -> list[Command]:
        """All of them."""

        def make(name: str, run: Any, arity: int, summary: str, **more: Any) -> Command:
            return Command(
                name, run, arity, more.pop("flags", "loading stale fast"), (0, 0, 0), "connection", summary, **more
            )

        return [
            make("ping", self._ping, -1, "Reply with PONG"),
            make("echo", self._echo, 2, "Reply with the argument", value_at=1),
            make("hello", self._hello, -1, "Choose the version of the protocol", flags="noauth loading stale fast"),
            make("auth", self._auth, -2, "Show the password", flags="noauth loading stale fast"),
            make("select", self._select, 2, "Choose the database: there is only 0"),
            make("quit", self._quit, -1, "End the connection", flags="noauth loading stale fast"),
            make("reset", self._reset, 1, "Make the connection as it was at first", flags="noauth loading stale fast"),
        ]

    def _ping(self, link: Connection, args: list[Any]) -> None:
        if len(args) > 2:
            raise CommandError("ERR wrong number of arguments for 'ping' command")
        link.out.append(b"+PONG\r\n" if len(args) == 1 else bulk(args[1]))

    def _echo(self, link: Connection, args: list[Any]) -> None:
        link.out.append(bulk(args[1]))

    def _quit(self, link: Connection, args: list[Any]) -> None:
        link.out.append(OK)
        link.closing = True

    def _reset(self, link: Connection, args: list[Any]) -> None:
        self._server.transactions.end(link)
        link.speak(2)
        link.name = b""
        if self._server.password is not None:
            link.table = self._server.before_password
            link.parser.trusted = False
        link.out.append(b"+RESET\r\n")

    def _select(self, link: Connection, args: list[Any]) -> None:
        if to_integer(args[1]) != 0:
            raise CommandError("ERR DB index is out of range")
        link.out.append(OK)

    def _auth(self, link: Connection, args: list[Any]) -> Work | None:
        if len(args) > 3:
            raise CommandError(SYNTAX)
        if len(args) == 2 and self._server.password is None:
            raise CommandError(NO_PASSWORD)
        if not self._authenticate(link, args[1] if len(args) == 3 else b"default", args[-1]):
            return _refuse()
        link.out.append(OK)
        return None

    def _authenticate(self, link: Connection, user: bytes, password: bytes | bytearray) -> bool:
        expected = self._server.password
        right = expected is None or hmac.compare_digest(digest(password), expected)
        if user != b"default" or not right:
            return False
        link.trust()
        return True

    def _hello(self, link: Connection, args: list[Any]) -> Work | None:
        version = link.version
        position = 1
        if len(args) > 1:
            try:
                version = to_integer(args[1])
            except CommandError:
                raise CommandError("ERR Protocol version is not an integer or out of range") from None
            if version not in (2, 3):
                raise CommandError("NOPROTO unsupported protocol version")
            position = 2
        name = None
        credentials = None
        while position < len(args):
            option, left = args[position].upper(), len(args) - position - 1
            if option == b"AUTH" and left >= 2:
                credentials = args[position + 1], args[position + 2]
                position += 3
            elif option == b"SETNAME" and left:
                name = checked_name(args[position + 1])
                position += 2
            else:
                raise CommandError(f"ERR Syntax error in HELLO option '{args[position].decode(errors='replace')}'")
        if credentials is not None:
            if not self._authenticate(link, *credentials):
                return _refuse()
        elif link.table is not self._server.table:
            raise CommandError(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH "
                "<user> <pass> option can be used to authenticate the client and select the RESP protocol version at the "
                "same time"
            )
        if name is not None:
            link.name = name
        link.speak(version)
        facts = [
            (b"server", bulk(b"redis")),
            (b"version", bulk(COMPATIBLE.encode())),
            (b"proto", integer(version)),
            (b"id", integer(link.id)),
            (b"mode", bulk(b"standalone")),
            (b"role", bulk(b"master")),
            (b"modules", b"*0\r\n"),
        ]
        link.out.append(mapping([(bulk(key), value) for key, value in facts], version))
        return None


async def _refuse() -> None:
    await asyncio.sleep(WRONG_PASSWORD_S)
    raise CommandError(WRONG_PASSWORD)
