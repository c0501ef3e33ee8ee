"""Where commands on volumes write to."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from dstorage.cli.progress import Meter
from dstorage.errors import InvalidArgumentError
from dstorage.volumes.pool import ThinPool
from dstorage.volumes.volume import Volume

PIECE_BYTES = 4 * 2**20
"""Read and written at a time."""


def mapped(pool: ThinPool, id: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a volume from `start` to `end` that were written, each from where to where."""
    block = pool.block_bytes
    for run, _ in pool.metadata.runs(id, start // block, -(-end // block)):
        yield max(start, run.virtual * block), min(end, (run.virtual + run.length) * block)


async def copy_out(
    volume: Volume,
    parts: Iterable[tuple[int, int]],
    start: int,
    end: int,
    target: BinaryIO,
    meter: Meter,
) -> None:
    """Write a volume's bytes from `start` to `end`; `parts` are those that are not all zeros."""
    # A new file has holes where nothing is written; a device or a pipe has not.
    sparse = target is not sys.stdout.buffer and stat.S_ISREG(os.fstat(target.fileno()).st_mode)
    at = start
    for first, stop in chain(parts, [(end, end)]):
        if sparse:
            target.seek(first - start)
            meter.advance(first - at)
            at = first
        while at < stop:
            length = min(PIECE_BYTES, (first if at < first else stop) - at)
            target.write(bytes(length) if at < first else await volume.pread(length, at))
            at += length
            meter.advance(length)
    if sparse:
        target.truncate(end - start)


@contextmanager
def target_of(output: Path | None, *sources: Path) -> Iterator[BinaryIO]:
    """Where results go; not into the file they are read from."""
    if output is None:
        yield sys.stdout.buffer
        return
    for source in sources:
        if output.exists() and source.exists() and output.samefile(source):
            raise InvalidArgumentError(f"{output} is the very file that is to be read: name another one")
    with output.open("wb") as file:
        yield file
