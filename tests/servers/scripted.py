"""A server that speaks the Redis protocol and says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import hiredis


class ScriptedServer:
    """Answers each command with the bytes that `answer` gives for it.

    Args:
        answer: Called with the command's parts; what it returns is sent as it is.
    """

    def __init__(self, answer: Callable[[list[bytes]], bytes]) -> None:
        self.answer = answer
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        parser = hiredis.Reader()
        try:
            while block := await reader.read(2**16):
                parser.feed(block)
                while (command := parser.gets()) is not False:
                    writer.write(self.answer(command))
                await writer.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
