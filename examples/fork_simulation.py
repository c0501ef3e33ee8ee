"""One simulation, two futures: its state is on a thin volume, the fork is a snapshot, and nothing is copied but what changes.

    python examples/fork_simulation.py
    python examples/fork_simulation.py --megabytes 256 --steps 50

A grid of numbers is stepped in a window that wanders over it, as where things happen does in many models. At a checkpoint the
volume is snapshotted. The past goes on from there in two ways, each on its own volume; both are compared with runs from the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

from dstorage.volumes import FileDevice, ThinPool, Volume

MEGABYTE = 2**20
WINDOW = 256 * 1024
"""Bytes of the state that one step changes."""


async def run(volume: Volume, *, first: int, steps: int, rule: int) -> None:
    """Go some steps: each reads a window of the state, changes it, and writes it back."""
    for step in range(first, first + steps):
        # The same wandering in every run; what differs is the rule.
        offset = random.Random(step).randrange(0, volume.size - WINDOW)
        window = bytearray(await volume.pread(WINDOW, offset))
        for place in range(0, WINDOW, 4096):
            window[place] = (window[place] + rule * (step + place // 4096)) % 256
        await volume.pwrite(window, offset)


async def read_all(volume: Volume) -> bytes:
    """The whole state."""
    return b"".join([bytes(await volume.pread(MEGABYTE, at)) for at in range(0, volume.size, MEGABYTE)])


async def main(directory: Path, size: int, steps: int) -> None:
    """Run to a checkpoint, fork, run both futures, and compare them with runs that never were forked."""
    data = FileDevice(directory / "data", create=True)
    async with await ThinPool.create(directory / "metadata", data, data_bytes=8 * size) as pool:
        await pool.create_device(1)
        state = await pool.volume(1, size=size)
        for at in range(0, size, MEGABYTE):
            await state.pwrite(random.Random(at).randbytes(MEGABYTE), at)
        await run(state, first=0, steps=steps, rule=1)

        free = pool.status().free_data_blocks
        began = time.perf_counter()
        await pool.snapshot(2, origin=1)
        print(
            f"forked {size // MEGABYTE} MiB in {1e3 * (time.perf_counter() - began):.2f} ms, no block copied:", end=" "
        )
        print(pool.status().free_data_blocks == free)

        other = await pool.volume(2, size=size)
        await asyncio.gather(run(state, first=steps, steps=steps, rule=1), run(other, first=steps, steps=steps, rule=2))
        copied = free - pool.status().free_data_blocks
        print(f"two futures of {steps} steps each: {copied * pool.block_bytes // 1024} KiB differ")

        for id, rule, future in ((3, 1, state), (4, 2, other)):
            await pool.create_device(id)
            whole = await pool.volume(id, size=size)
            for at in range(0, size, MEGABYTE):
                await whole.pwrite(random.Random(at).randbytes(MEGABYTE), at)
            await run(whole, first=0, steps=steps, rule=1)
            await run(whole, first=steps, steps=steps, rule=rule)
            assert await read_all(whole) == await read_all(future), "a future is not what it would have been"
    data.close()
    print("both are what they would have been without the fork")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=32, help="size of the state")
    parser.add_argument("--steps", type=int, default=20, help="before the fork, and in each future")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory), options.megabytes * MEGABYTE, options.steps))
