"""A walk through a graph whose nodes are chunks, without a single task or coroutine: only callbacks.

Some nodes are on a disk, some on a controller that is slow, and away for a while. One was on a controller that is gone for ever, and one
is deleted while the walk waits for it. A callback is told each of these, once, and says what to do.

    python examples/callbacks.py [--nodes 200]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import struct
import tempfile
from collections import Counter
from collections.abc import Callable

from dstorage_controllers.disk import DiskController

import dstorage
from dstorage import Handle, Status, Store
from dstorage.testing import SlowController

TRIES = 20


class Walk:
    """Visits every node that can be reached.

    Args:
        store: Where the nodes are. A node is the ids of its neighbours, 8 bytes each.
        finished: Called when there is nothing left to wait for.
    """

    def __init__(self, store: Store, finished: Callable[[], object]) -> None:
        self.store = store
        self.finished = finished
        self.seen: set[int] = set()
        self.answers: Counter[str] = Counter()
        self.tries: Counter[int] = Counter()
        self.waiting = 0

    def visit(self, id: int) -> None:
        """Ask for a node; the answer comes to `arrived`, later."""
        self.seen.add(id)
        self.waiting += 1
        self.store.handle(id).resolve(self.arrived)

    def arrived(self, handle: Handle) -> None:
        """Called once for each time a node was asked for."""
        self.answers[handle.status.name] += 1
        match handle.status:
            case Status.RESOLVED:
                for (neighbour,) in struct.iter_unpack("<Q", handle.data):
                    if neighbour not in self.seen:
                        self.visit(neighbour)
            case Status.TEMPORARILY_UNAVAILABLE:
                self.tries[handle.id] += 1
                if self.tries[handle.id] < TRIES:
                    # Not before retry_at: until then the store answers without asking.
                    loop = self.store.loop
                    loop.call_at(max(handle.retry_at or 0, loop.time() + 0.05), handle.resolve, self.arrived)
                    return
                print(f"gave up node {handle.id}: {handle.error}")
            case Status.LOST:
                print(f"node {handle.id} is lost for ever: {handle.error}")
            case Status.DELETED:
                print(f"node {handle.id} was deleted while we waited for it")
        # The reference that `visit` took.
        handle.release()
        self.waiting -= 1
        if not self.waiting:
            self.finished()


async def grow(store: Store, nodes: int) -> list[int]:
    """A random graph in which every node can be reached from the first one, on the store's three controllers by turns."""
    chance = random.Random(1)
    ids: list[int] = []
    for number in range(nodes):
        on = "gone" if number == 1 else ("near", "far")[number % 2]
        with await store.create(8 * 4, controller=on) as handle:
            ids.append(handle.id)
    for number, id in enumerate(ids):
        neighbours = [ids[(number + 1) % nodes], *chance.choices(ids[2:], k=3)]
        if number == 0:
            neighbours = ids[1:5]
        with store.handle(id) as handle:
            await handle.replace(struct.pack("<4Q", *neighbours))
    await store.commit()
    return ids


async def main(nodes: int) -> None:
    """Make the graph, spoil some of it, walk."""
    with tempfile.TemporaryDirectory() as folder:
        controllers = [DiskController(name, f"{folder}/{name}") for name in ("near", "far", "gone")]
        async with dstorage.open(f"{folder}/store", budget="1M", controllers=controllers) as store:
            ids = await grow(store, nodes)
        # Opened again nothing is in memory; the store knows its controllers by itself.
        async with dstorage.open(f"{folder}/store", budget="1M", create=False) as store:
            await store.declare_removed("gone")
            await store.unload("far")
            slow = SlowController(DiskController("far", f"{folder}/far"), delay=0.02)
            loop = asyncio.get_running_loop()
            over = loop.create_future()
            walk = Walk(store, lambda: over.set_result(None))
            walk.visit(ids[0])
            loop.call_later(0.2, lambda: loop.create_task(store.register(slow)))
            loop.call_later(0.1, lambda: delete(store, ids[3]))
            await over
            print(f"{len(walk.seen)} of {nodes} nodes seen; answers: {dict(sorted(walk.answers.items()))}")


def delete(store: Store, id: int) -> None:
    """Delete a node, wherever it is."""
    with store.handle(id) as handle:
        handle.delete()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    asyncio.run(main(parser.parse_args().nodes))
