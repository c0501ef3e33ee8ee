"""A TCP proxy that misbehaves on demand: what a network does to a client, without a network.

Changes take effect on open connections at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

BLOCK = 64 * 2**10


class FaultProxy:
    """Listens on a port of its own and passes everything to a server, unless told otherwise.

    Attributes:
        latency: Seconds by which each block of data is late, each way.
        rate: Bytes per second, each way and connection; None: as fast as it goes.
        requests: Whether what the client sends gets through. If not it is swallowed: a black hole.
        replies: Whether what the server sends gets through. Requests alone getting through is a half-open connection.
        accepted: Connections so far.
        cut_after: Close a connection after so many bytes of replies; None: never.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.latency = 0.0
        self.rate: float | None = None
        self.requests = True
        self.replies = True
        self.accepted = 0
        self.cut_after: int | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> FaultProxy:
        await self.listen()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Accept no connections any more, and close those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self, *, reset: bool = False) -> None:
        """Close all open connections; with `reset` the client sees ECONNRESET."""
        for writer in list(self._writers):
            if reset:
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def forget(self) -> None:
        """Swallow all that the connections open now still send, as a firewall does that has lost its table; new ones work."""
        self._forgotten |= self._writers

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        upstream = None
        try:
            with contextlib.suppress(OSError):
                to_reader, upstream = await asyncio.open_connection(*self._target)
                self._writers.add(upstream)
                pumps = [
                    asyncio.ensure_future(self._pump(reader, upstream, up=True)),
                    asyncio.ensure_future(self._pump(to_reader, writer, up=False)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    self._forgotten.discard(end)
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        passed = 0
        while block := await reader.read(BLOCK):
            if self.latency:
                await asyncio.sleep(self.latency)
            if self.rate is not None:
                await asyncio.sleep(len(block) / self.rate)
            if not (self.requests if up else self.replies) or writer in self._forgotten:
                continue
            if not up and self.cut_after is not None and passed + len(block) > self.cut_after:
                writer.write(block[: self.cut_after - passed])
                await writer.drain()
                return
            passed += len(block)
            writer.write(block)
            await writer.drain()
