"""A node on a store of its own, and a plain client that shows what really comes over the wire."""

from __future__ import annotations

import asyncio
import contextlib

import hiredis

import dstorage
from dstorage.server.server import Limits, Server


class Client:
    """Sends commands and reads replies as they are; errors come as `hiredis.ReplyError`."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.replies = hiredis.Reader(notEnoughData=Ellipsis)

    async def send(self, *args):
        self.write(*args)
        return await self.receive()

    def write(self, *args):
        self.writer.write(pack(*args))

    async def receive(self):
        while (reply := self.replies.gets()) is Ellipsis:
            data = await asyncio.wait_for(self.reader.read(2**20), 60)
            if not data:
                raise ConnectionResetError("the server hung up")
            self.replies.feed(data)
        return reply

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def pack(*args) -> bytes:
    parts = [arg if isinstance(arg, (bytes, bytearray)) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class Node:
    """A server on a store, with clients."""

    def __init__(self, path, **options):
        self.path = path
        self.options = options
        self.clients = []

    async def start(self, *, budget="64M", password=None, limits=None, tls=None, commit_interval=None, **store):
        self.store = await dstorage.open(
            self.path, budget=budget, pressure=None, tiering=None, commit_interval=commit_interval, **store
        )
        self.server = Server(self.store, password=password, limits=limits or Limits())
        await self.server.__aenter__()
        self.port = await self.server.listen(["127.0.0.1"], 0, tls=tls)
        return self

    async def client(self, **more) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **more))
        self.clients.append(client)
        return client

    async def stop(self):
        await self.server.close()
        for client in self.clients:
            await client.close()
        await self.store.close()
