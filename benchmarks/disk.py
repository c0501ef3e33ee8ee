"""The disk controller alone, beside the system calls it is made of, and its cold reads beside other stores.

python benchmarks/disk.py [--size tiny|full] [--repeat N] [--path DIR] [--json FILE]

"Cold" means that the files were synced and dropped from the page cache (POSIX_FADV_DONTNEED) before each round; what lies
below the kernel (a drive's or a hypervisor's cache) is not ours to drop and serves everybody alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dstorage_controllers.disk import DiskController
from environment import describe

from dstorage.controller import OpenContext, ReadRequest, WriteRequest
from dstorage.record import Locator

MIB = 2**20
LARGE = MIB
SMALL = 4096
CONCURRENCY = 16

SIZES = {"tiny": (16, 512), "full": (512, 16384)}
"""Number of 1 MiB chunks and of 4 KiB chunks."""


def drop(directory: Path) -> None:
    """Make all files below a directory cold."""
    for path in directory.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


class Pager:
    """Asks a controller as a store does: at once if it can, else all of one turn of the loop in a batch."""

    def __init__(self, controller: DiskController) -> None:
        self._controller = controller
        self._waiting: list[tuple[ReadRequest, asyncio.Future[object]]] = []

    async def get(self, id: int, locator: Locator) -> object:
        answer = self._controller.read_nowait(id, locator)
        if answer is not None:
            return answer
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((ReadRequest(id, locator), future))
        return await future

    def _send(self) -> None:
        batch, self._waiting = self._waiting, []
        task = asyncio.get_running_loop().create_task(self._read(batch))
        task.add_done_callback(lambda task: task.result())

    async def _read(self, batch: list[tuple[ReadRequest, asyncio.Future[object]]]) -> None:
        answers = await self._controller.read([request for request, _ in batch])
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)


class Bench:
    """Chunks on a controller, the same bytes in one plain file, and rounds over both."""

    def __init__(self, directory: Path, large: int, small: int, repeat: int) -> None:
        self.directory = directory
        self.repeat = repeat
        self.large = large
        self.small = small
        self.results: list[dict[str, Any]] = []
        source = random.Random(1)
        self.blob = source.randbytes(LARGE)
        self.values = [source.randbytes(SMALL) for _ in range(64)]
        self.order = source.sample(range(small), min(small, 8000))

    def report(self, what: str, rates: dict[str, list[float]], unit: str) -> None:
        """Print and keep the medians and the spread of one comparison; the first name is the yardstick."""
        yardstick = statistics.median(next(iter(rates.values())))
        print(f"\n{what}")
        for name, seen in rates.items():
            median = statistics.median(seen)
            spread = f"{min(seen):,.2f} to {max(seen):,.2f}"
            print(f"  {name:<44} {median:>12,.2f} {unit:<9} {median / yardstick:>6.2f}x   ({spread})")
            self.results.append(
                {"what": what, "who": name, "unit": unit, "median": median, "min": min(seen), "max": max(seen)}
            )

    async def rounds(
        self, work: int, contestants: Mapping[str, Callable[[], Awaitable[None]]], *, cold: bool
    ) -> dict[str, list[float]]:
        """Rates (work per second) of several repeats, the contestants taking turns."""
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(self.repeat):
            for name, contestant in contestants.items():
                if cold:
                    drop(self.directory)
                begun = time.perf_counter()
                await contestant()
                rates[name].append(work / (time.perf_counter() - begun))
        return rates

    async def run(self) -> None:
        controller = DiskController()
        await controller.open(OpenContext(uuid.uuid4(), 0, self.directory / "ours"))
        try:
            await self.writes(controller)
            await self.large_reads(controller)
            await self.small_reads(controller)
        finally:
            await controller.close()

    async def writes(self, controller: DiskController) -> None:
        plain = self.directory / "plain-writes"

        async def raw() -> None:
            fd = os.open(plain, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            for first in range(0, self.large, 4):
                os.pwritev(fd, [self.blob] * 4, first * LARGE)
            os.fdatasync(fd)
            os.close(fd)

        async def ours() -> None:
            places: list[tuple[int, Locator]] = []
            for first in range(0, self.large, 4):
                places += await put(controller, first + 1, [self.blob] * 4)
            await controller.sync()
            await controller.discard(places)

        async def ours_small() -> None:
            places: list[tuple[int, Locator]] = []
            for first in range(0, self.small, 256):
                places += await put(controller, first + 1, [self.values[0]] * 256)
            await controller.sync()
            await controller.discard(places)

        # Memory that the machine never used before is slow to get, once: not what is to be measured.
        await raw()
        await ours()
        rates = await self.rounds(
            self.large * LARGE, {"os.pwritev, 4 MiB a call, fdatasync": raw, "dstorage, batches of 4": ours}, cold=False
        )
        plain.unlink()
        self.report("write 1 MiB chunks, durably", scaled(rates, 1e9), "GB/s")
        rates = await self.rounds(self.small, {"dstorage, batches of 256": ours_small}, cold=False)
        self.report("write 4 KiB chunks, durably", rates, "chunks/s")

    async def large_reads(self, controller: DiskController) -> None:
        places: list[tuple[int, Locator]] = []
        plain = self.directory / "plain"
        with plain.open("wb") as file:
            for first in range(0, self.large, 4):
                places += await put(controller, first + 1, [self.blob] * 4)
                file.write(self.blob * 4)
        await controller.sync()
        fd = os.open(plain, os.O_RDONLY)
        pager = Pager(controller)
        reused = bytearray(LARGE)
        shuffled = random.Random(2).sample(places, len(places))

        async def raw_reused() -> None:
            for number in range(self.large):
                os.preadv(fd, [reused], number * LARGE)

        async def raw_fresh() -> None:
            for number in range(self.large):
                os.preadv(fd, [bytearray(LARGE)], number * LARGE)

        async def in_sequence() -> None:
            for id, place in places:
                await pager.get(id, place)

        async def raw_shuffled() -> None:
            for id, _ in shuffled:
                os.preadv(fd, [bytearray(LARGE)], (id - 1) * LARGE)

        async def at_random() -> None:
            left = iter(shuffled)

            async def reader() -> None:
                for id, place in left:
                    await pager.get(id, place)

            await asyncio.gather(*(reader() for _ in range(CONCURRENCY)))

        contestants = {
            "os.preadv, a fresh bytearray each": raw_fresh,
            "os.preadv, one buffer reused": raw_reused,
            "dstorage, checksum included": in_sequence,
        }
        for contestant in contestants.values():
            await contestant()
        rates = await self.rounds(self.large * LARGE, contestants, cold=False)
        self.report("read 1 MiB chunks in sequence, page-cached", scaled(rates, 1e9), "GB/s")
        rates = await self.rounds(self.large * LARGE, contestants, cold=True)
        self.report("read 1 MiB chunks in sequence, cold", scaled(rates, 1e9), "GB/s")
        rates = await self.rounds(
            self.large * LARGE,
            {"os.preadv, one after the other": raw_shuffled, f"dstorage, {CONCURRENCY} at once": at_random},
            cold=True,
        )
        self.report("read 1 MiB chunks in random order, cold", scaled(rates, 1e9), "GB/s")
        os.close(fd)
        plain.unlink()
        await controller.discard(places)

    async def small_reads(self, controller: DiskController) -> None:
        places: list[tuple[int, Locator]] = []
        values = [self.values[number % len(self.values)] for number in range(self.small)]
        for first in range(0, self.small, 256):
            places += await put(controller, first + 1, values[first : first + 256])
        await controller.sync()
        pager = Pager(controller)
        plain = self.directory / "plain"
        plain.write_bytes(b"".join(values))

        async def ours() -> None:
            left = iter(self.order)

            async def reader() -> None:
                for number in left:
                    await pager.get(*places[number])

            await asyncio.gather(*(reader() for _ in range(CONCURRENCY)))

        async def raw() -> None:
            fd = os.open(plain, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            await threaded(lambda number: os.pread(fd, SMALL, number * SMALL), self.order)
            os.close(fd)

        contestants: dict[str, Callable[[], Awaitable[None]]]
        contestants = {f"os.pread, {CONCURRENCY} threads": raw, f"dstorage, {CONCURRENCY} at once": ours}
        for name, fill in PEERS.items():
            try:
                contestants[f"{name}, {CONCURRENCY} threads"] = peer(fill, self.directory / name, values, self.order)
            except ImportError:
                print(f"  ({name} is not installed: left out)")
        rates = await self.rounds(len(self.order), contestants, cold=True)
        self.report("read 4 KiB chunks in random order, cold", rates, "chunks/s")


async def put(controller: DiskController, first: int, values: Sequence[bytes]) -> list[tuple[int, Locator]]:
    """Write a batch that must be taken whole."""
    answers = await controller.write([WriteRequest(first + at, value) for at, value in enumerate(values)])
    places: list[tuple[int, Locator]] = []
    for at, answer in enumerate(answers):
        if isinstance(answer, Exception):
            raise answer
        places.append((first + at, answer))
    return places


def scaled(rates: dict[str, list[float]], by: float) -> dict[str, list[float]]:
    return {name: [rate / by for rate in seen] for name, seen in rates.items()}


async def threaded(get: Callable[[int], object], order: Sequence[int]) -> None:
    """All of `order` by as many threads as we have requests at once."""

    def share(first: int) -> None:
        for number in order[first::CONCURRENCY]:
            get(number)

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        list(pool.map(share, range(CONCURRENCY)))


# -- peers: fill a store once, and give a function that opens it and returns `get` ------------------------------------

Opened = tuple[Callable[[int], object], Callable[[], object]]


def fill_lmdb(directory: Path, values: Sequence[bytes]) -> Callable[[], Opened]:
    import lmdb

    def environment() -> lmdb.Environment:
        return lmdb.open(str(directory), map_size=2**32, readahead=False, max_readers=64)

    with environment() as env, env.begin(write=True) as transaction:
        for number, value in enumerate(values):
            transaction.put(number.to_bytes(8, "big"), value)

    def opened() -> Opened:
        env = environment()

        def get(number: int) -> object:
            with env.begin() as transaction:
                return transaction.get(number.to_bytes(8, "big"))

        return get, env.close

    return opened


def fill_sqlite(directory: Path, values: Sequence[bytes]) -> Callable[[], Opened]:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(directory / "values.db", check_same_thread=False)

    with connect() as connection:
        connection.execute("create table chunks (id integer primary key, value blob)")
        connection.executemany("insert into chunks values (?, ?)", enumerate(values))
    connection.close()

    def opened() -> Opened:
        # One connection for each thread: a shared one would let only one of them read.
        free = [connect() for _ in range(CONCURRENCY)]
        every = list(free)

        def get(number: int) -> object:
            connection = free.pop()
            value = connection.execute("select value from chunks where id = ?", (number,)).fetchone()[0]
            free.append(connection)
            return value

        def close() -> None:
            for connection in every:
                connection.close()

        return get, close

    return opened


def fill_diskcache(directory: Path, values: Sequence[bytes]) -> Callable[[], Opened]:
    import diskcache

    with diskcache.Cache(str(directory), eviction_policy="none", size_limit=2**40) as cache, cache.transact():
        for number, value in enumerate(values):
            cache.set(number, value)

    def opened() -> Opened:
        cache = diskcache.Cache(str(directory))
        return cache.get, cache.close

    return opened


def fill_rocksdict(directory: Path, values: Sequence[bytes]) -> Callable[[], Opened]:
    import rocksdict

    store = rocksdict.Rdict(str(directory))
    for number, value in enumerate(values):
        store[number] = value
    store.flush()
    store.close()

    def opened() -> Opened:
        store = rocksdict.Rdict(str(directory))
        return store.__getitem__, store.close

    return opened


def fill_zict(directory: Path, values: Sequence[bytes]) -> Callable[[], Opened]:
    import zict

    store = zict.File(str(directory))
    for number, value in enumerate(values):
        store[str(number)] = value

    def opened() -> Opened:
        return lambda number: store[str(number)], lambda: None

    return opened


PEERS = {
    "lmdb": fill_lmdb,
    "sqlite3": fill_sqlite,
    "rocksdict": fill_rocksdict,
    "diskcache": fill_diskcache,
    "zict.File": fill_zict,
}


def peer(
    fill: Callable[[Path, Sequence[bytes]], Callable[[], Opened]],
    directory: Path,
    values: Sequence[bytes],
    order: Sequence[int],
) -> Callable[[], Awaitable[None]]:
    directory.mkdir()
    opened = fill(directory, values)

    async def contestant() -> None:
        get, close = opened()
        await threaded(get, order)
        close()

    return contestant


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--repeat", type=int, default=5, help="rounds; medians are shown")
    parser.add_argument("--path", type=Path, default=None, help="directory on the drive to measure")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    options = parser.parse_args()
    facts = describe()
    print(facts["line"])
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        print("(uvloop is not installed: the standard loop)")
    with tempfile.TemporaryDirectory(prefix="dstorage-bench-", dir=options.path) as directory:
        large, small = SIZES[options.size]
        bench = Bench(Path(directory), large, small, options.repeat)
        run(bench.run())
    if options.json is not None:
        options.json.write_text(json.dumps({"environment": facts, "results": bench.results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
