"""A producer faster than the disk: what it does to memory, with a share of the budget that may be dirty and without.

A task creates chunks as fast as it is let. The disk is a disk controller whose writes are held to a rate (`TierRule.write_rate`), so that
the producer is faster on any machine. Sampled from outside are the chunks' memory, what of it is dirty, and the resident memory of the
process; beside it runs what programs do by hand: a list of buffers that a thread writes to a file at the same rate.

    python benchmarks/producer.py [--size tiny|full] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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


def main() -> None:
    """Each contender in a process of its own, watched from outside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = SIZES[options.size]
    facts = describe()
    print(facts["line"])
    print(
        f"{size['data'] // MIB} MiB in chunks of {size['chunk'] // 1024} KiB, budget {size['budget'] // MIB} MiB, "
        f"the disk takes {size['rate'] // MIB} MiB/s\n"
    )
    print(f"{'':<30} {'seconds':>8} {'MiB/s':>7} {'peak RSS MiB':>13} {'above start MiB':>16}")
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    for name in CONTENDERS:
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
        row: dict[str, Any] = {
            "name": name,
            "seconds": seconds,
            "rate": size["data"] / seconds,
            "peak_rss": peak,
            "start_rss": first,
        }
        rows.append(row)
        print(
            f"{name:<30} {seconds:>8.1f} {row['rate'] / MIB:>7.0f} {peak / MIB:>13.0f} {(peak - first) / MIB:>16.0f}",
            flush=True,
        )
    above = {row["name"]: [(row["peak_rss"] - row["start_rss"]) / MIB] for row in rows}
    chart = Chart("Memory taken by a producer faster than the disk (lower is better)", "MiB", {"peak": above})
    keep(options.json, facts, [chart], size=size, rows=rows)


if __name__ == "__main__":
    main()
