"""The way to the server: commands out, replies in, over connections that are kept.

What travels here may be sent twice: every command the controller uses gives the same when repeated. So a connection that
was closed while idle (the server was restarted, a firewall forgot it) costs one more try on a new one and no failure.
Every wait ends with the time-out; a connection whose replies are not all read is closed, never used again.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    ClusterError,
    InvalidResponse,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from dstorage.errors import ControllerError, ControllerFull, ControllerUnavailable
from dstorage_controllers.health import Fault, Manners

T = TypeVar("T")

Command = tuple[str | bytes | memoryview | int, ...]
"""A Redis command: its name and arguments."""
Reply = Any
"""What redis-py makes of a reply; a `ResponseError` stands in the place of a command that was refused."""

FAILURES = (RedisError, OSError, TimeoutError)
"""What befalls a whole `run`: no connection, none in time, or a server that is loading its data."""


def fault_of(error: BaseException) -> Fault:
    """What the server can still do after an error (a reply or one of `FAILURES`)."""
    if isinstance(error, OutOfMemoryError):
        return Fault.FULL
    if isinstance(error, ResponseError) and not isinstance(error, (ClusterError, AskError, TryAgainError)):
        return Fault.WRITES
    return Fault.DOWN


def refusal(name: str, error: BaseException) -> ControllerError:
    """What the store is told of an error.

    Args:
        name: The controller's name.
        error: A reply or one of `FAILURES`.
    """
    # Replies come without the prefix that redis-py has made a class of.
    text = str(error) if isinstance(error, RedisError) else f"{type(error).__name__} {error}".strip()
    if isinstance(error, OutOfMemoryError):
        return ControllerFull(
            f"the server of {name!r} is out of memory ({text[:200]}); raise its maxmemory or add another"
        )
    if isinstance(error, TimeoutError):
        text = "it did not answer in time"
    if isinstance(error, AskError):
        text = f"it sends us on to {error.host}:{error.port}; if it is a node of a Cluster, pass cluster=True"
    return ControllerUnavailable(f"the server of {name!r} cannot be used now: {text[:300]}")


MANNERS = Manners(FAILURES, fault_of, refusal, first_pause=0.05, longest_pause=1.0)


class Link(ABC):
    """A server, or several that act as one.

    Attributes:
        many_keys: Whether one command may name keys that lie anywhere.
    """

    many_keys: bool

    @abstractmethod
    async def run(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands that each name one key (second item) together, and give their replies in order.

        Raises:
            RedisError, OSError, TimeoutError: They could not all be answered; any of them may have taken effect.
        """

    @abstractmethod
    async def everywhere(self, do: Callable[[SingleLink, int], Awaitable[T]]) -> list[T]:
        """Call `do` for each server that takes writes, side by side, with a number whose ``{hash tag}`` lies on that server.

        Raises:
            RedisError, OSError, TimeoutError: One of the calls did.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close all connections; idempotent."""


class SingleLink(Link):
    """One server; as many connections as `run` is called at a time.

    Args:
        connect: Makes a connection, not yet open.
        timeout: Seconds for one `run`, connecting included.
    """

    many_keys = True

    def __init__(self, connect: Callable[[], AbstractConnection], *, timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout
        self._idle: list[AbstractConnection] = []
        self._closed = False

    async def run(self, commands: Sequence[Command]) -> list[Reply]:
        """Send the commands together on one connection."""
        try:
            async with asyncio.timeout(self._timeout):
                if self._idle:
                    connection = self._idle.pop()
                    try:
                        return await self._exchange(connection, commands)
                    except (RedisConnectionError, OSError):
                        # It may have been closed while idle, and so may the others.
                        await self._drop_idle()
                return await self._exchange(self._connect(), commands)
        except TimeoutError:
            # Where something on the way has forgotten this connection it has forgotten the others: the next try is to make a new one.
            await self._drop_idle()
            raise

    async def everywhere(self, do: Callable[[SingleLink, int], Awaitable[T]]) -> list[T]:
        """Call it for the one server."""
        return [await do(self, 0)]

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        await self._drop_idle()

    async def _exchange(self, connection: AbstractConnection, commands: Sequence[Command]) -> list[Reply]:
        try:
            # For one command this is the shorter way.
            packed = connection.pack_command(*commands[0]) if len(commands) == 1 else connection.pack_commands(commands)
            await connection.send_packed_command(packed, check_health=False)
            replies: list[Reply] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    replies.append(error)
                except (ValueError, MemoryError) as error:
                    # MemoryError: it announces more than this machine could hold.
                    raise InvalidResponse(f"a reply makes no sense: {type(error).__name__} {error}".strip()) from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if self._closed:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)
        return replies

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)
