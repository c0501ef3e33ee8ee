"""What a store says about itself: immutable snapshots."""

from __future__ import annotations

from dataclasses import dataclass

from dstorage.controller import ControllerStatus, Space


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of a store's counters; all sizes in bytes, all counts since it was opened.

    Attributes:
        budget: What the program allowed.
        limit: What is allowed now (less than `budget` while the machine is short of memory).
        used: Chunk contents in memory: resident, in flight and stray.
        dirty: Of these, not yet on a controller.
        stray: Of these, held only by views that the program kept too long.
        handles: Handles in the table.
        chunks: Committed chunks.
        page_ins: Chunks read from controllers.
        bytes_read: Bytes of these.
        write_backs: Chunks written to controllers.
        bytes_written: Bytes of these.
        evictions: Chunks that left memory.
        commits: Commits made.
        unavailable: Handles that are temporarily unavailable now.
    """

    budget: int
    limit: int
    used: int
    dirty: int
    stray: int
    handles: int
    chunks: int
    page_ins: int
    bytes_read: int
    write_backs: int
    bytes_written: int
    evictions: int
    commits: int
    unavailable: int


@dataclass(frozen=True, slots=True)
class ControllerInfo:
    """One line of the list of controllers, see `Store.controllers`.

    Attributes:
        index: Its place, for ever.
        name: Its name.
        kind: Of plug-in.
        rank: Performance class; higher is faster.
        status: As the store sees it.
        volatile: Whether a crash loses what it keeps.
        space: Bytes in all and used.
        error: Why it is not loaded, or what keeps its status from being OK; None if all is well or nobody knows.
        draining: Its chunks are to move elsewhere, and it gets no new ones.
    """

    index: int
    name: str
    kind: str
    rank: int
    status: ControllerStatus
    volatile: bool
    space: Space
    error: str | None
    draining: bool = False


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """Where a chunk is, see `Store.info`.

    Attributes:
        id: The chunk.
        size: Bytes.
        controller: Name of the controller that keeps it, None if it is only in memory yet.
        last_access: Nanoseconds since the epoch, as of the last commit that noted it: none does before a minute has gone by.
        resident: In memory.
        dirty: Newer in memory than on the controller.
        refs: References held.
        copies: Names of the controllers that keep it as well.
    """

    id: int
    size: int
    controller: str | None
    last_access: int
    resident: bool
    dirty: bool
    refs: int
    copies: tuple[str, ...] = ()
