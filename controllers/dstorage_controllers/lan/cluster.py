"""The way to a Cluster: each command to the master whose hash slot its key lies in.

The table of slots comes from the Cluster itself and is fetched anew when a node says that a slot has moved, when a node does
not answer, and before each probe; so a failover is followed as soon as the Cluster has made it. A slot on its way from
one master to another is asked for on both. Replicas are never read from: they may not have the newest chunks yet.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from dstorage_controllers.lan.link import FAILURES, Command, Link, Reply, SingleLink, T

MAX_ROUNDS = 6
"""Times a command is sent on before the Cluster counts as confused."""
MAX_NODES = 1024
TRY_AGAIN_S = 0.02
"""Pause while the keys of a slot are moving."""

Node = tuple[str, int]
"""Host and port."""


class ClusterLink(Link):
    """All masters of a Cluster.

    Args:
        seeds: Nodes to ask first; the others are found through them.
        connect: Makes the link to one node.
        timeout: Seconds for one `run`, redirections included.
    """

    many_keys = False

    def __init__(self, seeds: Sequence[Node], connect: Callable[[Node], SingleLink], *, timeout: float) -> None:
        self._seeds = list(seeds)
        self._connect = connect
        self._timeout = timeout
        self._links: dict[Node, SingleLink] = {}
        self._slots: list[Node | None] = []
        self._tags: dict[Node, int] = {}
        self._learning: asyncio.Task[None] | None = None

    async def run(self, commands: Sequence[Command]) -> list[Reply]:
        """Send each command to where its key is, side by side; follow redirections."""
        async with asyncio.timeout(self._timeout):
            if not self._slots:
                await self._learn()
            replies: list[Reply] = [None] * len(commands)
            left = list(range(len(commands)))
            for _ in range(MAX_ROUNDS):
                left = await self._round(commands, left, replies)
                if not left:
                    break
            return replies

    async def everywhere(self, do: Callable[[SingleLink, int], Awaitable[T]]) -> list[T]:
        """Call it for each master, as the Cluster is now."""
        async with asyncio.timeout(self._timeout):
            await self._learn()
        if None in self._slots:
            raise ClusterDownError("some hash slots are served by no node")
        return list(await asyncio.gather(*(do(self._link(node), tag) for node, tag in self._tags.items())))

    async def close(self) -> None:
        """Close all connections to all nodes."""
        task, self._learning = self._learning, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        links, self._links = self._links, {}
        for link in links.values():
            await link.close()

    async def _round(self, commands: Sequence[Command], left: list[int], replies: list[Reply]) -> list[int]:
        """Send the commands of these numbers; returns those to be sent again."""
        groups: defaultdict[Node, list[int]] = defaultdict(list)
        for number in left:
            node = self._slots[key_slot(_key(commands[number]))]
            if node is None:
                replies[number] = ClusterDownError("its hash slot is served by no node")
            else:
                groups[node].append(number)
        answers = await asyncio.gather(
            *(self._link(node).run([commands[number] for number in numbers]) for node, numbers in groups.items()),
            return_exceptions=True,
        )
        again: list[int] = []
        moved = moving = False
        for (node, numbers), answer in zip(groups.items(), answers, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, FAILURES):
                    raise answer
                await self._learn()
                # Where a replica has taken over there is somebody else to ask.
                if any(self._slots[key_slot(_key(commands[number]))] == node for number in numbers):
                    raise answer
                again += numbers
                continue
            for number, reply in zip(numbers, answer, strict=True):
                replies[number] = reply
                if isinstance(reply, MovedError):
                    moved = True
                elif isinstance(reply, AskError):
                    replies[number] = await self._ask(node, reply, commands[number])
                if isinstance(replies[number], (MovedError, TryAgainError)):
                    moving = moving or isinstance(replies[number], TryAgainError)
                    again.append(number)
        if moved:
            await self._learn()
        if moving:
            await asyncio.sleep(TRY_AGAIN_S)
        return again

    async def _ask(self, node: Node, redirection: AskError, command: Command) -> Reply:
        """Ask the node that a slot is moving to; one that does not know its own name leaves it out."""
        link = self._link((redirection.host or node[0], redirection.port))
        return (await link.run([("ASKING",), command]))[1]

    def _link(self, node: Node) -> SingleLink:
        link = self._links.get(node)
        if link is None:
            if len(self._links) >= MAX_NODES:
                raise RedisConnectionError(f"the Cluster names more than {MAX_NODES} nodes")
            link = self._links[node] = self._connect(node)
        return link

    async def _learn(self) -> None:
        """Fetch the table of slots; who asks while that is under way shares it."""
        if self._learning is None:
            self._learning = asyncio.get_running_loop().create_task(self._fetch())
            self._learning.add_done_callback(self._learned)
        await asyncio.shield(self._learning)

    def _learned(self, task: asyncio.Task[None]) -> None:
        self._learning = None
        if not task.cancelled():
            # Told to those who still wait for it.
            task.exception()

    async def _fetch(self) -> None:
        nodes = list(self._tags)
        random.shuffle(nodes)
        nodes += [node for node in self._seeds if node not in self._tags]
        trouble: BaseException | None = None
        for node in nodes:
            try:
                async with asyncio.timeout(self._timeout / 3):
                    reply = (await self._link(node).run([("CLUSTER", "SLOTS")]))[0]
            except FAILURES as error:
                trouble = error
                continue
            if isinstance(reply, ResponseError):
                trouble = reply
                continue
            try:
                await self._take(node, reply)
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                trouble = RedisConnectionError(
                    f"{node[0]}:{node[1]} gives a table of slots that makes no sense: {error}"
                )
                continue
            return
        assert trouble is not None
        raise trouble

    async def _take(self, asked: Node, reply: Reply) -> None:
        slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        named = 0
        for first, last, master, *_ in reply:
            if not 0 <= first <= last < REDIS_CLUSTER_HASH_SLOTS:
                raise ValueError(f"slots {first} to {last}")
            named += last - first + 1
            if named > REDIS_CLUSTER_HASH_SLOTS:
                raise ValueError("some slots are named twice")
            # Nodes that do not know their own name leave it out: the one that was asked is meant.
            host = (master[0] or b"").decode() or asked[0]
            slots[first : last + 1] = [(host, int(master[1]))] * (last - first + 1)
        masters = {node for node in slots if node is not None}
        if len(masters) > MAX_NODES:
            raise ValueError(f"{len(masters)} masters")
        if not masters:
            raise ValueError("no slot is served")
        self._slots = slots
        self._tags = {}
        number = 0
        while len(self._tags) < len(masters):
            node = slots[key_slot(b"%x" % number)]
            if node is not None:
                self._tags.setdefault(node, number)
            number += 1
        for node in [node for node in self._links if node not in masters and node not in self._seeds]:
            await self._links.pop(node).close()


def _key(command: Command) -> bytes:
    return str(command[1]).encode()
