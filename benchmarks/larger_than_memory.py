"""Larger than memory: zipf traffic on more data than the memory allowed, beside what people use today.

Each contender runs in a process of its own, under a memory control group where one can be made, on the same seeded sequence of
operations: reads, and overwrites of whole values. Printed are operations per second, the peak resident memory seen from outside
(beside it: what the process had before it began, with everything imported, and the budget with a fifth more), and bytes written to
disk per byte overwritten.

    python benchmarks/larger_than_memory.py [--size tiny|64k|1m|4k] [--repeat N] [--only NAME]... [--json FILE]

The contenders take turns, round by round; `--only`, which may be given again, chooses among them. At 4k np.memmap, sqlite3 and
diskcache may take half an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import psutil
import uvloop
from cgroup import memory_group
from charts import Chart, keep
from dstorage_controllers.disk import DiskController
from environment import describe

import dstorage

MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """One size of the experiment."""

    value_bytes: int
    data_bytes: int
    budget_bytes: int
    cgroup_bytes: int
    operations: int


SETTINGS = {
    "tiny": Setting(16 * 1024, 8 * MIB, 2 * MIB, 0, 2000),
    "64k": Setting(64 * 1024, 1024 * MIB, 128 * MIB, 256 * MIB, 60_000),
    "1m": Setting(MIB, 1024 * MIB, 128 * MIB, 256 * MIB, 6_000),
    "4k": Setting(4096, 256 * MIB, 32 * MIB, 128 * MIB, 300_000),
}
READS = 0.8
SKEW = 0.99


def zipf_sequence(keys: int, count: int, seed: int) -> list[int]:
    """Zipf-distributed keys, the popular ones scattered over the key space."""
    rnd = random.Random(seed)
    weights = [1 / (rank + 1) ** SKEW for rank in range(keys)]
    order = list(range(keys))
    rnd.shuffle(order)
    return rnd.choices(order, weights, k=count)


class Contender(Protocol):
    """What is measured: values by key, in whatever type the contender gives them."""

    def __init__(self, folder: Path, setting: Setting) -> None: ...

    def get(self, key: int) -> Any:
        """The value."""

    def set(self, key: int, value: bytes) -> None:
        """Overwrite the value."""

    def close(self) -> None:
        """Write out and end."""


class LruFile:
    """A bare LRU dict over one pre-allocated file: no index on disk, no checksum, no crash safety."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.fd = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(self.fd, 0, setting.data_bytes)
        self.size = setting.value_bytes
        self.room = setting.budget_bytes // setting.value_bytes
        self.cache: OrderedDict[int, tuple[bytes, bool]] = OrderedDict()

    def _put(self, key: int, value: bytes, dirty: bool) -> None:
        self.cache[key] = (value, dirty)
        self.cache.move_to_end(key)
        if len(self.cache) > self.room:
            old, (data, was_dirty) = self.cache.popitem(last=False)
            if was_dirty:
                os.pwrite(self.fd, data, old * self.size)

    def get(self, key: int) -> Any:
        found = self.cache.get(key)
        if found is None:
            value = os.pread(self.fd, self.size, key * self.size)
            self._put(key, value, False)
            return value
        self.cache.move_to_end(key)
        return found[0]

    def set(self, key: int, value: bytes) -> None:
        self._put(key, value, True)

    def close(self) -> None:
        for key, (value, dirty) in self.cache.items():
            if dirty:
                os.pwrite(self.fd, value, key * self.size)
        os.fsync(self.fd)
        os.close(self.fd)


class DbmDumb:
    def __init__(self, folder: Path, setting: Setting) -> None:
        import dbm.dumb

        self.db = dbm.dumb.open(str(folder / "db"), "c")  # noqa: SIM115 - closed by close()

    def get(self, key: int) -> Any:
        return self.db[key.to_bytes(8, "big")]

    def set(self, key: int, value: bytes) -> None:
        self.db[key.to_bytes(8, "big")] = value

    def close(self) -> None:
        self.db.close()


class ZictFile:
    def __init__(self, folder: Path, setting: Setting) -> None:
        import zict

        self.buffer = zict.Buffer({}, self.slow(folder, setting), setting.budget_bytes, weight=lambda k, v: len(v))

    def slow(self, folder: Path, setting: Setting) -> Any:
        """The mapping for what does not fit into memory."""
        import zict

        return zict.File(str(folder / "files"))

    def get(self, key: int) -> Any:
        return self.buffer[str(key)]

    def set(self, key: int, value: bytes) -> None:
        self.buffer[str(key)] = value

    def close(self) -> None:
        self.buffer.close()


class ZictLmdb(ZictFile):
    def slow(self, folder: Path, setting: Setting) -> Any:
        import zict

        return zict.LMDB(str(folder / "db"), map_size=setting.data_bytes * 4)


class Sqlite:
    def __init__(self, folder: Path, setting: Setting) -> None:
        import sqlite3

        self.db = sqlite3.connect(folder / "db", isolation_level=None)
        self.db.execute("pragma journal_mode=wal")
        self.db.execute("pragma synchronous=normal")
        self.db.execute(f"pragma cache_size=-{setting.budget_bytes // 1024}")
        self.db.execute("create table if not exists t (k integer primary key, v blob)")

    def get(self, key: int) -> Any:
        return self.db.execute("select v from t where k=?", (key,)).fetchone()[0]

    def set(self, key: int, value: bytes) -> None:
        self.db.execute("insert or replace into t values (?,?)", (key, value))

    def close(self) -> None:
        self.db.close()


class Lmdb:
    def __init__(self, folder: Path, setting: Setting) -> None:
        import lmdb

        self.env = lmdb.open(str(folder / "db"), map_size=setting.data_bytes * 4, sync=False)

    def get(self, key: int) -> Any:
        with self.env.begin() as txn:
            return txn.get(key.to_bytes(8, "big"))

    def set(self, key: int, value: bytes) -> None:
        with self.env.begin(write=True) as txn:
            txn.put(key.to_bytes(8, "big"), value)

    def close(self) -> None:
        self.env.sync(True)
        self.env.close()


class DiskCache:
    def __init__(self, folder: Path, setting: Setting) -> None:
        import diskcache

        self.cache = diskcache.Cache(str(folder / "cache"), size_limit=setting.data_bytes * 4, eviction_policy="none")

    def get(self, key: int) -> Any:
        return self.cache[key]

    def set(self, key: int, value: bytes) -> None:
        self.cache[key] = value

    def close(self) -> None:
        self.cache.close()


class RocksDict:
    def __init__(self, folder: Path, setting: Setting) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.set_write_buffer_size(min(32 * MIB, setting.budget_bytes // 4))
        table = rocksdict.BlockBasedOptions()
        table.set_block_cache(rocksdict.Cache(setting.budget_bytes // 2))
        options.set_block_based_table_factory(table)
        self.db = rocksdict.Rdict(str(folder / "db"), options)

    def get(self, key: int) -> Any:
        return self.db[key.to_bytes(8, "big")]

    def set(self, key: int, value: bytes) -> None:
        self.db[key.to_bytes(8, "big")] = value

    def close(self) -> None:
        self.db.close()


class NumpyMemmap:
    def __init__(self, folder: Path, setting: Setting) -> None:
        import numpy as np

        keys = setting.data_bytes // setting.value_bytes
        path = folder / "array"
        mode: Any = "r+" if path.exists() else "w+"
        self.array = np.memmap(path, dtype=np.uint8, mode=mode, shape=(keys, setting.value_bytes))

    def get(self, key: int) -> Any:
        return self.array[key].tobytes()

    def set(self, key: int, value: bytes) -> None:
        self.array[key] = memoryview(value)

    def close(self) -> None:
        self.array.flush()


PEERS: dict[str, type[Contender]] = {
    "LRU dict over a file": LruFile,
    "dbm.dumb": DbmDumb,
    "zict over files": ZictFile,
    "zict over LMDB": ZictLmdb,
    "rocksdict": RocksDict,
    "sqlite3": Sqlite,
    "diskcache": DiskCache,
    "lmdb": Lmdb,
    "np.memmap": NumpyMemmap,
}


class Work:
    """What there is to do, made before anybody's memory is looked at."""

    def __init__(self, setting: Setting) -> None:
        rnd = random.Random(5)
        self.payloads = [rnd.randbytes(setting.value_bytes) for _ in range(8)]
        self.keys = setting.data_bytes // setting.value_bytes
        self.sequence = zipf_sequence(self.keys, setting.operations, 1)


def run_peer(peer: type[Contender], folder: Path, setting: Setting, work: Work, started: Callable[[], None]) -> float:
    payloads = work.payloads
    contender = peer(folder, setting)
    for key in range(work.keys):
        contender.set(key, payloads[key % 8])
    rnd = random.Random(2)
    started()
    begin = time.perf_counter()
    for number, key in enumerate(work.sequence):
        if rnd.random() < READS:
            value = contender.get(key)
            assert len(value) == setting.value_bytes
        else:
            contender.set(key, payloads[number % 8])
    seconds = time.perf_counter() - begin
    contender.close()
    return setting.operations / seconds


def run_dstorage(
    folder: Path, setting: Setting, work: Work, started: Callable[[], None], workers: int = 1, direct: bool = False
) -> float:
    async def main() -> float:
        payloads = work.payloads
        async with dstorage.open(
            folder / "store",
            budget=setting.budget_bytes,
            commit_interval=5.0,
            controllers=[DiskController(direct=direct)],
        ) as store:
            ids = []
            for key in range(work.keys):
                with await store.create(payloads[key % 8]) as handle:
                    ids.append(handle.id)
            await store.commit()
            rnd = random.Random(2)
            started()
            begin = time.perf_counter()
            left = enumerate(work.sequence)

            async def worker() -> None:
                for number, key in left:
                    with store.handle(ids[key]) as handle:
                        if rnd.random() < READS:
                            value = await handle
                            assert len(value) == setting.value_bytes
                        else:
                            await handle.replace(payloads[number % 8])

            await asyncio.gather(*[worker() for _ in range(workers)])
            return setting.operations / (time.perf_counter() - begin)

    return uvloop.run(main())


Run = Callable[[Path, Setting, Work, Callable[[], None]], float]

CONTENDERS: dict[str, Run] = {
    "dstorage": run_dstorage,
    "dstorage, 8 tasks": functools.partial(run_dstorage, workers=8),
    "dstorage, direct": functools.partial(run_dstorage, direct=True),
    "dstorage, direct, 8 tasks": functools.partial(run_dstorage, workers=8, direct=True),
    **{name: functools.partial(run_peer, peer) for name, peer in PEERS.items()},
}


def child(name: str, folder: Path, setting: Setting, cgroup: Path | None, out: Connection) -> None:
    if cgroup is not None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    work = Work(setting)
    gc.collect()
    out.send(("ready", psutil.Process().memory_info().rss))
    rate = CONTENDERS[name](folder, setting, work, lambda: out.send(("started", _written())))
    out.send(("rate", rate, _written()))


def _written() -> int:
    return psutil.Process().io_counters().write_bytes


def measure(name: str, setting: Setting) -> dict[str, float]:
    """One run in a process of its own; raises RuntimeError if it dies."""
    folder = Path(tempfile.mkdtemp(prefix="dstorage-bench-", dir=os.environ.get("DSTORAGE_BENCH_DIR")))
    cgroup = memory_group(setting.cgroup_bytes)
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, folder, setting, cgroup, send))
    process.start()
    send.close()
    watched = psutil.Process(process.pid)
    peak, written, before = 0, 0, 0
    result: tuple[float, int] | None = None
    try:
        while process.is_alive() or receive.poll():
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, watched.memory_info().rss)
            if receive.poll(0.01):
                try:
                    message = receive.recv()
                except EOFError:
                    break
                if message[0] == "ready":
                    before = message[1]
                elif message[0] == "started":
                    written = message[1]
                else:
                    result = message[1], message[2] - written
        process.join()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if cgroup is not None:
            cgroup.rmdir()
    if result is None:
        raise RuntimeError(f"{name} ended with exit code {process.exitcode}")
    overwritten = setting.operations * (1 - READS) * setting.value_bytes
    return {
        "ops_per_s": result[0],
        "peak_rss_mib": peak / MIB,
        "allowed_mib": (before + 1.2 * setting.budget_bytes) / MIB,
        "write_amplification": result[1] / overwritten,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SETTINGS, default="64k")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.size]
    repeat = 1 if arguments.size == "tiny" else arguments.repeat
    environment = describe()
    print(environment["line"])
    group = memory_group(setting.cgroup_bytes)
    if group is not None:
        group.rmdir()
    print(
        f"{setting.data_bytes // MIB} MiB of {setting.value_bytes} B values, budget {setting.budget_bytes // MIB} MiB, "
        f"{'control group of ' + str(setting.cgroup_bytes // MIB) + ' MiB' if group else 'no control group'}, "
        f"zipf {SKEW}, {READS:.0%} reads, {setting.operations} operations, {repeat} runs"
    )
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only or CONTENDERS}
    failed: dict[str, str] = {}
    # Round by round, so that what else the machine does meets all alike.
    for _ in range(repeat):
        for name in [name for name in results if name not in failed]:
            try:
                results[name].append(measure(name, setting))
            except (RuntimeError, ImportError) as error:
                failed[name] = str(error)
    print(f"{'':26}{'ops/s':>10}{'min':>10}{'max':>10}{'peak RSS MiB':>14}{'allowed':>9}{'written x':>11}")
    for name, runs in list(results.items()):
        if name in failed:
            del results[name]
            print(f"{name:26}{failed[name]}")
            continue
        rates = [run["ops_per_s"] for run in runs]
        print(
            f"{name:26}{statistics.median(rates):10.0f}{min(rates):10.0f}{max(rates):10.0f}"
            f"{max(r['peak_rss_mib'] for r in runs):14.0f}{min(r['allowed_mib'] for r in runs):9.0f}"
            f"{statistics.median(r['write_amplification'] for r in runs):11.2f}"
        )
    what = f"{setting.data_bytes // MIB} MiB of {setting.value_bytes} B values, {setting.budget_bytes // MIB} MiB of memory"

    def chart(title: str, unit: str, figure: str) -> Chart:
        return Chart(title, unit, {what: {name: [run[figure] for run in runs] for name, runs in results.items()}})

    charts = [
        chart("Zipf reads and overwrites (higher is better)", "operations per second", "ops_per_s"),
        chart("Peak resident memory (lower is better)", "MiB", "peak_rss_mib"),
        chart("Bytes written per byte overwritten (lower is better)", "factor", "write_amplification"),
    ]
    keep(arguments.json, environment, charts, size=arguments.size, runs=results)


if __name__ == "__main__":
    main()
