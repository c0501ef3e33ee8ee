"""As much of S3, and of Google's XML API, as obstore needs, in this process: answers rightly, or as a test says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from urllib.parse import unquote
from xml.sax.saxutils import escape

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret", "AWS_REGION": "us-east-1"}
Answer = tuple[int, bytes]


class ScriptedS3:
    """One bucket in memory.

    Attributes:
        objects: Its contents.
        script: Asked before each request, with method, key and query: a (status, body) to answer with, seconds to wait before
            the right answer, or None for the right answer.
        log: (method, key) of all requests.
        endless: Whether what is read of an object never ends.
        headers: Of the last request.
        names: The objects that the last request to delete names.
    """

    environment = ENVIRONMENT

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.script: Callable[[str, str, str], Answer | float | None] = lambda method, key, query: None
        self.log: list[tuple[str, str]] = []
        self.endless = False
        self.headers: dict[str, str] = {}
        self.names: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def settings(self) -> dict[str, object]:
        """Arguments of `InternetController`."""
        return {"url": "s3://chunks/p", "endpoint": f"http://127.0.0.1:{self.port}", "allow_http": True}

    async def __aenter__(self) -> ScriptedS3:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.headers = headers
                path, _, query = target.partition("?")
                key = unquote(path).removeprefix("/chunks").lstrip("/")
                self.log.append((method, key))
                self.names = [name.decode() for name in re.findall(rb"<Key>(.*?)</Key>", body)]
                told = self.script(method, key, query)
                if isinstance(told, float):
                    await asyncio.sleep(told)
                    told = None
                status, data, extra = (
                    (*told, "") if told is not None else self._answer(method, key, query, headers, body)
                )
                endless = self.endless and status == 206
                length = len(data) + endless * 2**50
                writer.write(
                    f'HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nETag: "x"\r\n{extra}\r\n'.encode()
                    + (b"" if method == "HEAD" else data)
                )
                await writer.drain()
                while endless:
                    writer.write(bytes(2**20))
                    await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def _answer(
        self, method: str, key: str, query: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes, str]:
        if method == "PUT":
            new = headers.get("if-none-match") == "*" or headers.get("x-goog-if-generation-match") == "0"
            if new and key in self.objects:
                return 412, b"<Error><Code>PreconditionFailed</Code></Error>", ""
            self.objects[key] = body
            return 200, b"", ""
        if method == "DELETE":
            found = self.objects.pop(key, None)
            return (204, b"", "") if found is not None else (404, b"<Error><Code>NoSuchKey</Code></Error>", "")
        if method == "POST":
            for name in self.names:
                self.objects.pop(name, None)
            return 200, b"<DeleteResult></DeleteResult>", ""
        if not key:
            prefix = unquote(re.search("prefix=([^&]*)", query)[1])  # type: ignore[index]
            found = "".join(
                f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00Z</LastModified>"
                f'<ETag>"x"</ETag><Size>{len(data)}</Size></Contents>'
                for name, data in self.objects.items()
                if name.startswith(prefix)
            )
            return 200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode(), ""
        data = self.objects.get(key)
        if data is None:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", ""
        first, last = map(int, headers["range"].removeprefix("bytes=").split("-"))
        if first >= len(data):
            return 416, b"<Error><Code>InvalidRange</Code></Error>", ""
        part = data[first : last + 1]
        modified = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        return 206, part, f"{modified}Content-Range: bytes {first}-{first + len(part) - 1}/{len(data)}\r\n"
