"""Heat spreading over a plate that does not fit into memory.

Two fields, now and next, are paged arrays in a store; of their tiles only as many are in memory as the budget holds. Each sweep goes
through bands of rows: while one is computed, the next ones are read from disk and the last ones are written.

    python examples/heat.py [--side 8192] [--sweeps 20] [--budget 128M] [--picture heat.png]

Needs numpy, pillow and rich: pip install 'dstorage[examples]'
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dstorage_controllers.disk import DiskController
from PIL import Image
from rich.progress import track

import dstorage.blocking
from dstorage import PagedArray

RATE = 0.2
"""Share of the difference that flows to each neighbour in a sweep; up to 0.25 the sum stays stable."""
PICTURE_SIDE = 1024


def heat_up(field: PagedArray) -> None:
    """A hot frame in a cold plate; what is not written stays at 0 and takes no storage."""
    side = field.shape[0]
    near, far, width = side // 4, 3 * side // 4, max(1, side // 40)
    for edge in (near, far):
        field[edge : edge + width, near : far + width] = 100.0
        field[near : far + width, edge : edge + width] = 100.0


def spread(around: npt.NDArray[np.float64], new: npt.NDArray[np.float64]) -> None:
    """One sweep over a band; `around` has one element more on every side than `new`."""
    here = around[1:-1, 1:-1]
    np.add(around[:-2, 1:-1], around[2:, 1:-1], out=new)
    new += around[1:-1, :-2]
    new += around[1:-1, 2:]
    new *= RATE
    new += (1 - 4 * RATE) * here


def simulate(field: PagedArray, following: PagedArray, sweeps: int) -> PagedArray:
    """Let heat flow; beyond its edges the plate is kept at 0."""
    for _ in track(range(sweeps), description="sweeps"):
        # Each tile is used once a sweep: with that said, a part of them stays in memory from one sweep to the next.
        for band in field.bands(halo=(1, 1), boundary=0.0, once=True):
            with following.edit(band.slices, discard=True, once=True) as new:
                spread(band.data, new)
        field, following = following, field
    return field


def draw(field: PagedArray, path: Path) -> None:
    """A picture of the field, of at most 1024 x 1024 points: from blue over red to white."""
    step = -(-field.shape[0] // PICTURE_SIDE)
    points = field[::step, ::step]
    share = np.sqrt(points / max(points.max(), 1e-9))
    colours = np.stack([share * 2, share * 2 - 1, np.where(share < 0.5, 0.3 + share, 2 * share - 1)], axis=-1)
    Image.fromarray((np.clip(colours, 0, 1) * 255).astype(np.uint8)).save(path)


def main() -> None:
    """Read the command line, simulate, draw, and tell what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--budget", default="128M")
    parser.add_argument("--picture", type=Path, default=Path("heat.png"))
    arguments = parser.parse_args()
    shape = (arguments.side, arguments.side)
    before = peak_rss()
    with (
        tempfile.TemporaryDirectory() as folder,
        dstorage.blocking.open(
            f"{folder}/store",
            budget=arguments.budget,
            commit_interval=None,
            # The fields are far larger than memory: the system's own cache would hold nothing long enough.
            controllers=[DiskController(direct=True)],
        ) as store,
    ):
        field, following = (PagedArray.create(store, name, shape) for name in ("now", "next"))
        heat_up(field)
        field = simulate(field, following, arguments.sweeps)
        peak = peak_rss()
        draw(field, arguments.picture)
        stats = store.stats()
        print(f"warmest {field.max():.2f}, mean {field.mean():.4f}; {arguments.picture} written")
        print(
            f"two fields of {field.nbytes / 2**20:.0f} MiB; read {stats.bytes_read >> 20} MiB, written {stats.bytes_written >> 20} MiB"
        )
        print(
            f"budget {stats.budget / 2**20:.0f} MiB, peak of the process {peak:.0f} MiB ({before:.0f} before the start)"
        )


def peak_rss() -> float:
    """Most memory (MiB) this process ever held."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    main()
