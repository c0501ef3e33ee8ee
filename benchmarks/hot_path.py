"""The hot path: what a hit costs, beside a dict and the caches people use; and what a resident chunk costs in memory.

python benchmarks/hot_path.py [--size tiny|full] [--repeat N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from charts import Chart, keep
from environment import describe

import dstorage

KEYS = 1000
VALUE = bytes(4096)


class DictBehindClass:
    """The yardstick: a dict, reached through one Python method."""

    def __init__(self) -> None:
        self.items = dict.fromkeys(range(KEYS), VALUE)

    def get(self, key: int) -> bytes:
        """The value."""
        return self.items[key]


def per_call(work: Callable[[int], None], calls: int) -> float:
    """Nanoseconds per call of a loop that does `calls` of them."""
    begin = time.perf_counter_ns()
    work(calls)
    return (time.perf_counter_ns() - begin) / calls


def peers(folder: Path) -> dict[str, Callable[[int], Any]]:
    """A function for each peer that is installed: key -> value."""
    found: dict[str, Callable[[int], Any]] = {"dict behind a class": DictBehindClass().get}
    try:
        import cachetools

        lru: Any = cachetools.LRUCache(KEYS)
        for key in range(KEYS):
            lru[key] = VALUE
        found["cachetools LRU"] = lru.__getitem__
    except ImportError:
        pass
    try:
        import zict

        buffer: Any = zict.Buffer({}, {}, KEYS * 2)
        for key in range(KEYS):
            buffer[key] = VALUE
        found["zict.Buffer"] = buffer.__getitem__
    except ImportError:
        pass
    import lmdb

    env = lmdb.open(str(folder / "lmdb"), map_size=2**26)
    with env.begin(write=True) as txn:
        for key in range(KEYS):
            txn.put(key.to_bytes(8, "big"), VALUE)

    def get(key: int) -> object:
        with env.begin() as reading:
            return reading.get(key.to_bytes(8, "big"))

    # As a program reads that also writes: a transaction that stays open sees nothing newer and keeps old pages from being used again.
    found["lmdb, a transaction each"] = get
    kept = env.begin()
    found["lmdb, all in one transaction"] = lambda key: kept.get(key.to_bytes(8, "big"))
    try:
        import diskcache

        cache: Any = diskcache.Cache(str(folder / "diskcache"))
        for key in range(KEYS):
            cache[key] = VALUE
        found["diskcache"] = cache.__getitem__
    except ImportError:
        pass
    return found


def loop_over(get: Callable[[int], Any]) -> Callable[[int], None]:
    """A loop of calls with keys in turn."""

    def work(calls: int) -> None:
        for number in range(calls):
            get(number % KEYS)

    return work


async def dstorage_hits(folder: Path, calls: int) -> dict[str, float]:
    """Nanoseconds per hit, in the ways a program can make one."""
    results = {}
    async with dstorage.open(folder / "store", budget="64M", commit_interval=None, pressure=None) as store:
        ids = []
        for _ in range(KEYS):
            with await store.create(VALUE) as created:
                ids.append(created.id)
        first = ids[0]
        begin = time.perf_counter_ns()
        for number in range(calls):
            handle = store.handle(first + number % KEYS)
            handle.data  # noqa: B018 - this is what is measured
            handle.release()
        results["dstorage: handle, data, release"] = (time.perf_counter_ns() - begin) / calls
        begin = time.perf_counter_ns()
        for number in range(calls):
            handle = store.handle(first + number % KEYS)
            await handle
            handle.release()
        results["dstorage: handle, await, release"] = (time.perf_counter_ns() - begin) / calls
        begin = time.perf_counter_ns()
        for number in range(calls):
            async with store.handle(first + number % KEYS):
                pass
        results["dstorage: async with"] = (time.perf_counter_ns() - begin) / calls
    return results


async def bytes_per_resident(folder: Path, count: int) -> float:
    """Python memory of an unreferenced resident chunk beyond its contents (one byte each, with the header of bytes)."""
    async with dstorage.open(folder / "costs", budget="1G", commit_interval=None, pressure=None) as store:
        ids = []
        for number in range(count):
            with await store.create(number.to_bytes(8, "big")) as handle:
                ids.append(handle.id)
        await store.commit()
        store.set_budget(1)
        store.set_budget(2**30)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for id in ids:
            async with store.handle(id):
                pass
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        return used / count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    calls = 2000 if arguments.size == "tiny" else 200_000
    repeat = 2 if arguments.size == "tiny" else arguments.repeat
    environment = describe()
    print(environment["line"])
    runs: dict[str, list[float]] = {}
    run_async: Callable[[Awaitable[Any]], Any] = asyncio.run  # type: ignore[assignment]  # any awaitable made by async def
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = peers(folder)
        for number in range(repeat):
            for peer, get in contenders.items():
                runs.setdefault(peer, []).append(
                    per_call(loop_over(get), calls // 20 if peer == "diskcache" else calls)
                )
            for way, cost in run_async(dstorage_hits(folder / str(number), calls)).items():
                runs.setdefault(way, []).append(cost)
        memory = run_async(bytes_per_resident(folder, 1000 if arguments.size == "tiny" else 50_000))
    yardstick = statistics.median(runs["dict behind a class"])
    print(f"{'':36}{'ns':>8}{'min':>8}{'max':>8}{'x dict':>8}")
    for peer, costs in runs.items():
        median = statistics.median(costs)
        print(f"{peer:36}{median:8.0f}{min(costs):8.0f}{max(costs):8.0f}{median / yardstick:8.1f}")
    print(f"a resident unreferenced chunk costs {memory:.0f} bytes beyond its 8, the header of its bytes included")
    chart = Chart("A hit: time per call (lower is better)", "ns", {"hit": runs}, logarithmic=True)
    keep(arguments.json, environment, [chart], ns_per_hit=runs, bytes_per_resident=memory)


if __name__ == "__main__":
    main()
