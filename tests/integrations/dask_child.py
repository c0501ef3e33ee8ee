"""A dask cluster of one worker in a process of its own, which holds 1 GiB under a limit of 300 MiB. Prints what it saw as JSON."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import dask
import numpy as np
from distributed import Client, LocalCluster

from dstorage.integrations.dask import SpillBuffer

LIMIT = 300 * 2**20
CHUNK_BYTES = 8 * 2**20
CHUNKS = 128


def chunk(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(2**32, size=CHUNK_BYTES // 8)


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(directory: Path) -> None:
    with (
        dask.config.set({"temporary-directory": str(directory)}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit=LIMIT,
            dashboard_address=None,
            data=(SpillBuffer, {"target": LIMIT // 4}),
        ) as cluster,
        Client(cluster) as client,
    ):
        (before,) = client.run(lambda: __import__("os").getpid()).values()
        held = client.map(chunk, range(CHUNKS), pure=False)
        sums = client.gather(client.map(np.sum, held, pure=False))
        # A second pass, from the disk.
        again = client.gather(client.map(np.sum, held, pure=False))
        right = [int(chunk(number).sum()) for number in range(CHUNKS)]
        (after,) = client.run(lambda: __import__("os").getpid()).values()
        (peak,) = client.run(peak_rss).values()
        (spilled,) = client.run(lambda dask_worker: dask_worker.data.spilled_total.disk).values()
        told = {
            "limit": LIMIT,
            "held": CHUNKS * CHUNK_BYTES,
            "sums_are_right": right == sums == again,
            "restarts": int(before != after),
            "peak_rss": peak,
            "spilled": spilled,
        }
    told["left"] = sorted(path.name for path in directory.rglob("dstorage-*"))
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
