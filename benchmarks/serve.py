"""`dstorage serve` beside redis-server: redis-benchmark's GET and SET, and a data set ten times larger than memory.

python benchmarks/serve.py [--size tiny|full] [--repeat N] [--path DIR] [--json FILE]

Both servers run on this machine beside redis-benchmark (50 connections), one after the other in each round. redis-server keeps
nothing on disk; the node keeps everything, with its usual commit every five seconds. "CPU" is the time of the server's process per
request, system calls included; unlike the rate it does not depend on who else is busy. GETs find their key (there is one); the
larger-than-memory part reads keys at random, from files that were dropped from the page cache, and beside it the same reads by
`os.preadv` from one file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from charts import Chart, keep
from environment import describe

MIB = 2**20
VALUE = 64 * 1024
OURS, THEIRS = "dstorage serve", "redis-server"
MAIN = "from dstorage.cli import main; main()"


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        small: Requests of 64 B per run; of larger values, as many times fewer as suits them.
        budget: Memory of the node in the larger-than-memory part, MiB.
        reads: Random reads there.
    """

    small: int
    budget: int
    reads: int


SIZES = {"tiny": Size(2000, 4, 200), "full": Size(200_000, 64, 10_000)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def node(store: Path, budget: str) -> Iterator[tuple[int, psutil.Process]]:
    """A running `dstorage serve`: its port and process."""
    if not store.exists():
        subprocess.run([sys.executable, "-c", MAIN, "init", str(store)], check=True, stdout=subprocess.DEVNULL)
    port = free_port()
    command = [sys.executable, "-c", MAIN, "serve", str(store), "--port", str(port), "--budget", budget]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline(), "dstorage serve did not start"
    try:
        yield port, psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(120)
        child.stdout.close()


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[tuple[int, psutil.Process] | None]:
    """A running redis-server, or None where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        print("(redis-server is not installed: no figures beside)")
        yield None
        return
    port = free_port()
    command = [program, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(directory)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.01)
        yield port, psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(30)


def benchmark(port: int, test: str, size: int, pipeline: int, requests: int, *more: str) -> float:
    """Requests per second, by redis-benchmark."""
    command = [
        "redis-benchmark",
        "-p",
        str(port),
        "-t",
        test,
        "-d",
        str(size),
        "-P",
        str(pipeline),
        "-n",
        str(requests),
    ]
    done = subprocess.run([*command, "--csv", "-q", *more], check=True, capture_output=True, text=True, timeout=600)
    return float(done.stdout.splitlines()[-1].split(",")[1].strip('"'))


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def beside_redis(directory: Path, size: Size, repeat: int) -> list[Chart]:
    charts = []
    groups: dict[str, dict[str, list[float]]] = {}
    print(f"\n{'':<26}{THEIRS:>14}{OURS:>16}{'ratio':>8}   {'spread of ours':<22}{'CPU per request, us':>20}")
    with redis(directory) as theirs, node(directory / "store", "256M") as ours:
        servers = {name: server for name, server in ((THEIRS, theirs), (OURS, ours)) if server is not None}
        for value in (64, 4096, 65536):
            for pipeline in (1, 16):
                requests = size.small // {64: 1, 4096: 2, 65536: 10}[value] // (4 if pipeline == 1 else 1)
                for test in ("set", "get"):
                    rates: dict[str, list[float]] = {name: [] for name in servers}
                    busy: dict[str, list[float]] = {name: [] for name in servers}
                    for _ in range(repeat):
                        for name, (port, process) in servers.items():
                            begun = cpu(process)
                            rates[name].append(benchmark(port, test, value, pipeline, requests))
                            busy[name].append((cpu(process) - begun) / requests * 1e6)
                    what = f"{test.upper()} {value} B, pipeline {pipeline}"
                    groups[what] = rates
                    print(row(what, rates, busy), flush=True)
    charts.append(Chart("GET and SET by redis-benchmark (higher is better)", "requests/s", groups, logarithmic=True))
    return charts


def row(what: str, rates: dict[str, list[float]], busy: dict[str, list[float]]) -> str:
    middle = {name: statistics.median(seen) for name, seen in rates.items()}
    work = {name: statistics.median(seen) for name, seen in busy.items()}
    theirs = f"{middle[THEIRS]:>14,.0f}" if THEIRS in middle else f"{'-':>14}"
    ratio = f"{middle[OURS] / middle[THEIRS]:>8.2f}" if THEIRS in middle else f"{'-':>8}"
    spread = f"({min(rates[OURS]):,.0f} to {max(rates[OURS]):,.0f})"
    load = " / ".join(f"{work[name]:.1f}" for name in middle)
    return f"{what:<26}{theirs}{middle[OURS]:>16,.0f}{ratio}   {spread:<22}{load:>20}"


def drop(directory: Path) -> None:
    """Make all files below a directory cold."""
    for path in directory.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def fill(port: int, keys: int) -> None:
    """SET all keys that redis-benchmark's ``-r`` asks for."""
    value = random.Random(1).randbytes(VALUE)
    with socket.create_connection(("127.0.0.1", port)) as link, link.makefile("rb") as replies:
        for number in range(keys):
            key = b"key:%012d" % number
            link.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, VALUE))
            link.sendall(value)
            link.sendall(b"\r\n")
            assert replies.readline() == b"+OK\r\n"
        link.sendall(b"WAITAOF 1 0 0\r\n")
        assert replies.readline() == b"*2\r\n"


def larger_than_memory(directory: Path, size: Size, repeat: int) -> list[Chart]:
    """Random reads of ten times the memory."""
    keys = 10 * size.budget * MIB // VALUE
    store, plain = directory / "large", directory / "plain"
    with plain.open("wb") as file:
        for _ in range(keys):
            file.write(os.urandom(VALUE))
    rates: dict[str, list[float]] = {"os.preadv, one after the other": [], OURS: []}
    order = random.Random(2).choices(range(keys), k=size.reads)
    with node(store, f"{size.budget}M") as (port, process):
        fill(port, keys)
        for _ in range(repeat):
            drop(directory)
            fd = os.open(plain, os.O_RDONLY)
            begun = time.perf_counter()
            for number in order:
                os.preadv(fd, [bytearray(VALUE)], number * VALUE)
            rates["os.preadv, one after the other"].append(size.reads * VALUE / MIB / (time.perf_counter() - begun))
            os.close(fd)
            drop(directory)
            seen = benchmark(port, "get", VALUE, 1, size.reads, "-r", str(keys))
            rates[OURS].append(seen * VALUE / MIB)
        resident = process.memory_info().rss / MIB
    print(
        f"\n{keys:,} keys of 64 KiB, {10 * size.budget} MiB, memory {size.budget} MiB: random reads, MiB/s (RSS {resident:.0f} MiB)"
    )
    for name, figures in rates.items():
        print(f"  {name:<34}{statistics.median(figures):>10,.0f}   ({min(figures):,.0f} to {max(figures):,.0f})")
    title = "Random reads of ten times the memory, cold (higher is better)"
    return [Chart(title, "MiB/s", {"64 KiB": rates})]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; medians are shown")
    parser.add_argument("--path", type=Path, default=None, help="directory on the drive to measure")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    options = parser.parse_args()
    facts = describe()
    print(facts["line"])
    if shutil.which("redis-benchmark") is None:
        print("redis-benchmark is not installed: install the Debian package redis-tools")
        keep(options.json, facts, [])
        return
    repeat = 1 if options.size == "tiny" else options.repeat
    with tempfile.TemporaryDirectory(prefix="dstorage-bench-", dir=options.path) as directory:
        charts = beside_redis(Path(directory), SIZES[options.size], repeat)
        charts += larger_than_memory(Path(directory), SIZES[options.size], repeat)
    keep(options.json, facts, charts)


if __name__ == "__main__":
    main()
