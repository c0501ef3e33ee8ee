"""A pool and its devices in numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Kind = Literal["data", "metadata"]


class Mode(Enum):
    """What the pool takes."""

    WRITE = "write"
    OUT_OF_DATA_SPACE = "out of data space"
    """Mapped blocks can be written, new ones not: discard, delete or grow."""
    OUT_OF_METADATA_SPACE = "out of metadata space"
    """Mapped blocks can be written, new ones not, no devices be made: discard, delete or grow the metadata."""
    READ_ONLY = "read only"
    """Opened so, or a commit failed: everything is as at the last commit."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool in numbers; blocks are data blocks unless they say otherwise.

    Attributes:
        mode: What it takes.
        needs_check: Whether nobody may change it before a check.
        transaction_id: The program's own number.
        time: Counts snapshots.
        block_bytes: Of a data block.
        data_blocks: In all.
        free_data_blocks: Without those that are freed with the next commit.
        metadata_blocks: In all.
        free_metadata_blocks: Without the reserve that is kept back for commits and deletions.
        held_root: Block of the metadata snapshot, or 0.
        devices: How many there are.
    """

    mode: Mode
    needs_check: bool
    transaction_id: int
    time: int
    block_bytes: int
    data_blocks: int
    free_data_blocks: int
    metadata_blocks: int
    free_metadata_blocks: int
    held_root: int
    devices: int


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A thin device in numbers.

    Attributes:
        id: Of the device.
        mapped_blocks: Data blocks it reads from.
        shared_blocks: Of these, those that a write would copy: mapped before its last snapshot. They stay so when that
            snapshot is deleted, until they are written; None when not asked for, as it takes a walk over all mappings.
        transaction_id: The pool's when the device was made.
        creation_time: The pool's then.
        snapshotted_time: The pool's at the device's last snapshot.
    """

    id: int
    mapped_blocks: int
    shared_blocks: int | None
    transaction_id: int
    creation_time: int
    snapshotted_time: int


@dataclass(frozen=True, slots=True)
class LowSpace:
    """When a pool should say that it is running out, and to whom.

    Attributes:
        callback: Called on the loop with "data" or "metadata" and the number of free blocks, each time that it has fallen to its
            mark.
        data_blocks: The mark of data blocks.
        metadata_blocks: The mark of metadata blocks.
    """

    callback: Callable[[Kind, int], None]
    data_blocks: int = 0
    metadata_blocks: int = 0


class SpaceWatch:
    """Tells once each time that free space has fallen to its mark.

    Args:
        low: What to tell, None for nothing.
    """

    def __init__(self, low: LowSpace | None) -> None:
        self._low = low
        self._is_low: set[Kind] = set()

    def look(self, data: int, metadata: int, tell: Callable[[Callable[[Kind, int], None], Kind, int], object]) -> None:
        """Look at the numbers of free blocks; `tell` is given the callback and its arguments."""
        low = self._low
        if low is None:
            return
        figures: tuple[tuple[Kind, int, int], ...] = (
            ("data", data, low.data_blocks),
            ("metadata", metadata, low.metadata_blocks),
        )
        for kind, free, mark in figures:
            if free > mark:
                self._is_low.discard(kind)
            elif kind not in self._is_low:
                self._is_low.add(kind)
                tell(low.callback, kind, free)
