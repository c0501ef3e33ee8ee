"""How costs grow with the number of chunks: opening a store, and the way of one chunk, from 10^4 to 10^7 ids.

The catalog is filled directly, with records of a controller that makes up the bytes of a chunk when it is asked for them: so what is
measured is the store, not a disk. Chunks are looked at in random order, each once, out of all ids.

    python benchmarks/scale.py [--size tiny|full] [--repeat N] [--json FILE]

Columns: *open* is `dstorage.open` until it returns; *memory* how much memory of its own the process takes for it and for everything after
it, chunk contents (1 MiB budget) included; *mapped* the pages of files it sees beside that (the catalog's, mostly: in the kernel's
page cache, given up when somebody needs the room); *info* `store.info(id)`; *page-in* `handle`, `await`, release of a chunk not in memory; *change*
replacing one chunk and committing, with the sync that makes it durable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from charts import Chart, keep
from environment import describe

import dstorage
from dstorage.catalog import Catalog, Changes
from dstorage.controller import (
    Buffer,
    Controller,
    ControllerStatus,
    OpenContext,
    ReadRequest,
    Settings,
    Space,
    WriteRequest,
)
from dstorage.record import Locator, Record

CHUNK_BYTES = 256
POINTS = 2000
CHANGES = 20
FILL_AT_A_TIME = 100_000

COLUMNS = {
    "open": ("open ms", 1e3),
    "info": ("info us", 1e6),
    "page_in": ("page-in us", 1e6),
    "change": ("change ms", 1e3),
    "memory": ("memory MiB", 2**-20),
    "mapped": ("mapped MiB", 2**-20),
}
"""Figure -> how it is headed, and the factor to its unit."""

SIZES = {"tiny": [1000, 10_000], "full": [10_000, 100_000, 1_000_000, 10_000_000]}


class MadeUp(Controller):
    """Bytes that are computed from the id."""

    kind = "made-up"

    def __init__(self) -> None:
        super().__init__("made-up", rank=50)

    @classmethod
    def from_settings(cls, name: str, settings: Settings) -> MadeUp:
        return cls()

    @property
    def status(self) -> ControllerStatus:
        return ControllerStatus.OK

    async def open(self, context: OpenContext) -> None:
        pass

    async def close(self) -> None:
        pass

    def space(self) -> Space:
        return Space(None, 0)

    def read_nowait(self, id: int, locator: Locator) -> Buffer:
        return id.to_bytes(8, "little") * (CHUNK_BYTES // 8)

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        return [self.read_nowait(*request) for request in requests]

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        return [Locator(CHUNK_BYTES)] * len(requests)

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        pass

    async def sync(self) -> None:
        pass


async def fill(path: Path, chunks: int) -> None:
    """A store of so many chunks."""
    async with dstorage.open(path, budget="1M", controllers=[MadeUp()], pressure=False):
        pass
    catalog = Catalog(path / "catalog")
    for start in range(1, chunks + 1, FILL_AT_A_TIME):
        stop = min(start + FILL_AT_A_TIME, chunks + 1)
        catalog.make_room(stop - start)
        catalog.apply(Changes({id: Record(0, 0, Locator(CHUNK_BYTES)) for id in range(start, stop)}))
    catalog.reserve_ids(chunks + 1)
    catalog.close()


async def measure(path: Path, chunks: int) -> dict[str, float]:
    """One process's figures: seconds, and bytes of memory."""
    process = psutil.Process()
    source = random.Random(7)
    wanted = source.sample(range(1, chunks + 1), min(POINTS, chunks // 2))
    own, mapped = resident(process)
    begin = time.perf_counter()
    store = await dstorage.open(
        path, budget="1M", controllers=[MadeUp()], commit_interval=None, pressure=False, tiering=False
    )
    opened = time.perf_counter() - begin
    begin = time.perf_counter()
    for id in wanted:
        store.info(id)
    info = (time.perf_counter() - begin) / len(wanted)
    begin = time.perf_counter()
    for id in wanted:
        with store.handle(id) as handle:
            await handle
    page_in = (time.perf_counter() - begin) / len(wanted)
    times = []
    for id in wanted[:CHANGES]:
        begin = time.perf_counter()
        with store.handle(id) as handle:
            await handle.replace(bytes(CHUNK_BYTES))
        await store.commit()
        times.append(time.perf_counter() - begin)
    own_then, mapped_then = resident(process)
    await store.close()
    return {
        "open": opened,
        "info": info,
        "page_in": page_in,
        "change": statistics.median(times),
        "memory": own_then - own,
        "mapped": mapped_then - mapped,
    }


def resident(process: psutil.Process) -> tuple[int, int]:
    """Bytes of memory that are the process's own, and bytes of files and libraries mapped; all its own where the system does not tell."""
    info = process.memory_info()
    shared: int = getattr(info, "shared", 0)
    return info.rss - shared, shared


def spread(values: list[float]) -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"


def main() -> None:
    """Measure each size in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(asyncio.run(measure(Path(options.measure[0]), int(options.measure[1])))))
        return
    facts = describe()
    print(facts["line"])
    repeat = 2 if options.size == "tiny" else options.repeat
    print(f"median (lowest to highest) of {repeat} processes\n")
    print(f"{'chunks':>12}" + "".join(f"{heading:>26}" for heading, _ in COLUMNS.values()))
    rows: list[dict[str, Any]] = []
    for chunks in SIZES[options.size]:
        with tempfile.TemporaryDirectory(prefix="dstorage-bench-") as folder:
            path = Path(folder) / "store"
            asyncio.run(fill(path, chunks))
            found = [
                json.loads(subprocess.check_output([sys.executable, __file__, "--measure", str(path), str(chunks)]))
                for _ in range(repeat)
            ]
        row = {key: statistics.median(one[key] for one in found) for key in found[0]}
        cells = [spread([one[key] * factor for one in found]) for key, (_, factor) in COLUMNS.items()]
        print(f"{chunks:>12,}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
        rows.append({"chunks": chunks, "median": row, "runs": found})
    charts = [
        Chart(
            "Costs by the number of chunks (lower is better)",
            "microseconds",
            {
                str(row["chunks"]): {
                    f"dstorage, {what}": [run[key] * 1e6 for run in row["runs"]]
                    for what, key in (("open", "open"), ("info", "info"), ("page-in", "page_in"), ("change", "change"))
                }
                for row in rows
            },
            logarithmic=True,
        )
    ]
    keep(options.json, facts, charts, rows=rows)


if __name__ == "__main__":
    main()
