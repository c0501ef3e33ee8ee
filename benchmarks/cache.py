"""The cache beside diskcache, zict and cachetools: set, hit, miss, and reading what is not in memory.

python benchmarks/cache.py [--size tiny|full] [--repeat N] [--path DIR] [--json FILE]

Every contestant sets each key once, gets each (a hit), asks for as many that are not there (a miss), and, where it keeps values on
disk, gets each again when its memory of them was taken away (a cold hit; the kernel's page cache is left alone). Values are random
bytes. Figures are microseconds per call, for one thread and one task.

* *dstorage* writes behind and makes everything durable together, every few seconds; *diskcache* writes each value when it is set, and leaves
  it to the kernel when it is durable. "finish" is what the last commit and closing take after all the sets, per value, so that nobody's
  bill is left open.
* *zict* is the mapping that dask spills with: an LRU in memory before files. *cachetools* has memory only: it is there to show what a hit
  in a dict costs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from charts import Chart, keep
from environment import describe

import dstorage

KIB, MIB = 2**10, 2**20
SIZES = {"tiny": {KIB: 50, 64 * KIB: 10, MIB: 3}, "full": {KIB: 5000, 64 * KIB: 1000, MIB: 150}}
"""Bytes of a value -> how many of them."""
BUDGET = 512 * MIB
COLUMNS = ("set", "hit", "miss", "cold hit", "finish")
Figures = dict[str, float]


class Contestant(Protocol):
    """A mapping to be measured."""

    def set(self, key: int, value: bytes) -> object:
        """Keep a value."""

    def get(self, key: int) -> object:
        """The value, or None."""

    def cool(self) -> bool:
        """Let go of the values in memory; False if they are nowhere else."""

    def close(self) -> None:
        """Finish what `set` began."""


class Ours:
    """`dstorage.Cache`."""

    def __init__(self, folder: Path) -> None:
        self._cache = dstorage.Cache(folder, budget=BUDGET, size_limit="1T", pressure=False)
        self.set = self._cache.set
        self.get = self._cache.get

    def cool(self) -> bool:
        self._cache.commit()
        self._cache.store.set_budget(1)
        self._cache.store.set_budget(BUDGET)
        return True

    def close(self) -> None:
        self._cache.close()


class Diskcache:
    """diskcache with its defaults, but for the limit."""

    def __init__(self, folder: Path) -> None:
        import diskcache

        self._cache = diskcache.Cache(str(folder), size_limit=2**40)
        self.set = self._cache.set
        self.get = self._cache.get

    def cool(self) -> bool:
        return True

    def close(self) -> None:
        self._cache.close()


class Zict:
    """An LRU in memory before files; all values fit in memory, as with ours."""

    def __init__(self, folder: Path) -> None:
        import zict

        self._files = zict.File(str(folder))
        self._buffer = zict.Buffer({}, self._files, n=BUDGET, weight=lambda key, value: len(value))

    def set(self, key: int, value: bytes) -> None:
        self._buffer[str(key)] = value

    def get(self, key: int) -> object:
        return self._buffer.get(str(key))

    def cool(self) -> bool:
        for key in list(self._buffer.fast):
            self._buffer.fast.evict(key)
        return True

    def close(self) -> None:
        self._buffer.close()


class Cachetools:
    """An LRU in memory, and nothing else."""

    def __init__(self, folder: Path) -> None:
        import cachetools

        self._cache: Any = cachetools.LRUCache(BUDGET, len)
        self.get = self._cache.get

    def set(self, key: int, value: bytes) -> None:
        self._cache[key] = value

    def cool(self) -> bool:
        return False

    def close(self) -> None:
        self._cache.clear()


CONTESTANTS: dict[str, Callable[[Path], Contestant]] = {
    "dstorage.Cache": Ours,
    "diskcache": Diskcache,
    "zict": Zict,
    "cachetools": Cachetools,
}


def measure(make: Callable[[Path], Contestant], folder: Path, values: list[bytes]) -> Figures:
    """Microseconds per call of one contestant."""
    contestant = make(folder)
    keys = range(len(values))
    clock = time.perf_counter
    begun = clock()
    for key in keys:
        contestant.set(key, values[key])
    spent = clock() - begun
    figures = {"hit": timed(keys, lambda key: contestant.get(key)), "miss": 0.0}
    figures["miss"] = timed(keys, lambda key: contestant.get(-1 - key))
    begun = clock()
    cold = contestant.cool()
    finish = clock() - begun
    if cold:
        figures["cold hit"] = timed(keys, lambda key: contestant.get(key))
    begun = clock()
    contestant.close()
    finish += clock() - begun
    return {"set": spent / len(values) * 1e6, **figures, "finish": finish / len(values) * 1e6}


def timed(keys: range, call: Callable[[int], object]) -> float:
    """Microseconds per call, without what the loop itself takes."""
    begun = time.perf_counter()
    for key in keys:
        call(key)
    spent = time.perf_counter() - begun
    begun = time.perf_counter()
    for key in keys:
        _nothing(key)
    return max(spent - (time.perf_counter() - begun), 0.0) / len(keys) * 1e6


def _nothing(key: int) -> None:
    """The loop and the call, to be subtracted."""


async def measure_coroutines(folder: Path, values: list[bytes]) -> Figures:
    """The same for `dstorage.AsyncCache`."""

    async def timed(call: Callable[[int], Awaitable[object]]) -> float:
        begun = time.perf_counter()
        for key in range(len(values)):
            await call(key)
        return (time.perf_counter() - begun) / len(values) * 1e6

    cache = await dstorage.AsyncCache(folder, budget=BUDGET, size_limit="1T", pressure=False)
    spent = await timed(lambda key: cache.set(key, values[key]))
    figures = {"hit": await timed(cache.get), "miss": await timed(lambda key: cache.get(-1 - key))}
    begun = time.perf_counter()
    await cache.commit()
    cache.store.set_budget(1)
    cache.store.set_budget(BUDGET)
    finish = time.perf_counter() - begun
    figures["cold hit"] = await timed(cache.get)
    begun = time.perf_counter()
    await cache.close()
    finish += time.perf_counter() - begun
    return {"set": spent, **figures, "finish": finish / len(values) * 1e6}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--repeat", type=int, default=5, help="rounds; medians are shown")
    parser.add_argument("--path", type=Path, default=None, help="directory on the drive to measure")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    options = parser.parse_args()
    facts = describe()
    print(facts["line"])
    charts = []
    for size, count in SIZES[options.size].items():
        source = random.Random(size)
        values = [source.randbytes(size) for _ in range(count)]
        seen: dict[str, list[Figures]] = {}
        for _ in range(options.repeat):
            for name in ("dstorage.AsyncCache", *CONTESTANTS):
                with tempfile.TemporaryDirectory(prefix="dstorage-bench-", dir=options.path) as folder:
                    try:
                        if name == "dstorage.AsyncCache":
                            figures = asyncio.run(measure_coroutines(Path(folder), values))
                        else:
                            figures = measure(CONTESTANTS[name], Path(folder), values)
                    except ImportError:
                        continue
                seen.setdefault(name, []).append(figures)
        groups: dict[str, dict[str, list[float]]] = {what: {} for what in COLUMNS}
        title = f"Values of {size // KIB} KiB: time per call (lower is better)"
        charts.append(Chart(title, "microseconds", groups, logarithmic=True))
        print(f"\n{count} values of {size // KIB} KiB: microseconds per call, median (lowest to highest)")
        print(f"  {'':<20}" + "".join(f"{what:>29}" for what in COLUMNS))
        for name, rounds in seen.items():
            cells = []
            for what in COLUMNS:
                figures_seen = [figures[what] for figures in rounds if what in figures]
                if not figures_seen:
                    cells.append("")
                    continue
                median, low, high = statistics.median(figures_seen), min(figures_seen), max(figures_seen)
                cells.append(f"{median:,.1f} ({low:,.1f} to {high:,.1f})")
                groups[what].setdefault(name, []).extend(figures_seen)
            print(f"  {name:<20}" + "".join(f"{cell:>29}" for cell in cells))
    keep(options.json, facts, charts)


if __name__ == "__main__":
    main()
