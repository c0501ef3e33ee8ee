"""Which bytes of a request go where on the data device: plans for reads and writes, made without waiting for anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dstorage.volumes.records import TIME_BITS

HOLE = -1
"""Instead of a mapping or a place: there is none, it reads as zeros."""
COPY_BYTES = 2**20
"""Zeroed or copied at a time."""

Lookup = Callable[[int], int]
"""From a virtual block to the packed value of its mapping, or `HOLE`."""


class Piece(NamedTuple):
    """A part of a request that is contiguous on the data device: where there (or `HOLE`), where in the request, how long."""

    data: int
    start: int
    length: int


class Transfer(NamedTuple):
    """A part of a write: bytes `start` to `stop` of the volume go to `place`.

    The program gave those from `data_start` to `data_stop`; the others come from `old` on the data device, or are zeros where
    that is `HOLE`.
    """

    place: int
    start: int
    stop: int
    data_start: int
    data_stop: int
    old: int

    @property
    def direct(self) -> bool:
        """Whether the program gave all of it."""
        return self.data_start == self.start and self.data_stop == self.stop

    @property
    def end_place(self) -> int:
        """Behind its last byte on the data device."""
        return self.place + self.stop - self.start


def pieces(mapping_of: Lookup, size: int, offset: int, length: int) -> Iterator[Piece]:
    """Where the bytes of a request are, neighbours on the data device joined.

    Args:
        mapping_of: The mappings.
        size: Bytes of a block.
        offset: Where the request begins in the volume.
        length: Its bytes.
    """
    end = offset + length
    at = start = offset
    data, joined = HOLE, 0
    while at < end:
        number, inside = divmod(at, size)
        part = min(size - inside, end - at)
        mapping = mapping_of(number)
        place = HOLE if mapping == HOLE else (mapping >> TIME_BITS) * size + inside
        if joined and (place == data + joined if place != HOLE and data != HOLE else place == data):
            joined += part
        else:
            if joined:
                yield Piece(data, start - offset, joined)
            start, data, joined = at, place, part
        at += part
    if joined:
        yield Piece(data, start - offset, joined)


def transfers(mapping_of: Lookup, size: int, offset: int, length: int, new: dict[int, int]) -> Iterator[Transfer]:
    """What to write where; new blocks are written whole, in parts of `COPY_BYTES`.

    Args:
        mapping_of: The mappings so far.
        size: Bytes of a block.
        offset: Where the request begins in the volume.
        length: Its bytes.
        new: Block -> the data block it is to have; the others stay where they are.
    """
    end = offset + length
    joined: Transfer | None = None
    for block in range(offset // size, (end - 1) // size + 1):
        place = new.get(block)
        base = block * size
        if offset <= base and base + size <= end:
            # The program gave all of it; nothing that was there before matters.
            to = (mapping_of(block) >> TIME_BITS if place is None else place) * size
            parts = [Transfer(to, base, base + size, base, base + size, HOLE)]
        elif place is None:
            start, stop = max(offset, base), min(end, base + size)
            to = (mapping_of(block) >> TIME_BITS) * size + start - base
            parts = [Transfer(to, start, stop, start, stop, HOLE)]
        else:
            old = mapping_of(block)
            source = HOLE if old == HOLE else (old >> TIME_BITS) * size
            parts = [
                Transfer(
                    place * size + at,
                    base + at,
                    min(base + at + COPY_BYTES, base + size),
                    max(offset, base + at),
                    min(end, base + at + COPY_BYTES, base + size),
                    HOLE if source == HOLE else source + at,
                )
                for at in range(0, size, COPY_BYTES)
            ]
        for part in parts:
            if joined is not None and joined.direct and part.direct and joined.end_place == part.place:
                joined = joined._replace(stop=part.stop, data_stop=part.data_stop)
                continue
            if joined is not None:
                yield joined
            joined = part
    if joined is not None:
        yield joined
