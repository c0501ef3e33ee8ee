"""fsck for a store: reads every chunk and compares every controller's books with the catalog.

Found are: records that name an unknown or removed controller, chunks (or copies) whose bytes are gone or fail their checksum, and space that
a controller counts as used although no record refers to it (or the other way round).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
        kind: "lost" (gone for ever), "copy" (gone in one place, whole in another), "unavailable" (cannot be read now), "books" (a
            controller's accounting is off), "count" (the catalog counts other chunks than it has records that can be read).
        id: The chunk, or 0.
        controller: Name of the controller concerned, or "".
        reason: In words.
    """

    kind: Literal["lost", "copy", "unavailable", "books", "count"]
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
        healed: Ids of chunks that were written anew from a copy where they were damaged.
        recounted: Names of controllers whose books were set right.
        counted: Whether the catalog's number of chunks was set right.
        advice: Controller name -> what about its medium's settings may lose chunks; makes no store unsound.
    """

    chunks: int = 0
    size_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    repaired: list[int] = field(default_factory=list)
    healed: list[int] = field(default_factory=list)
    recounted: list[str] = field(default_factory=list)
    counted: bool = False
    advice: dict[str, list[str]] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong (any more)."""
        return all(self.mended(problem) for problem in self.problems)

    def mended(self, problem: Problem) -> bool:
        """Whether a problem that was found is none any more."""
        if problem.kind == "books":
            return problem.controller in self.recounted
        if problem.kind == "count":
            return self.counted
        return problem.id in {"lost": self.repaired, "copy": self.healed}.get(problem.kind, ())


async def check(
    store: Store, *, repair: bool = False, advance: Callable[[int], None] = lambda count: None
) -> CheckReport:
    """Verify every record, place and checksum of the last commit.

    Args:
        store: An open store that nobody else changes meanwhile.
        repair: Write what is damaged anew from a whole copy, set controllers' books right, drop the records of chunks that are
            lost, and commit.
        advance: Called with the number of chunks done.
    """
    report = CheckReport()
    used: dict[int, int] = defaultdict(int)
    batches: dict[int, list[tuple[int, Record]]] = defaultdict(list)
    bad: dict[int, list[tuple[Record, Problem]]] = defaultdict(list)
    before = store.stats()
    for id, first in store.records():
        report.chunks += 1
        report.size_bytes += first.locator.size
        for place in store.places(id):
            problem = _look(store, id, place, used)
            if problem is not None:
                bad[id].append((place, problem))
                continue
            batch = batches[place.controller]
            batch.append((id, place))
            if len(batch) >= BATCH_CHUNKS or sum(r.locator.size for _, r in batch) >= BATCH_BYTES:
                await _read(store, bad, place.controller, batches.pop(place.controller))
        advance(1)
    for index, batch in batches.items():
        await _read(store, bad, index, batch)
    for id, found in sorted(bad.items()):
        whole = len(found) < len(store.places(id))
        for place, problem in found:
            if whole and problem.kind == "lost":
                problem = replace(problem, kind="copy")
                if repair and await store.heal(id, place):
                    report.healed.append(id)
            report.problems.append(problem)
    if before.chunks != report.chunks and before.commits == store.stats().commits:
        told = (
            f"it counts {before.chunks} chunks and has records of {report.chunks}: damage may have taken some with it"
        )
        report.problems.append(Problem("count", 0, "", told))
    for info in store.controllers():
        entry = store.entry(info.index)
        if entry is not None and entry.controller is not None:
            booked = entry.controller.committed_bytes()
            if booked is not None and booked != used[info.index]:
                told = f"it counts {booked} bytes as used, the catalog {used[info.index]}"
                report.problems.append(Problem("books", 0, info.name, told))
            advice = await entry.controller.advice()
            if advice:
                report.advice[info.name] = advice
    if repair and report.problems:
        # First of all: a damaged record that is dropped may take more from the books than they have.
        for info in store.controllers():
            await store.recount(info.index)
        # An id with one place that is away and another that is lost may come back.
        away = {problem.id for problem in report.problems if problem.kind == "unavailable"}
        lost = sorted({problem.id for problem in report.problems if problem.kind == "lost"} - away)
        for id in lost:
            store.forget(id)
        if lost or report.healed:
            await store.commit()
        report.repaired = lost
        for problem in report.problems:
            if problem.kind == "books" and await store.recount(store.entry_named(problem.controller).index):
                report.recounted.append(problem.controller)
            elif problem.kind == "count":
                await store.recount_chunks()
                report.counted = True
    return report


def _look(store: Store, id: int, place: Record, used: dict[int, int]) -> Problem | None:
    """What is wrong with a place before anything is read."""
    entry = store.entry(place.controller)
    if entry is None:
        return Problem("lost", id, str(place.controller), "its controller is not in the store's list")
    if entry.removed:
        return Problem("lost", id, entry.name, "its controller was declared removed")
    if entry.controller is None:
        why = f"its controller is not loaded ({entry.error or 'not registered'})"
        return Problem("unavailable", id, entry.name, why)
    try:
        used[place.controller] += entry.controller.footprint(place.locator)
    except CorruptData as error:
        return Problem("lost", id, entry.name, str(error))
    return None


async def _read(
    store: Store, bad: dict[int, list[tuple[Record, Problem]]], index: int, batch: list[tuple[int, Record]]
) -> None:
    entry = store.entry(index)
    assert entry is not None
    assert entry.controller is not None
    answers = await entry.controller.read([ReadRequest(id, place.locator) for id, place in batch])
    for (id, place), answer in zip(batch, answers, strict=True):
        if isinstance(answer, (Lost, CorruptData)):
            bad[id].append((place, Problem("lost", id, entry.name, str(answer))))
        elif isinstance(answer, Exception):
            bad[id].append((place, Problem("unavailable", id, entry.name, str(answer))))
        elif len(answer) != place.locator.size:
            why = f"{len(answer)} bytes instead of {place.locator.size}"
            bad[id].append((place, Problem("lost", id, entry.name, why)))
