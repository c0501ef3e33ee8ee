"""The blocking store: what a hit costs beside the asynchronous one, and what becomes of hits and misses with 1 to 8 threads.

Threads share one interpreter lock, so hits cannot get faster with more of them; the question is whether they get slower. Misses that the
system's page cache can answer are read in the calling thread, and what is asked for again by one loop for all threads.
Peers: the asynchronous store called through `asyncio.run_coroutine_threadsafe`, as a program
would do without `dstorage.blocking`; a dict behind a lock (hits); diskcache; a plain file read with `os.pread` (misses, all of
them from the system's page cache).

python benchmarks/blocking.py [--size tiny|full] [--repeat N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charts import Chart, keep
from environment import describe

import dstorage
import dstorage.blocking

HIT_BYTES = 4096
HIT_CHUNKS = 1000
MISS_BYTES = 65536
MEMORY_SHARE = 1 / 16
"""Of the chunks that are missed, this share fits into memory."""
THREADS = (1, 2, 4, 8)

Get = Callable[[int], object]
Runs = dict[str, dict[int, list[tuple[float, float]]]]
"""Contender -> threads -> per run: calls per second, and microseconds of CPU per call."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        hits: Calls per run.
        misses: Calls per run.
        chunks: Chunks to miss.
    """

    hits: int
    misses: int
    chunks: int


SIZES = {"tiny": Size(4000, 200, 256), "full": Size(200_000, 4000, 2048)}


# -- contenders: each is opened with `chunks` values of `size` bytes, of which `memory` bytes may be kept --------------------


@contextmanager
def blocking_store(folder: Path, chunks: int, size: int, memory: int) -> Iterator[Get]:
    """`dstorage.blocking`."""
    with dstorage.blocking.open(folder / "blocking", budget=memory, commit_interval=None, pressure=None) as store:
        ids = [store.create(os.urandom(size)).id for _ in range(chunks)]
        store.commit()
        yield lambda key: store.get(ids[key])


@contextmanager
def through_coroutines(folder: Path, chunks: int, size: int, memory: int) -> Iterator[Get]:
    """The asynchronous store on a loop in a thread, and a coroutine per call."""
    import uvloop

    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def opened() -> tuple[dstorage.Store, list[int]]:
        store = await dstorage.open(folder / "threadsafe", budget=memory, commit_interval=None, pressure=None)
        ids = []
        for _ in range(chunks):
            with await store.create(os.urandom(size)) as handle:
                ids.append(handle.id)
        await store.commit()
        return store, ids

    store, ids = asyncio.run_coroutine_threadsafe(opened(), loop).result()

    async def get(key: int) -> memoryview:
        async with store.handle(ids[key]) as data:
            return data

    yield lambda key: asyncio.run_coroutine_threadsafe(get(key), loop).result()
    asyncio.run_coroutine_threadsafe(store.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@contextmanager
def locked_dict(folder: Path, chunks: int, size: int, memory: int) -> Iterator[Get]:
    """The yardstick of hits."""
    items = {key: os.urandom(size) for key in range(chunks)}
    lock = threading.Lock()

    def get(key: int) -> bytes:
        with lock:
            return items[key]

    yield get


@contextmanager
def disk_cache(folder: Path, chunks: int, size: int, memory: int) -> Iterator[Get]:
    """diskcache, where it is installed."""
    import diskcache

    cache: Any = diskcache.Cache(str(folder / "diskcache"))
    for key in range(chunks):
        cache[key] = os.urandom(size)
    yield cache.__getitem__
    cache.close()


@contextmanager
def plain_file(folder: Path, chunks: int, size: int, memory: int) -> Iterator[Get]:
    """The yardstick of misses: nothing is kept, checked or counted."""
    path = folder / "file"
    path.write_bytes(os.urandom(chunks * size))
    fd = os.open(path, os.O_RDONLY)
    yield lambda key: os.pread(fd, size, key * size)
    os.close(fd)


HITS = {
    "dstorage.blocking": (blocking_store, 1),
    "run_coroutine_threadsafe": (through_coroutines, 40),
    "dict behind a lock": (locked_dict, 1),
    "diskcache": (disk_cache, 40),
}
"""Name -> the contender, and the divisor of calls for one that is slow."""
MISSES = {
    "dstorage.blocking": (blocking_store, 1),
    "run_coroutine_threadsafe": (through_coroutines, 1),
    "os.pread of a file": (plain_file, 1),
    "diskcache": (disk_cache, 2),
}


# -- measuring ------------------------------------------------------------------------------------------------------------


def throughput(get: Get, chunks: int, calls: int, threads: int, seed: int) -> tuple[float, float]:
    """Calls per second of so many threads together, each with keys in an order of its own; and what a call costs in
    microseconds of CPU, which a busy machine disturbs less.
    """
    orders = [random.Random(seed + n).choices(range(chunks), k=calls // threads) for n in range(threads)]
    begin = threading.Barrier(threads + 1)

    def work(keys: list[int]) -> None:
        begin.wait()
        for key in keys:
            get(key)

    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(work, keys) for keys in orders]
        while begin.n_waiting < threads:
            time.sleep(0.001)
        # Before the barrier opens: after it the workers may have had the interpreter for a while.
        start, cpu = time.perf_counter(), time.process_time()
        begin.wait()
        for done in working:
            done.result()
        made = threads * (calls // threads)
        return made / (time.perf_counter() - start), (time.process_time() - cpu) / made * 1e6


def scaling(
    contenders: dict[str, Any], folder: Path, chunks: int, size: int, memory: int, calls: int, repeat: int
) -> Runs:
    """Everybody in turn, so that a slow minute hits all."""
    found: Runs = {}
    with ExitStack() as stack:
        gets = {}
        for name, (contender, divisor) in contenders.items():
            try:
                gets[name] = stack.enter_context(contender(folder, chunks, size, memory)), divisor
            except ImportError as error:
                print(f"{name} is left out: {error}")
        for run in range(repeat):
            for threads in THREADS:
                for name, (get, divisor) in gets.items():
                    one = throughput(get, chunks, max(calls // divisor, threads), threads, seed=run)
                    found.setdefault(name, {}).setdefault(threads, []).append(one)
    return found


def per_hit(folder: Path, calls: int, repeat: int) -> dict[str, list[float]]:
    """Nanoseconds per hit in one thread, by each way to make one."""
    found: dict[str, list[float]] = {}

    def note(way: str, begin: int) -> None:
        found.setdefault(way, []).append((time.perf_counter_ns() - begin) / calls)

    async def asynchronous() -> None:
        async with dstorage.open(folder / "async", budget="64M", commit_interval=None, pressure=None) as store:
            ids = []
            for _ in range(HIT_CHUNKS):
                with await store.create(bytes(HIT_BYTES)) as created:
                    ids.append(created.id)
            keys = [ids[number % HIT_CHUNKS] for number in range(calls)]
            for _ in range(repeat):
                begin = time.perf_counter_ns()
                for id in keys:
                    handle = store.handle(id)
                    handle.data  # noqa: B018 - this is what is measured
                    handle.release()
                note("dstorage: handle, data, release", begin)
                begin = time.perf_counter_ns()
                for id in keys:
                    async with store.handle(id):
                        pass
                note("dstorage: async with", begin)

    asyncio.run(asynchronous())
    with dstorage.blocking.open(folder / "sync", budget="64M", commit_interval=None, pressure=None) as store:
        ids = [store.create(bytes(HIT_BYTES)).id for _ in range(HIT_CHUNKS)]
        keys = [ids[number % HIT_CHUNKS] for number in range(calls)]
        for _ in range(repeat):
            begin = time.perf_counter_ns()
            for id in keys:
                store.get(id)
            note("dstorage.blocking: store.get", begin)
            begin = time.perf_counter_ns()
            for id in keys:
                with store.handle(id):
                    pass
            note("dstorage.blocking: with handle", begin)
    return found


# -- showing --------------------------------------------------------------------------------------------------------------


def show_scaling(title: str, found: Runs) -> None:
    """A line per contender: thousands of calls per second (with the spread) and CPU per call by number of threads, and 8 beside 1."""
    heads = "".join(f"{f'{threads} threads':>24}" for threads in THREADS)
    for what, column, scale in (
        ("thousands per second of all threads together", 0, 1e-3),
        ("microseconds of CPU per call", 1, 1.0),
    ):
        print(f"\n{title}, {what} (lowest to highest)\n{'':28}{heads}{'8 / 1':>8}")
        for name, runs in found.items():
            cells, medians = "", []
            for results in runs.values():
                values = [result[column] * scale for result in results]
                low, middle, high = min(values), statistics.median(values), max(values)
                medians.append(middle)
                cells += f"{f'{middle:.4g} ({low:.4g} to {high:.4g})':>24}"
            print(f"{name:28}{cells}{medians[-1] / medians[0]:8.2f}")


def by_threads(title: str, found: Runs) -> Chart:
    """Calls per second by number of threads, as a chart."""
    groups = {
        str(threads): {name: [rate for rate, _ in runs[threads]] for name, runs in found.items()} for threads in THREADS
    }
    return Chart(title, "calls per second", groups, logarithmic=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    repeat = 1 if arguments.size == "tiny" else arguments.repeat
    environment = describe()
    print(environment["line"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hits").mkdir()
        (folder / "misses").mkdir()
        costs = per_hit(folder, size.hits // 2, repeat)
        hits = scaling(HITS, folder / "hits", HIT_CHUNKS, HIT_BYTES, 2**26, size.hits, repeat)
        memory = int(size.chunks * MISS_BYTES * MEMORY_SHARE)
        misses = scaling(MISSES, folder / "misses", size.chunks, MISS_BYTES, memory, size.misses, repeat)
    print(f"\n{'a hit in one thread, ns':36}{'median':>8}{'min':>8}{'max':>8}")
    for way, runs in costs.items():
        print(f"{way:36}{statistics.median(runs):8.0f}{min(runs):8.0f}{max(runs):8.0f}")
    show_scaling(f"Hits on {HIT_BYTES // 1024} KiB", hits)
    show_scaling(f"Reads of {MISS_BYTES // 1024} KiB, {1 - MEMORY_SHARE:.0%} of them misses", misses)
    charts = [
        Chart("A hit in one thread: time per call (lower is better)", "ns", {"hit": costs}),
        by_threads(f"Hits on {HIT_BYTES // 1024} KiB by threads (higher is better)", hits),
        by_threads(f"Reads of {MISS_BYTES // 1024} KiB, mostly misses, by threads (higher is better)", misses),
    ]
    keep(arguments.json, environment, charts)


if __name__ == "__main__":
    main()
