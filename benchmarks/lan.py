"""The LAN controller beside the bare client it is built on (redis-py, asyncio, hiredis), on the same server in the same run.

python benchmarks/lan.py [--size tiny|full] [--repeat N] [--url redis://HOST:PORT] [--json FILE]

16 tasks at a time store and fetch values of random bytes, each under a key of its own, over at most 16 connections on both sides.
The controller also computes and compares checksums, keeps its books and cuts what is large into pieces; the client
only looks at the length. Without --url a redis-server of this machine is started, in memory: client and server share its
cores, and no disk is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvloop
from charts import Chart, keep
from environment import describe

try:
    import redis.asyncio
    from dstorage_controllers.lan import LanController
except ModuleNotFoundError:
    raise SystemExit("this benchmark needs redis-py and hiredis: pip install 'dstorage[lan]'") from None

from dstorage import Locator
from dstorage.controller import OpenContext, ReadRequest, WriteRequest

KIB = 2**10
MIB = 2**20
TASKS = 16
VALUES = {64 * KIB: "64 KiB", 4 * MIB: "4 MiB"}
SIZES = {"tiny": (4 * MIB, 1), "full": (512 * MIB, 7)}
"""Bytes moved per round, and rounds."""

Work = Callable[[int], Awaitable[None]]


@contextlib.contextmanager
def server(directory: Path) -> Iterator[str | None]:
    """The URL of a redis-server that keeps its data in memory, or None where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(1000):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}"
    finally:
        child.kill()
        child.wait()


class Bare:
    """redis-py as it comes, with a pool that makes the tasks wait for a connection."""

    name = "redis-py, asyncio"

    def __init__(self, url: str) -> None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=TASKS, timeout=None)
        self.client: Any = redis.asyncio.Redis(connection_pool=pool)
        self.stem = f"bare:{uuid4().hex}:"

    async def put(self, number: int, value: bytes) -> None:
        assert await self.client.set(f"{self.stem}{number}", value)

    async def get(self, number: int, size: int) -> None:
        assert len(await self.client.get(f"{self.stem}{number}")) == size

    async def clear(self, count: int) -> None:
        for number in range(count):
            await self.client.unlink(f"{self.stem}{number}")

    async def close(self) -> None:
        await self.client.aclose()


class Ours:
    """The controller, one chunk per call as a program's page-ins come."""

    name = "LAN controller"

    def __init__(self, url: str) -> None:
        self.controller = LanController(url=url, connections=TASKS)
        self.places: dict[int, Locator] = {}

    async def open(self, directory: Path) -> None:
        await self.controller.open(OpenContext(uuid4(), 1, directory))

    async def put(self, number: int, value: bytes) -> None:
        place = (await self.controller.write([WriteRequest(number, value)]))[0]
        assert isinstance(place, Locator)
        self.places[number] = place

    async def get(self, number: int, size: int) -> None:
        answer = (await self.controller.read([ReadRequest(number, self.places[number])]))[0]
        assert not isinstance(answer, Exception)
        assert len(answer) == size

    async def clear(self, count: int) -> None:
        await self.controller.discard(list(self.places.items()))
        self.places.clear()

    async def close(self) -> None:
        await self.controller.close()


async def together(count: int, work: Work) -> float:
    """Seconds that `count` pieces of work take, `TASKS` at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(TASKS)))
    return time.perf_counter() - begun


async def put_and_get(who: Bare | Ours, values: Sequence[bytes], size: int, count: int) -> dict[str, float]:
    """Seconds to store `count` values, and to fetch them."""
    put = await together(count, lambda number: who.put(number, values[number % len(values)]))
    return {"PUT": put, "GET": await together(count, lambda number: who.get(number, size))}


@contextlib.asynccontextmanager
async def contestants(url: str, directory: Path) -> AsyncIterator[Sequence[Bare | Ours]]:
    bare, ours = Bare(url), Ours(url)
    await ours.open(directory)
    try:
        yield (bare, ours)
    finally:
        await bare.close()
        await ours.close()


async def measure(url: str, directory: Path, total: int, rounds: int) -> Chart:
    """Rounds of PUT and GET of each size, the contestants taking turns."""
    groups: dict[str, dict[str, list[float]]] = {}
    source = random.Random(1)
    for size, label in VALUES.items():
        values = [source.randbytes(size) for _ in range(min(16, total // size))]
        count = total // size
        rates: dict[tuple[str, str], list[float]] = {}
        async with contestants(url, directory) as both:
            for turn in range(rounds):
                for who in both if turn % 2 == 0 else reversed(both):
                    spent = await put_and_get(who, values, size, count)
                    await who.clear(count)
                    for what, seconds in spent.items():
                        rates.setdefault((what, who.name), []).append(count * size / seconds / MIB)
        for what in ("PUT", "GET"):
            yardstick = statistics.median(rates[what, Bare.name])
            print(f"\n{what} {label}, {TASKS} at a time")
            for who in both:
                seen = rates[what, who.name]
                median = statistics.median(seen)
                spread = f"{min(seen):,.0f} to {max(seen):,.0f}"
                print(f"  {who.name:<20} {median:>8,.0f} MiB/s {median / yardstick:>6.2f}x   ({spread})")
                groups.setdefault(f"{what} {label}", {})[who.name] = seen
    return Chart("Chunks on a Redis server beside the bare client (higher is better)", "MiB/s", groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--repeat", type=int, help="rounds")
    parser.add_argument("--url", help="a server that runs already; it needs about 1 GiB of memory")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    total, rounds = SIZES[arguments.size]
    facts = describe()
    print(facts["line"])
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        url = arguments.url or stack.enter_context(server(Path(place)))
        if url is None:
            print(
                "redis-server is not installed (Debian package redis-server), and no --url is given: nothing to measure"
            )
            keep(arguments.json, facts, [])
            return
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            chart = runner.run(measure(url, Path(place), total, arguments.repeat or rounds))
    keep(arguments.json, facts, [chart])


if __name__ == "__main__":
    main()
