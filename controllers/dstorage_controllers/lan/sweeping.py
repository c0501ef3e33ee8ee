"""Looks in the background for keys that a crash left behind: of this controller, and of no chunk.

The whole database is walked by SCAN, a little at a time. What the server does not answer is asked for again from where it
was when the server is back; a store that is closed before the walk is over begins anew at its next open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from redis.exceptions import InvalidResponse, ResponseError

from dstorage_controllers.health import Health
from dstorage_controllers.lan.link import FAILURES, Link, SingleLink

KEYS_AT_ONCE = 1000
"""Places of the server's table looked at by one SCAN; it takes the server about 0.3 ms."""
PAUSE_S = 0.01
"""Between two SCANs, so that the server's other clients notice nothing."""


class Sweeping:
    """One walk through all servers of a controller.

    Args:
        link: To the servers.
        health: Told when they do not answer.
        prefix: How all keys of the controller begin.
        orphan: Whether a key is nobody's.
        found: Called with such keys.
    """

    def __init__(
        self,
        link: Link,
        health: Health,
        *,
        prefix: str,
        orphan: Callable[[str], bool],
        found: Callable[[Iterable[str]], None],
    ) -> None:
        self._link = link
        self._health = health
        self._pattern = f"{prefix}*"
        self._orphan = orphan
        self._found = found
        self._wanted = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Walk once."""
        self._wanted = True
        self.resume()

    def resume(self) -> None:
        """Go on if a walk is not over; to be called when the server is back."""
        if self._wanted and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._walk())

    async def wait(self) -> None:
        """Return when the walk is over, or stopped because a server does not answer."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """Stop."""
        self._wanted = False
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _walk(self) -> None:
        try:
            await self._link.everywhere(self._walk_one)
            self._wanted = False
        except ResponseError:
            # SCAN is not allowed here: then garbage stays.
            self._wanted = False
        except FAILURES as error:
            self._health.failed(error)
        finally:
            self._task = None

    async def _walk_one(self, server: SingleLink, number: int) -> None:
        cursor = b"0"
        while True:
            reply = (await server.run([("SCAN", cursor, "MATCH", self._pattern, "COUNT", KEYS_AT_ONCE)]))[0]
            if isinstance(reply, Exception):
                raise reply
            match reply:
                case [bytes(cursor), [*keys]] if all(isinstance(key, bytes) for key in keys):
                    pass
                case _:
                    raise InvalidResponse("the server answers SCAN with something else")
            orphans = [key for raw in keys if self._orphan(key := raw.decode("ascii", "replace"))]
            if orphans:
                self._found(orphans)
            if cursor == b"0":
                return
            await asyncio.sleep(PAUSE_S)
