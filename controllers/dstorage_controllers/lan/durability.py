"""When a server has what it answered for: on its disk where it can tell, and on as many replicas as asked for.

WAITAOF (Redis 7.2, Valkey, `dstorage serve`) waits until the append-only file is on the disk, here and on replicas. Where it
is not known, or nothing is appended, WAIT is asked for the replicas alone, and what the server's own disk has is a matter of
its settings: `advice` names those that lose data.
"""

from __future__ import annotations

from redis.exceptions import InvalidResponse, OutOfMemoryError, ResponseError

from dstorage.errors import ControllerUnavailable
from dstorage_controllers.lan.link import Command, SingleLink

PROBE_LIFE_MS = 30 * 24 * 3600 * 1000
"""Given to a probe when the server is full: to set a time is a write that takes no memory."""


class Durability:
    """What one controller asks of its servers at a commit.

    Args:
        name: The controller's name, for messages.
        replicas: Replicas that must have all writes.
        timeout: Seconds that they may take.
    """

    def __init__(self, name: str, replicas: int, timeout: float) -> None:
        self._name = name
        self._replicas = replicas
        self._wait_ms = max(1, int(timeout * 1000))

    async def settle(self, server: SingleLink, probe: str) -> None:
        """Return when a server, and enough replicas of it, have everything written before.

        Args:
            server: Which.
            probe: A key of that server; a write behind all others is what is waited for.

        Raises:
            ResponseError: The server takes no writes.
            ControllerUnavailable: It did not come to be in time.
        """
        try:
            await self._settle(server, ("SET", probe, b""))
        except OutOfMemoryError:
            # It takes no new chunks; those that it has taken can be committed all the same.
            if await self._settle(server, ("PEXPIRE", probe, PROBE_LIFE_MS)) != 1:
                raise

    async def _settle(self, server: SingleLink, write: Command) -> object:
        """Returns the answer to `write` once all before it is durable."""
        wrote, waited = await server.run([write, ("WAITAOF", 1, self._replicas, self._wait_ms)])
        if isinstance(wrote, ResponseError):
            raise wrote
        if not isinstance(waited, ResponseError):
            match waited:
                case [int(local), int(replicas)]:
                    pass
                case _:
                    raise InvalidResponse("the server answers WAITAOF with something else")
            if local < 1:
                raise ControllerUnavailable(
                    f"the server of {self._name!r} has not brought its append-only file to its disk within "
                    f"{self._wait_ms / 1000:g} s: set its appendfsync to always, or to everysec and timeout= to 5 or more"
                )
            self._check(replicas)
        elif self._replicas:
            wrote, waited = await server.run([write, ("WAIT", self._replicas, self._wait_ms)])
            for reply in (wrote, waited):
                if isinstance(reply, ResponseError):
                    raise reply
            if not isinstance(waited, int):
                raise InvalidResponse("the server answers WAIT with something else")
            self._check(waited)
        return wrote

    def _check(self, replicas: int) -> None:
        if replicas < self._replicas:
            raise ControllerUnavailable(
                f"{replicas} of {self._replicas} replicas of {self._name!r} have the commit's chunks; start the others "
                "or ask for fewer by replicas="
            )


async def advice(server: SingleLink) -> list[str]:
    """What in a server's settings may lose chunks, a sentence each.

    Raises:
        RedisError, OSError, TimeoutError: It does not answer.
    """
    told: dict[str, str] = {}
    for reply in await server.run([("INFO", "memory"), ("INFO", "persistence")]):
        if not isinstance(reply, bytes):
            return [f"the server does not tell its settings ({reply}): see to it that it evicts nothing and appends"]
        for line in reply.decode("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            told[key] = value
    sentences = []
    policy = told.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        sentences.append(f"the server has maxmemory-policy {policy} and may evict chunks: set it to noeviction")
    if told.get("aof_enabled", "1") != "1":
        sentences.append("the server has appendonly no and forgets chunks when it ends: set it to yes")
    return sentences
