"""Accepts encrypted connections, and counts those whose handshake is under way.

The loop's own servers make a connection known only when its handshake is done: strangers who never begin one could take all
descriptors of the process, and so keep the store from writing. Here they are within the limit on connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

log = logging.getLogger("dstorage.server")

HANDSHAKE_S = 10
"""How long a client has for it."""
RETRY_S = 1
BACKLOG = 511


class Door:
    """Listens at some addresses.

    Args:
        addresses: As from getaddrinfo; port 0 takes a free one, the same for all.
        tls: What connections are encrypted with.
        make: Makes the protocol of a connection.
        room: How many connections more there may be.

    Raises:
        OSError: An address cannot be had.
    """

    def __init__(
        self,
        addresses: list[tuple[Any, ...]],
        tls: ssl.SSLContext,
        make: Callable[[], asyncio.BaseProtocol],
        room: Callable[[], int],
    ) -> None:
        self._tls = tls
        self._make = make
        self._room = room
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes = 0
        self.port = 0
        try:
            for family, kind, protocol, _, address in addresses:
                self._listen(socket.socket(family, kind, protocol), address)
        except BaseException:
            self._close()
            raise
        for listener in self._listeners:
            self._spawn(self._accept(listener))

    def _listen(self, listener: socket.socket, address: tuple[Any, ...]) -> None:
        self._listeners.append(listener)
        listener.setblocking(False)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address[0], address[1] or self.port, *address[2:]))
        listener.listen(BACKLOG)
        self.port = listener.getsockname()[1]

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            if self._room() <= self._handshakes:
                accepted.close()
            else:
                self._spawn(self._shake_hands(accepted))

    async def _shake_hands(self, accepted: socket.socket) -> None:
        self._handshakes += 1
        try:
            # What fails here is the client's affair; the loop closes the socket.
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._make, accepted, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S
                )
        finally:
            self._handshakes -= 1

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def close(self) -> None:
        """Accept no more, and let go who has not finished a handshake. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close()
