"""What a figure depends on: the machine, the interpreter, the versions of everybody who takes part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
from pathlib import Path

import psutil

PACKAGES = (
    "dstorage",
    "uvloop",
    "lmdb",
    "xxhash",
    "zstandard",
    "cachetools",
    "diskcache",
    "zict",
    "rocksdict",
    "numpy",
    "ZODB",
    "zarr",
    "dask",
    "distributed",
    "redis",
    "hiredis",
    "obstore",
    "cryptography",
)


def processor() -> str:
    """The processor's model, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe() -> dict[str, object]:
    """Facts to print and keep beside the figures; `line` holds them in one line."""
    versions = {"sqlite": sqlite3.sqlite_version}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts: dict[str, object] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "versions": versions,
    }
    facts["line"] = (
        f"Python {facts['python']}, {facts['system']} {facts['machine']}, {facts['cores']} cores ({facts['processor']}), "
        f"{facts['memory_gib']} GiB; " + ", ".join(f"{name} {version}" for name, version in versions.items())
    )
    return facts
