"""A producer faster than the disk: what it does to memory, with a share of the budget that may be dirty and without.

A task creates chunks as fast as it is let. The disk is a disk controller whose writes are held to a rate (`TierRule.write_rate`), so that
the producer is faster on any machine. The resident memory of the process is sampled from outside; beside it runs what programs do by
hand: a queue of buffers that a thread writes to a file at the same rate.

    python benchmarks/producer.py [--size tiny|full] [--repeat N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from charts import Chart, keep
from dstorage_controllers.disk import DiskController
from environment import describe

import dstorage

MIB = 2**20
SIZES = {
    "tiny": {"chunk": 64 * 1024, "data": 8 * MIB, "budget": 2 * MIB, "rate": 16 * MIB},
    "full": {"chunk": MIB, "data": 1024 * MIB, "budget": 64 * MIB, "rate": 128 * MIB},
}


def ours(share: float) -> Callable[[Path, dict[str, int]], None]:
    """dstorage with a share of the budget that may be dirty."""

    async def produce(folder: Path, size: dict[str, int]) -> None:
        rules = {"disk": dstorage.TierRule(write_rate=size["rate"])}
        async with dstorage.open(
            folder / "store",
            budget=size["budget"],
            dirty_share=share,
            controllers=[DiskController()],
            tiers=rules,
            pressure=False,
        ) as store:
            for number in range(size["data"] // size["chunk"]):
                data = number.to_bytes(8, "little") * (size["chunk"] // 8)
                with await store.create(data, wait=60):
                    pass

    return lambda folder, size: asyncio.run(produce(folder, size))


def by_hand(folder: Path, size: dict[str, int]) -> None:
    """A thread that writes what a queue without limit brings."""
    waiting: queue.Queue[bytes | None] = queue.Queue()

    def write() -> None:
        begin, written = time.monotonic(), 0
        with (folder / "file").open("wb") as file:
            while (data := waiting.get()) is not None:
                file.write(data)
                written += len(data)
                time.sleep(max(0.0, begin + written / size["rate"] - time.monotonic()))

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(size["data"] // size["chunk"]):
        waiting.put(number.to_bytes(8, "little") * (size["chunk"] // 8))
    waiting.put(None)
    writer.join()


CONTENDERS: dict[str, Callable[[Path, dict[str, int]], None]] = {
    "dstorage, half may be dirty": ours(0.5),
    "dstorage, an eighth": ours(0.125),
    "a queue and a thread": by_hand,
}


def _run(name: str, folder: str, size: dict[str, int], parent: Connection) -> None:
    parent.send("imported")
    parent.recv()
    CONTENDERS[name](Path(folder), size)


def watch(name: str, size: dict[str, int]) -> dict[str, float]:
    """One run in a process of its own: how long it took, and its resident memory before and at most, seen from outside."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="dstorage-bench-") as folder:
        here, there = context.Pipe()
        child = context.Process(target=_run, args=(name, folder, size, there))
        child.start()
        here.recv()
        process = psutil.Process(child.pid)
        first = peak = process.memory_info().rss
        begin = time.monotonic()
        here.send("go")
        while child.is_alive():
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.01)
        child.join()
        if child.exitcode:
            raise SystemExit(f"{name} failed")
        seconds = time.monotonic() - begin
    return {"seconds": seconds, "rate": size["data"] / seconds, "peak_rss": peak, "start_rss": first}


def spread(values: list[float], scale: float = 1.0) -> str:
    """Median (lowest to highest)."""
    low, middle, high = (value / scale for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:,.1f} ({low:,.1f} to {high:,.1f})"


def main() -> None:
    """Each contender in a process of its own, watched from outside; round after round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = SIZES[options.size]
    rounds = 2 if options.size == "tiny" else options.repeat
    facts = describe()
    print(facts["line"])
    print(
        f"{size['data'] // MIB} MiB in chunks of {size['chunk'] // 1024} KiB, budget {size['budget'] // MIB} MiB, "
        f"the disk takes {size['rate'] // MIB} MiB/s; median (lowest to highest) of {rounds} rounds\n"
    )
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, seen in runs.items():
            seen.append(watch(name, size))
    print(f"{'':<30} {'seconds':>24} {'MiB/s':>24} {'peak RSS MiB':>24} {'above start MiB':>24}")
    above = {}
    for name, seen in runs.items():
        above[name] = [(run["peak_rss"] - run["start_rss"]) / MIB for run in seen]
        print(
            f"{name:<30} {spread([run['seconds'] for run in seen]):>24} {spread([run['rate'] for run in seen], MIB):>24} "
            f"{spread([run['peak_rss'] for run in seen], MIB):>24} {spread(above[name]):>24}"
        )
    chart = Chart("Memory taken by a producer faster than the disk (lower is better)", "MiB", {"peak": above})
    keep(options.json, facts, [chart], size=size, runs=runs)


if __name__ == "__main__":
    main()
