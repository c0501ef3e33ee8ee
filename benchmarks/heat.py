"""Heat on a grid larger than memory: sweeps of a five-point stencil over two fields, beside what people use today.

Each contender runs in a process of its own, under a memory control group where one can be made, and computes the same numbers (the
sum of the field is compared). The same stencil is applied to bands of rows by all that go band by band. Printed are seconds for the
sweeps alone, seconds of processor time, and the peak resident memory seen from outside. "numpy in RAM" has no limit on
its memory, and is what the others are compared with: once as one writes it, over the whole field at a time, and once in bands.

    python benchmarks/heat.py [--size tiny|medium|full] [--repeat N] [--only NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from cgroup import memory_group
from charts import Chart, keep
from environment import describe

MIB = 2**20
RATE = 0.1
"""Share of the difference that flows to each neighbour per sweep."""

Field = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """One size of the experiment: a grid of `side` x `side` float64, of which there are two fields."""

    side: int
    rows: int
    sweeps: int
    budget_bytes: int
    cgroup_bytes: int


SETTINGS = {
    "tiny": Setting(256, 16, 2, MIB // 2, 0),
    "medium": Setting(4096, 32, 4, 32 * MIB, 96 * MIB),
    "full": Setting(8192, 32, 4, 176 * MIB, 256 * MIB),
}


def stencil(around: Field, new: Field) -> None:
    """One sweep over a band: `around` has one row more on each side than `new`; the outer columns stay."""
    inner = new[:, 1:-1]
    np.add(around[:-2, 1:-1], around[2:, 1:-1], out=inner)
    inner += around[1:-1, :-2]
    inner += around[1:-1, 2:]
    inner *= RATE
    inner += (1 - 4 * RATE) * around[1:-1, 1:-1]
    new[:, 0] = around[1:-1, 0]
    new[:, -1] = around[1:-1, -1]


def start_rows(first: int, count: int, side: int) -> Field:
    """The field at the start: a hot square in the middle of a gentle slope."""
    rows = np.arange(first, first + count)[:, None]
    columns = np.arange(side)[None, :]
    hot = (abs(rows - side // 2) < side // 8) & (abs(columns - side // 2) < side // 8)
    return np.where(hot, 100.0, (rows + columns) / side)


def bands(setting: Setting) -> list[tuple[int, int]]:
    """(first row, row behind the last) of each band."""
    return [(row, min(row + setting.rows, setting.side)) for row in range(0, setting.side, setting.rows)]


def halo(get: Callable[[int, int], Any], start: int, stop: int, side: int) -> Field:
    """Rows `start` - 1 to `stop`, zeros beyond the field."""
    low, high = max(start - 1, 0), min(stop + 1, side)
    rows: Field = np.asarray(get(low, high))
    if start == 0 or stop == side:
        rows = np.pad(rows, ((int(start == 0), int(stop == side)), (0, 0)))
    return rows


Begin = Callable[[], None]
Run = Callable[[Path, Setting, Begin], tuple[float, float]]
"""Folder, setting, what to call when the sweeps begin -> (seconds for the sweeps, sum of the field)."""


def by_bands(
    setting: Setting,
    begin: Begin,
    fields: list[Any],
    get: Callable[[Any, int, int], Any],
    put: Callable[[Any, int, int, Field], None],
) -> tuple[float, float]:
    """Sweeps of a contender that reads and writes bands of rows."""
    for start, stop in bands(setting):
        put(fields[0], start, stop, start_rows(start, stop - start, setting.side))
    begin()
    began = time.perf_counter()
    for _ in range(setting.sweeps):
        for start, stop in bands(setting):
            around = halo(lambda low, high: get(fields[0], low, high), start, stop, setting.side)
            new = np.empty((stop - start, setting.side))
            stencil(around, new)
            put(fields[1], start, stop, new)
        fields.reverse()
    seconds = time.perf_counter() - began
    return seconds, sum(float(np.sum(get(fields[0], start, stop))) for start, stop in bands(setting))


def run_dstorage(folder: Path, setting: Setting, begin: Begin) -> tuple[float, float]:
    from dstorage_controllers.disk import DiskController

    import dstorage.blocking
    from dstorage import PagedArray

    shape = (setting.side, setting.side)
    with dstorage.blocking.open(
        folder / "store",
        budget=setting.budget_bytes,
        # What is dirty waits to be written; the more of the budget is left for what is read again.
        dirty_share=0.2,
        controllers=[DiskController(direct=True)],
        commit_interval=None,
    ) as store:
        field, after = (PagedArray.create(store, name, shape, tile=(setting.rows, setting.side)) for name in "ab")
        for start, stop in bands(setting):
            field[start:stop] = start_rows(start, stop - start, setting.side)
        begin()
        began = time.perf_counter()
        for _ in range(setting.sweeps):
            for band in field.bands(halo=1, boundary=0.0, once=True):
                with after.edit(band.slices, discard=True, once=True) as new:
                    stencil(band.data, new)
            field, after = after, field
        seconds = time.perf_counter() - began
        return seconds, float(field.sum())


def run_whole(folder: Path, setting: Setting, begin: Begin) -> tuple[float, float]:
    field = np.zeros((setting.side + 2, setting.side))
    field[1:-1] = start_rows(0, setting.side, setting.side)
    after = np.zeros_like(field)
    begin()
    began = time.perf_counter()
    for _ in range(setting.sweeps):
        stencil(field, after[1:-1])
        field, after = after, field
    return time.perf_counter() - began, float(field.sum())


def run_ram(folder: Path, setting: Setting, begin: Begin) -> tuple[float, float]:
    field = np.zeros((setting.side + 2, setting.side))
    field[1:-1] = start_rows(0, setting.side, setting.side)
    after = np.zeros_like(field)
    begin()
    began = time.perf_counter()
    for _ in range(setting.sweeps):
        for start, stop in bands(setting):
            stencil(field[start : stop + 2], after[start + 1 : stop + 1])
        field, after = after, field
    return time.perf_counter() - began, float(field.sum())


def run_file(folder: Path, setting: Setting, begin: Begin) -> tuple[float, float]:
    """Hand-written: one plain file per field, read and written by bands; no checksum, no crash safety."""
    line = setting.side * 8
    files = [os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in "ab"]

    def get(file: int, start: int, stop: int) -> Field:
        rows = np.empty((stop - start, setting.side))
        os.preadv(file, [rows.data], start * line)
        return rows

    def put(file: int, start: int, stop: int, rows: Field) -> None:
        os.pwrite(file, rows.data, start * line)

    try:
        return by_bands(setting, begin, list(files), get, put)
    finally:
        for file in files:
            os.close(file)


def run_memmap(folder: Path, setting: Setting, begin: Begin) -> tuple[float, float]:
    shape = (setting.side, setting.side)
    fields = [np.memmap(folder / name, np.float64, "w+", shape=shape) for name in "ab"]

    def put(field: Any, start: int, stop: int, rows: Field) -> None:
        field[start:stop] = rows

    return by_bands(setting, begin, list(fields), lambda field, start, stop: field[start:stop], put)


def run_zarr(folder: Path, setting: Setting, begin: Begin) -> tuple[float, float]:
    import zarr

    shape = (setting.side, setting.side)
    fields = [
        zarr.create_array(
            str(folder / name), shape=shape, chunks=(setting.rows, setting.side), dtype="f8", compressors=None
        )
        for name in "ab"
    ]

    def put(field: Any, start: int, stop: int, rows: Field) -> None:
        field[start:stop] = rows

    return by_bands(setting, begin, list(fields), lambda field, start, stop: field[start:stop], put)


def run_dask(folder: Path, setting: Setting, begin: Begin) -> tuple[float, float]:
    """dask.array over zarr arrays, with its own overlap."""
    import dask.array
    import zarr

    da: Any = dask.array  # It has no types.
    shape, chunks = (setting.side, setting.side), (setting.rows, setting.side)
    fields: list[Any] = [
        zarr.create_array(str(folder / name), shape=shape, chunks=chunks, dtype="f8", compressors=None) for name in "ab"
    ]
    for start, stop in bands(setting):
        fields[0][start:stop] = start_rows(start, stop - start, setting.side)

    def sweep(around: Field) -> Field:
        new = np.empty_like(around)
        stencil(around, new[1:-1])
        return new

    begin()
    began = time.perf_counter()
    for _ in range(setting.sweeps):
        source = da.from_array(fields[0], chunks=chunks)
        new = source.map_overlap(sweep, depth={0: 1}, boundary={0: 0.0}, dtype="f8", meta=np.empty((0, 0)))
        da.store(new, fields[1], lock=False)
        fields.reverse()
    seconds = time.perf_counter() - began
    return seconds, float(da.from_array(fields[0], chunks=chunks).sum().compute())


CONTENDERS: dict[str, Run] = {
    "dstorage": run_dstorage,
    "numpy in RAM": run_whole,
    "numpy in RAM, bands": run_ram,
    "bands on a file": run_file,
    "np.memmap": run_memmap,
    "zarr": run_zarr,
    "dask.array": run_dask,
}
UNLIMITED = {"numpy in RAM", "numpy in RAM, bands"}


def child(name: str, folder: Path, setting: Setting, cgroup: Path | None, out: Connection) -> None:
    if cgroup is not None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    begun: list[float] = []
    try:
        seconds, total = CONTENDERS[name](folder, setting, lambda: begun.append(_processor_time()))
    except ImportError as error:
        out.send(("missing", f"not installed: {error}"))
        return
    out.send(("done", seconds, total, _processor_time() - begun[0]))


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(name: str, setting: Setting) -> dict[str, float]:
    """One run in a process of its own; raises RuntimeError if it dies."""
    folder = Path(tempfile.mkdtemp(prefix="dstorage-bench-", dir=os.environ.get("DSTORAGE_BENCH_DIR")))
    cgroup = None if name in UNLIMITED else memory_group(setting.cgroup_bytes)
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, folder, setting, cgroup, send))
    process.start()
    send.close()
    watched = psutil.Process(process.pid)
    peak = 0
    answer: tuple[Any, ...] | None = None
    try:
        while process.is_alive() or receive.poll():
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, watched.memory_info().rss)
            if receive.poll(0.01):
                try:
                    answer = receive.recv()
                except EOFError:
                    break
        process.join()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if cgroup is not None:
            cgroup.rmdir()
    if answer is None and process.exitcode == -signal.SIGKILL and cgroup is not None:
        raise RuntimeError("killed: needs more memory than the control group has")
    if answer is None:
        raise RuntimeError(f"ended with exit code {process.exitcode}")
    if answer[0] == "missing":
        raise ImportError(answer[1])
    return {"seconds": answer[1], "sum": answer[2], "processor_seconds": answer[3], "peak_rss_mib": peak / MIB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SETTINGS, default="full")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", action="append")
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
        f"{setting.side} x {setting.side} float64, two fields of {setting.side**2 * 8 / MIB:g} MiB, {setting.sweeps} sweeps, "
        f"budget {setting.budget_bytes / MIB:g} MiB, "
        f"{'control group of ' + str(setting.cgroup_bytes // MIB) + ' MiB' if group else 'no control group'}, {repeat} runs"
    )
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only or CONTENDERS}
    failed: dict[str, str] = {}
    # Round by round, so that what else the machine does meets all alike.
    for _ in range(repeat):
        for name in runs:
            if name not in failed:
                try:
                    runs[name].append(measure(name, setting))
                except (RuntimeError, ImportError) as error:
                    failed[name] = str(error)
    totals = [run["sum"] for rounds in runs.values() for run in rounds]
    assert np.allclose(totals, totals[0], rtol=1e-9), f"the contenders computed different fields: {totals}"
    print(f"{'':24}{'seconds':>10}{'min':>8}{'max':>8}{'processor s':>13}{'peak RSS MiB':>14}")
    for name, rounds in runs.items():
        if name in failed:
            print(f"{name:24}{failed[name]}")
            continue
        seconds = [run["seconds"] for run in rounds]
        print(
            f"{name:24}{statistics.median(seconds):10.2f}{min(seconds):8.2f}{max(seconds):8.2f}"
            f"{statistics.median(run['processor_seconds'] for run in rounds):13.2f}"
            f"{max(run['peak_rss_mib'] for run in rounds):14.0f}"
        )
    what = f"{setting.side} x {setting.side}, {setting.sweeps} sweeps"
    charts = [
        Chart(title, unit, {what: {name: [run[figure] for run in rounds] for name, rounds in runs.items() if rounds}})
        for title, unit, figure in (
            ("Heat on a grid larger than memory (lower is better)", "seconds", "seconds"),
            ("Peak resident memory (lower is better)", "MiB", "peak_rss_mib"),
        )
    ]
    keep(arguments.json, environment, charts, size=arguments.size, runs=runs, failed=failed)


if __name__ == "__main__":
    main()
