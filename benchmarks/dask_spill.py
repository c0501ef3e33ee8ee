"""Spilling dask's data: `dstorage.integrations.dask.SpillBuffer` beside distributed's own, with the same target of managed memory.

First the buffers by themselves, with values of several sizes, four times as many bytes as the target: filling; reading all in order,
which misses every time; reading at random, skewed to a few; reading each once and deleting it, as a shuffle does. Then a `LocalCluster`
worker in a process of its own, which makes and keeps arrays of several times the target, and reduces them twice. The contenders
take turns, so that what else the machine does meets both.

dstorage's store is part of the target here (a quarter), distributed's files are in the system's page cache, which is nobody's.

A virtual machine's memory that was not used for some seconds may be slow to get: writing 32 MiB to the page cache took 8 or 100 ms, as
its host liked. So before each run a file is written that is larger than what it will spill, and deleted.

python benchmarks/dask_spill.py [--size tiny|medium|full] [--repeat N] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
from charts import Chart, keep
from distributed import Client, LocalCluster
from distributed.spill import SpillBuffer as DistributedSpillBuffer
from environment import describe

from dstorage.integrations.dask import SpillBuffer

KIB, MIB = 2**10, 2**20
EXCESS = 4
"""Bytes of values, in targets."""
MAX_VALUES = 2000
HOT_SHARE = 0.3
"""Of the values; 80 % of the random reads go to them."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        target: Managed memory of a buffer, bytes.
        values: Sizes of values, bytes.
        worker_target: Managed memory of a worker, bytes.
        worker_values: Arrays in the worker.
        worker_value: Bytes of one of these.
    """

    target: int
    values: tuple[int, ...]
    worker_target: int
    worker_values: int
    worker_value: int


SIZES = {
    "tiny": Size(4 * MIB, (64 * KIB, MIB), 16 * MIB, 32, MIB),
    "medium": Size(64 * MIB, (256 * KIB, MIB, 4 * MIB), 96 * MIB, 96, 4 * MIB),
    "full": Size(256 * MIB, (8 * KIB, 64 * KIB, MIB, 8 * MIB, 32 * MIB), 256 * MIB, 128, 8 * MIB),
}


def distributed_buffer(target: int, worker_local_directory: str) -> DistributedSpillBuffer:
    """What a worker makes by itself."""
    return DistributedSpillBuffer(os.path.join(worker_local_directory, "storage"), target)


def dstorage_buffer(target: int, worker_local_directory: str) -> SpillBuffer:
    """Ours, with its defaults."""
    return SpillBuffer(target, worker_local_directory=worker_local_directory)


CONTENDERS: dict[str, Callable[[int, str], Any]] = {"distributed": distributed_buffer, "dstorage": dstorage_buffer}


def warm_up(folder: Path, size: int) -> None:
    """Have the page cache get `size` bytes of memory, and give them back."""
    block = bytes(4 * MIB)
    with (folder / "warm-up").open("xb", buffering=0) as file:
        for _ in range(0, size, len(block)):
            file.write(block)
    Path(file.name).unlink()


Rates = dict[str, dict[str, list[float]]]
"""What was done -> contender -> MB per second of each run."""


def run_buffer(make: Callable[[int, str], Any], target: int, value: int) -> dict[str, float]:
    """MB per second of each workload on one buffer."""
    count = min(EXCESS * target // value, MAX_VALUES)
    target = min(target, count * value // EXCESS)
    base = np.random.default_rng(0).integers(2**62, size=value // 8)
    rng = random.Random(1)
    hot = max(1, int(count * HOT_SHARE))
    drawn = [rng.randrange(hot) if rng.random() < 0.8 else rng.randrange(count) for _ in range(2 * count)]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder), 2 * count * value)
        buffer = make(target, folder)

        def timed(name: str, work: Callable[[int], None], numbers: list[int]) -> None:
            begin = time.perf_counter()
            for number in numbers:
                work(number)
            found[name] = len(numbers) * value / (time.perf_counter() - begin) / 1e6

        def fill(number: int) -> None:
            buffer[number] = base + number

        def read(number: int) -> None:
            if buffer[number][0] != base[0] + number:
                raise AssertionError(f"value {number} is another one")

        def take(number: int) -> None:
            read(number)
            del buffer[number]

        every = list(range(count))
        timed("fill", fill, every)
        timed("read in order", read, every)
        timed("read at random", read, drawn)
        timed("read and delete", take, every)
        buffer.close()
    return found


def chunk(number: int, size: int) -> Any:
    """An array that is quick to make and shrinks under no compression."""
    return np.random.default_rng(number).integers(2**62, size=size // 8)


def peak_rss() -> int:
    """Of the worker's process, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # `getrusage` begins with what the process had that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def run_worker(make: Callable[[int, str], Any], size: Size) -> dict[str, float]:
    """Seconds of each step in a worker, and its peak of resident memory in MiB."""
    found: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"temporary-directory": folder}),
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=1,
            threads_per_worker=2,
            memory_limit=size.worker_target * 8,
            dashboard_address=None,
            data=(make, {"target": size.worker_target}),
        ) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]
    ):
        warm_up(Path(folder), 2 * size.worker_values * size.worker_value)
        begin = time.perf_counter()
        held = client.map(chunk, range(size.worker_values), size=size.worker_value, pure=False)
        sums = []
        for step in ("make and sum", "sum again"):
            sums.append(client.gather(client.map(np.sum, held, pure=False)))
            found[step] = time.perf_counter() - begin
            begin = time.perf_counter()
        if sums[0] != sums[1]:
            raise AssertionError("the second sums are others than the first")
        (peak,) = client.run(peak_rss).values()
        found["peak RSS, MiB"] = peak / MIB
    return found


def show(title: str, table: Rates, better: str) -> None:
    """A line per workload: median (lowest to highest) of each, and ours beside theirs."""
    print(f"\n{title}\n{'':34}" + "".join(f"{name:>26}" for name in CONTENDERS) + f"{better:>26}")
    for what, runs in table.items():
        cells = "".join(
            f"{f'{statistics.median(rates):.4g} ({min(rates):.4g} to {max(rates):.4g})':>26}" for rates in runs.values()
        )
        ratio = statistics.median(runs["dstorage"]) / statistics.median(runs["distributed"])
        print(f"{what:34}{cells}{ratio:26.2f}")


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
    buffers: Rates = defaultdict(lambda: {name: [] for name in CONTENDERS})
    workers: Rates = defaultdict(lambda: {name: [] for name in CONTENDERS})
    for _ in range(repeat):
        for value in size.values:
            for name, make in CONTENDERS.items():
                for what, rate in run_buffer(make, size.target, value).items():
                    label = f"{value // KIB} KiB" if value < MIB else f"{value // MIB} MiB"
                    buffers[f"{label:>8}: {what}"][name].append(rate)
        for name, make in CONTENDERS.items():
            for what, seconds in run_worker(make, size).items():
                workers[what][name].append(seconds)
    show("Buffers by themselves, MB/s", buffers, "ratio (more is better)")
    show("In a worker, seconds", workers, "ratio (less is better)")
    charts = [
        Chart("Spill buffers by themselves (higher is better)", "MB/s", dict(buffers)),
        Chart("In a worker of dask.distributed (lower is better)", "seconds", dict(workers)),
    ]
    keep(arguments.json, environment, charts)


if __name__ == "__main__":
    main()
