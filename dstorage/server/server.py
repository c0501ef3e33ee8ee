"""The node: listens, knows its connections and their limits, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import secrets
import socket
import ssl
import stat
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from dstorage.errors import DStorageError, InvalidArgumentError
from dstorage.server.admin import Admin
from dstorage.server.chunks import Chunks
from dstorage.server.clients import Clients
from dstorage.server.command import Command
from dstorage.server.connection import Connection
from dstorage.server.door import BACKLOG, Door
from dstorage.server.introspection import Introspection
from dstorage.server.keys import Keys
from dstorage.server.keyspace import Keyspace
from dstorage.server.large import LargeValues
from dstorage.server.numbers import Numbers
from dstorage.server.refusal import log
from dstorage.server.sessions import BEFORE_PASSWORD, Sessions, digest
from dstorage.server.strings import Strings
from dstorage.server.transactions import Transactions
from dstorage.store import Store

RECEIVE_BYTES = 256 * 1024
"""What is read from a socket at a time; one buffer serves all connections."""
LEAST_PIECE = RECEIVE_BYTES
MOST_PIECE = 2**20
LEAST_BUDGET = 8 * LEAST_PIECE
"""Less could not hold what one client sends and another is sent, beside what they are about."""
PIECES_IN_BUDGET = 32
"""A piece of a long value is at most this part of the budget."""
UNREAD_IN_BUDGET = 4
"""Replies that wait for clients that do not read may take this part of the budget."""
UNREAD_S = 5
"""How long those clients are given: less than a command waits for room, so that they cost nobody an error."""
STRANGER_S = 60
"""How long a client has to show the password."""
GRACE_S = 10.0
"""How long a command under way has to finish when the server ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take.

    Attributes:
        connections: Most connections at a time.
        request: Most bytes of one request in memory.
        buffers: Most bytes of all requests that are arriving or queued in transactions, beside the budget; and, but not more than a
            quarter of the budget, of all replies that are not read.
        idle: Seconds after which a client that sends nothing, or does not read its replies, is let go; None: never.
    """

    connections: int = 1000
    request: int = 64 * 2**20
    buffers: int = 256 * 2**20
    idle: float | None = None

    def __post_init__(self) -> None:
        for name in ("connections", "request", "buffers"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)}: give at least 1")
        if self.idle is not None and self.idle <= 0:
            raise InvalidArgumentError(f"idle={self.idle}: give seconds > 0, or None")


class Server:
    """Serves one store; use it with ``async with``, then `listen`.

    It belongs to the loop of the store, and commits when it ends; the store is its caller's to close.

    Args:
        store: What it serves. Its keys are names of the store that begin with ``redis`` and a zero byte; other names and chunks
            are left alone.
        password: What clients have to show, or None.
        limits: What they may take.
    """

    def __init__(self, store: Store, *, password: bytes | None = None, limits: Limits | None = None) -> None:
        if password is not None and not password:
            raise InvalidArgumentError("an empty password protects nothing: give at least one byte, or None")
        store.check_writable()
        if store.options.budget < LEAST_BUDGET:
            raise InvalidArgumentError(
                f"budget={store.options.budget}: a server needs at least {LEAST_BUDGET} bytes of memory for chunks"
            )
        self.store = store
        self.limits = limits or Limits()
        self.password = None if password is None else digest(password)
        self.chunks = Chunks(store)
        piece = max(LEAST_PIECE, min(MOST_PIECE, store.options.budget // PIECES_IN_BUDGET))
        self.large = LargeValues(self.chunks, piece)
        self.keyspace = Keyspace(self.chunks, self.large)
        self.table: dict[bytes, Command] = {}
        self.transactions = Transactions(self.keyspace)
        for group in (
            Strings(self.keyspace),
            Numbers(self.keyspace),
            Keys(self.keyspace),
            self.transactions,
            Sessions(self),
            Clients(self),
            Introspection(self),
            Admin(self),
        ):
            for command in group.commands():
                self.table[command.name.encode()] = self.table[command.name.upper().encode()] = command
        self.queueing = {name: self.transactions.queueing(command) for name, command in self.table.items()}
        self.before_password = {
            name: command for name, command in self.table.items() if command.name in BEFORE_PASSWORD
        }
        self.unread_limit = min(self.limits.buffers, store.options.budget // UNREAD_IN_BUDGET)
        self.receive_view = memoryview(bytearray(RECEIVE_BYTES))
        self.connections: dict[Connection, None] = {}
        self.last_id = 0
        self.reset_statistics()
        self.buffered = 0
        self.second = 0
        self.started_at = self.committed_at = time.time()
        self.commit_failure: DStorageError | None = None
        self.committing = False
        self.run_id = secrets.token_hex(20)
        self.hosts: list[str] = []
        self.port: int | None = None
        self.unix: str | None = None
        self._unsent: list[Connection] = []
        self._servers: list[asyncio.Server] = []
        self._doors: list[Door] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._minder: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def __aenter__(self) -> Server:
        await self.keyspace.load()
        self._minder = self.spawn(self._mind())
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    # -- listening ----------------------------------------------------------------------------------------------------

    async def listen(self, hosts: Sequence[str], port: int, *, tls: ssl.SSLContext | None = None) -> int:
        """Accept connections over TCP.

        Args:
            hosts: Addresses or names of this machine.
            port: 0 takes a free one.
            tls: Makes them encrypted.

        Returns:
            The port.

        Raises:
            InvalidArgumentError: An address is reachable from elsewhere and no password is set, or it cannot be had.
        """
        loop = asyncio.get_running_loop()
        for host in hosts:
            try:
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            except OSError as error:
                raise InvalidArgumentError(f"{host} is no address of this machine: {error.strerror}") from error
            beyond = [str(info[4][0]) for info in found if not _is_loopback(str(info[4][0]))]
            if beyond and self.password is None:
                raise InvalidArgumentError(
                    f"{host} ({beyond[0]}) can be reached from other machines: set a password, or listen on 127.0.0.1"
                )
        for host in hosts:
            try:
                if tls is None:
                    server = await loop.create_server(lambda: Connection(self), host, port, backlog=BACKLOG)
                    self._servers.append(server)
                    port = server.sockets[0].getsockname()[1]
                else:
                    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
                    door = Door([*dict.fromkeys(found)], tls, lambda: Connection(self), self._free_connections)
                    self._doors.append(door)
                    port = door.port
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else str(error)
                raise InvalidArgumentError(f"{host}:{port} cannot be listened at: {why}") from error
        self.hosts += hosts
        self.port = port
        return port

    async def listen_unix(self, path: str | os.PathLike[str]) -> None:
        """Accept connections on a unix socket, which only this user may use.

        Raises:
            InvalidArgumentError: Another server uses the path, or it is no socket.
        """
        loop = asyncio.get_running_loop()
        listener = _bind_unix(Path(path))
        self._servers.append(await loop.create_unix_server(lambda: Connection(self), sock=listener, backlog=BACKLOG))
        self.unix = str(path)

    # -- connections --------------------------------------------------------------------------------------------------

    def _free_connections(self) -> int:
        return self.limits.connections - len(self.connections)

    def entered(self, connection: Connection) -> str | None:
        """There is one connection more; returns why it is refused, or None."""
        self.accepted += 1
        self.last_id += 1
        connection.id = self.last_id
        if len(self.connections) >= self.limits.connections:
            self.rejected += 1
            return "ERR max number of clients reached"
        self.connections[connection] = None
        self._empty.clear()
        return None

    def left(self, connection: Connection) -> None:
        """There is one connection less."""
        self.connections.pop(connection, None)
        if not self.connections:
            self._empty.set()

    def flush_soon(self, connection: Connection) -> None:
        """Send its replies when all that has come in this step of the loop is done: one write answers many reads."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush_all)
        self._unsent.append(connection)

    def _flush_all(self) -> None:
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.flush()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that `close` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def reset_statistics(self) -> None:
        """Count from zero what INFO tells."""
        self.accepted = self.rejected = self.commands = self.rate = 0
        self.keyspace.hits = self.keyspace.misses = self.keyspace.expired = 0

    def commit_soon(self) -> bool:
        """Begin to make everything durable; False if that is under way already."""
        if self.committing:
            return False
        self.committing = True
        self.spawn(self._commit())
        return True

    async def _commit(self) -> None:
        """A failure is kept for INFO, for the next commit may succeed."""
        try:
            await self.store.commit()
        except DStorageError as failure:
            self.commit_failure = failure
        else:
            self.commit_failure = None
        finally:
            self.committing = False

    async def _mind(self) -> None:
        """What has to be done every second."""
        start = time.monotonic()
        commits = self.store.stats().commits
        before = 0
        while True:
            await asyncio.sleep(1)
            self.second = int(time.monotonic() - start)
            self.rate, before = max(self.commands - before, 0), self.commands
            await self.keyspace.expire_due()
            if (now := self.store.stats().commits) != commits:
                commits, self.committed_at = now, time.time()
            self._let_go_of_who_does_not_read()
            idle = self.limits.idle or inf
            for connection in list(self.connections):
                silent = self.second - connection.last
                if (connection.idle and silent > idle) or (
                    not connection.parser.trusted and self.second - connection.since > STRANGER_S
                ):
                    connection.abort()

    def _let_go_of_who_does_not_read(self) -> None:
        """Replies that wait for clients keep their values in memory: beyond a share of it, the longest silent ones have to go."""
        stuck = sorted((one for one in list(self.connections) if one.stuck), key=lambda one: one.last)
        unread = sum(one.unread for one in stuck)
        for connection in stuck:
            if unread <= self.unread_limit or self.second - connection.last <= UNREAD_S:
                break
            unread -= connection.unread
            log.warning("hung up on %s, which did not read its replies for %d s", connection.peer, UNREAD_S)
            connection.abort()

    # -- the end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Take no more connections, finish the commands under way, hang up, and commit. Idempotent.

        Raises:
            StoreFull, TemporarilyUnavailable: The last commit could not be made.
        """
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        doors, self._doors = self._doors, []
        for door in doors:
            await door.close()
        if self._minder is not None:
            self._minder.cancel()
            await asyncio.gather(self._minder, return_exceptions=True)
        else:
            return
        self._minder = None
        for connection in list(self.connections):
            connection.hold()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await asyncio.gather(*[connection.finished() for connection in self.connections])
        for connection in list(self.connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._empty.wait()
        for connection in list(self.connections):
            connection.abort()
        while self._tasks:
            await asyncio.wait(self._tasks)
        for server in servers:
            await server.wait_closed()
        await self.keyspace.close()
        if self.unix is not None:
            _unlink(Path(self.unix))
        await self.store.commit()


def _bind_unix(place: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise InvalidArgumentError(
            f"{place} cannot be listened at: there are no unix sockets here; listen on a port of this machine"
        )
    if os.path.lexists(place):
        if not stat.S_ISSOCK(place.lstat().st_mode):
            raise InvalidArgumentError(f"{place} exists and is no socket: name another path")
        with socket.socket(socket.AF_UNIX) as probe:
            # One whose queue is full is there, too.
            probe.setblocking(False)
            if probe.connect_ex(str(place)) != errno.ECONNREFUSED:
                raise InvalidArgumentError(f"another server answers at {place}: name another path")
        place.unlink()
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(place))
    except OSError as error:
        listener.close()
        raise InvalidArgumentError(f"{place} cannot be listened at: {error}") from error
    finally:
        os.umask(before)
    return listener


def _unlink(place: Path) -> None:
    place.unlink(missing_ok=True)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
