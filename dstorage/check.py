"""fsck for a store: reads every chunk and compares every controller's books with the catalog.

Found are: records that name an unknown or removed controller, chunks whose bytes are gone or fail their checksum, and space that
a controller counts as used although no record refers to it (or the other way round).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from dstorage.controller import ReadRequest
from dstorage.errors import CorruptData, Lost
from dstorage.record import Record
from dstorage.store import Store

BATCH_BYTES = 8 * 2**20
BATCH_CHUNKS = 256


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: "lost" (gone for ever), "unavailable" (cannot be read now), "books" (a controller's accounting is off).
        id: The chunk, or 0.
        controller: Name of the controller concerned.
        reason: In words.
    """

    kind: Literal["lost", "unavailable", "books"]
    id: int
    controller: str
    reason: str


@dataclass(slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        chunks: Chunks looked at.
        size_bytes: Their bytes.
        problems: What is wrong; empty for a sound store.
        repaired: Ids of lost chunks that were dropped.
    """

    chunks: int = 0
    size_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    repaired: list[int] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong (any more)."""
        return all(p.kind == "lost" and p.id in self.repaired for p in self.problems)


async def check(
    store: Store, *, repair: bool = False, advance: Callable[[int], None] = lambda count: None
) -> CheckReport:
    """Verify every record, place and checksum of the last commit.

    Args:
        store: An open store that nobody else changes meanwhile.
        repair: Drop the records of chunks that are lost, and commit.
        advance: Called with the number of chunks done.
    """
    report = CheckReport()
    used: dict[int, int] = defaultdict(int)
    batches: dict[int, list[tuple[int, Record]]] = defaultdict(list)
    for id, record in store.records():
        report.chunks += 1
        report.size_bytes += record.locator.size
        entry = store.entry(record.controller)
        if entry is None:
            _note(report, "lost", id, str(record.controller), "its controller is not in the store's list")
        elif entry.removed:
            _note(report, "lost", id, entry.name, "its controller was declared removed")
        elif entry.controller is None:
            _note(
                report,
                "unavailable",
                id,
                entry.name,
                f"its controller is not loaded ({entry.error or 'not registered'})",
            )
        else:
            try:
                used[record.controller] += entry.controller.footprint(record.locator)
            except CorruptData as error:
                _note(report, "lost", id, entry.name, str(error))
                advance(1)
                continue
            batch = batches[record.controller]
            batch.append((id, record))
            if len(batch) >= BATCH_CHUNKS or sum(r.locator.size for _, r in batch) >= BATCH_BYTES:
                await _read(store, report, record.controller, batches.pop(record.controller))
        advance(1)
    for index, batch in batches.items():
        await _read(store, report, index, batch)
    for info in store.controllers():
        entry = store.entry(info.index)
        if entry is not None and entry.controller is not None:
            booked = entry.controller.committed_bytes()
            if booked is not None and booked != used[info.index]:
                _note(
                    report, "books", 0, info.name, f"it counts {booked} bytes as used, the catalog {used[info.index]}"
                )
    if repair:
        lost = [problem.id for problem in report.problems if problem.kind == "lost"]
        for id in lost:
            store.forget(id)
        if lost:
            await store.commit()
        report.repaired = lost
    return report


async def _read(store: Store, report: CheckReport, index: int, batch: list[tuple[int, Record]]) -> None:
    entry = store.entry(index)
    assert entry is not None
    assert entry.controller is not None
    answers = await entry.controller.read([ReadRequest(id, record.locator) for id, record in batch])
    for (id, record), answer in zip(batch, answers, strict=True):
        if isinstance(answer, (Lost, CorruptData)):
            _note(report, "lost", id, entry.name, str(answer))
        elif isinstance(answer, Exception):
            _note(report, "unavailable", id, entry.name, str(answer))
        elif len(answer) != record.locator.size:
            _note(report, "lost", id, entry.name, f"{len(answer)} bytes instead of {record.locator.size}")


def _note(
    report: CheckReport, kind: Literal["lost", "unavailable", "books"], id: int, controller: str, reason: str
) -> None:
    report.problems.append(Problem(kind, id, controller, reason))
