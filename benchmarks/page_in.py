"""Page-in and writing through the whole store, beside the system calls they are made of; cold random reads beside other stores.

python benchmarks/page_in.py [--size tiny|full] [--repeat N] [--path DIR] [--json FILE]

The budget is a few chunks, so that every chunk asked for comes from the disk (or the kernel's page cache), is checked, and
leaves again.

"Cold" means that the files were synced and dropped from the page cache (POSIX_FADV_DONTNEED) before each round; what lies
below the kernel (a drive's or a hypervisor's cache) is not ours to drop and serves everybody alike.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sqlite3
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash
from charts import Chart, keep
from dstorage_controllers.disk import DiskController
from environment import describe

import dstorage

MIB = 2**20
LARGE = MIB
SMALL = 4096
CONCURRENCY = 16

BUDGET = 16 * MIB
BESIDE = 1000
"""Reads beside a thread that computes, of many more chunks."""
SIZES = {"tiny": (32, 8192, 256), "full": (512, 2**17, 8000)}
"""Number of 1 MiB chunks; of 4 KiB chunks, and how many of these are read: so few of so many that reading ahead is of no
use to anybody."""


def drop(directory: Path) -> None:
    """Make all files below a directory cold."""
    for path in directory.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


class Bench:
    """Chunks on a controller, the same bytes in one plain file, and rounds over both."""

    def __init__(self, directory: Path, large: int, small: int, picked: int, repeat: int) -> None:
        self.directory = directory
        self.repeat = repeat
        self.large = large
        self.small = small
        self.charts: list[Chart] = []
        source = random.Random(1)
        self.blob = source.randbytes(LARGE)
        self.values = [source.randbytes(SMALL) for _ in range(64)]
        self.order = source.sample(range(small), picked)

    def report(self, what: str, rates: dict[str, list[float]], unit: str) -> None:
        """Print and keep the medians and the spread of one comparison; the first name is the yardstick."""
        yardstick = statistics.median(next(iter(rates.values())))
        print(f"\n{what}")
        self.charts.append(Chart(f"{what} (higher is better)", unit, {what: rates}))
        for name, seen in rates.items():
            median = statistics.median(seen)
            spread = f"{min(seen):,.2f} to {max(seen):,.2f}"
            print(f"  {name:<44} {median:>12,.2f} {unit:<9} {median / yardstick:>6.2f}x   ({spread})")

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
        async with await dstorage.open(
            self.directory / "ours", budget=BUDGET, pressure=None, commit_interval=None, controllers=[DiskController()]
        ) as store:
            await self.writes(store)
            await self.large_reads(store)
            await self.small_reads(store)
            await self.reads_beside_a_thread(store)

    async def writes(self, store: dstorage.Store) -> None:
        plain = self.directory / "plain-writes"

        async def raw() -> None:
            fd = os.open(plain, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            for first in range(0, self.large, 4):
                os.pwritev(fd, [self.blob] * 4, first * LARGE)
            os.fdatasync(fd)
            os.close(fd)

        async def ours() -> None:
            delete(store, await fill(store, [self.blob] * self.large))

        async def ours_small() -> None:
            delete(store, await fill(store, self.values * (self.small // len(self.values))))

        # Memory that the machine never used before is slow to get, once: not what is to be measured.
        await raw()
        await ours()
        contestants = {"os.pwritev, 4 MiB a call, fdatasync": raw, "dstorage, create and commit": ours}
        rates = await self.rounds(self.large * LARGE, contestants, cold=False)
        plain.unlink()
        self.report("write 1 MiB chunks, durably", scaled(rates, 1e9), "GB/s")
        rates = await self.rounds(self.small, {"dstorage, create and commit": ours_small}, cold=False)
        self.report("write 4 KiB chunks, durably", rates, "chunks/s")

    async def large_reads(self, store: dstorage.Store) -> None:
        ids = await fill(store, [self.blob] * self.large)
        plain = self.directory / "plain"
        with plain.open("wb") as file:
            for _ in range(self.large):
                file.write(self.blob)
        fd = os.open(plain, os.O_RDONLY)
        reused = bytearray(LARGE)
        shuffled = random.Random(2).sample(range(self.large), self.large)

        async def raw_reused() -> None:
            for number in range(self.large):
                os.preadv(fd, [reused], number * LARGE)

        async def raw_fresh() -> None:
            for number in range(self.large):
                os.preadv(fd, [bytearray(LARGE)], number * LARGE)

        async def raw_kept() -> None:
            # As a cache of the same budget would: what was freed last is not what is written next.
            kept = deque([bytearray(0)], maxlen=BUDGET // LARGE)
            for number in range(self.large):
                kept.append(bytearray(LARGE))
                os.preadv(fd, [kept[-1]], number * LARGE)

        async def raw_checked() -> None:
            # What nobody who verifies what he reads can be faster than.
            kept = deque([bytearray(0)], maxlen=BUDGET // LARGE)
            for number in range(self.large):
                kept.append(bytearray(LARGE))
                os.preadv(fd, [kept[-1]], number * LARGE)
                xxhash.xxh3_64_intdigest(kept[-1])

        async def one_by_one() -> None:
            for id in ids:
                async with store.handle(id):
                    pass

        async def in_bulk() -> None:
            async for _ in store.resolve_each(ids):
                pass

        async def raw_shuffled() -> None:
            for number in shuffled:
                os.preadv(fd, [bytearray(LARGE)], number * LARGE)

        async def at_random() -> None:
            await at_once(store, [ids[number] for number in shuffled])

        contestants = {
            "os.preadv, a fresh bytearray each": raw_fresh,
            "os.preadv, one buffer reused": raw_reused,
            f"os.preadv, the last {BUDGET // LARGE} kept": raw_kept,
            f"os.preadv, the last {BUDGET // LARGE} kept, each hashed": raw_checked,
            "dstorage, await one after the other": one_by_one,
            "dstorage, resolve_each": in_bulk,
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
        delete(store, ids)
        await store.commit()

    async def small_reads(self, store: dstorage.Store) -> None:
        values = [self.values[number % len(self.values)] for number in range(self.small)]
        ids = await fill(store, values)
        plain = self.directory / "plain"
        plain.write_bytes(b"".join(values))
        wanted = [ids[number] for number in self.order]

        async def ours() -> None:
            await at_once(store, wanted)

        async def ours_in_bulk() -> None:
            async for _ in store.resolve_each(wanted):
                pass

        async def raw() -> None:
            fd = os.open(plain, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            await threaded(lambda number: os.pread(fd, SMALL, number * SMALL), self.order)
            os.close(fd)

        contestants: dict[str, Callable[[], Awaitable[None]]]
        contestants = {
            f"os.pread, {CONCURRENCY} threads": raw,
            f"dstorage, {CONCURRENCY} at once": ours,
            "dstorage, resolve_each": ours_in_bulk,
        }
        for name, filler in PEERS.items():
            try:
                contestants[f"{name}, {CONCURRENCY} threads"] = peer(filler, self.directory / name, values, self.order)
            except ImportError:
                print(f"  ({name} is not installed: left out)")
        rates = await self.rounds(len(self.order), contestants, cold=True)
        self.report("read 4 KiB chunks in random order, cold", rates, "chunks/s")

    async def reads_beside_a_thread(self, store: dstorage.Store) -> None:
        """Of page-cached chunks, while another thread of the process computes, as in programs with executors."""
        values = [self.values[number % len(self.values)] for number in range(self.small // 4)]
        ids = await fill(store, values)
        plain = self.directory / "plain"
        plain.write_bytes(b"".join(values))
        source = random.Random(3)

        async def raw() -> None:
            fd = os.open(plain, os.O_RDONLY)
            for number in source.sample(range(len(ids)), BESIDE):
                os.pread(fd, SMALL, number * SMALL)
            os.close(fd)

        async def ours() -> None:
            store.set_budget(1)
            store.set_budget(BUDGET)
            for number in source.sample(range(len(ids)), BESIDE):
                async with store.handle(ids[number]):
                    pass

        def beside(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
            async def both() -> None:
                over = threading.Event()

                def compute() -> None:
                    while not over.is_set():
                        sum(range(1000))

                thread = threading.Thread(target=compute)
                thread.start()
                try:
                    await work()
                finally:
                    over.set()
                    thread.join()

            return both

        contestants = {
            "os.pread": raw,
            "dstorage, one after the other": ours,
            "os.pread beside a thread that computes": beside(raw),
            "dstorage beside a thread that computes": beside(ours),
        }
        rates = await self.rounds(BESIDE, contestants, cold=False)
        self.report("read 4 KiB chunks in random order, page-cached", rates, "chunks/s")


async def fill(store: dstorage.Store, values: Sequence[bytes]) -> list[int]:
    """Make a chunk of each value, durably, and leave none in memory."""
    ids = []
    for value in values:
        with await store.create(value) as handle:
            ids.append(handle.id)
    await store.commit()
    store.set_budget(1)
    store.set_budget(BUDGET)
    return ids


def delete(store: dstorage.Store, ids: Sequence[int]) -> None:
    for id in ids:
        with store.handle(id) as handle:
            handle.delete()


async def at_once(store: dstorage.Store, ids: Sequence[int]) -> None:
    """Page in chunks by as many tasks as there may be requests at once."""
    left = iter(ids)

    async def reader() -> None:
        for id in left:
            async with store.handle(id):
                pass

    await asyncio.gather(*(reader() for _ in range(CONCURRENCY)))


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
        bench = Bench(Path(directory), *SIZES[options.size], options.repeat)
        run(bench.run())
    keep(options.json, facts, bench.charts)


if __name__ == "__main__":
    main()
