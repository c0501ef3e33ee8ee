"""`dstorage demo`: real files, several times the memory budget, through the whole life of a store."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated

import psutil
import typer

import dstorage
from dstorage.cli.progress import Meter
from dstorage.cli.running import AsJson, print_json, print_table, run
from dstorage.errors import InvalidArgumentError
from dstorage.handle import Handle, Status

CHUNK_BYTES = 256 * 1024
BUDGET_SHARE = 0.25
LEAST_BUDGET = 2**20
MOST_BYTES = 2**30
IN_FLIGHT = 64
PATIENCE_S = 30
EDITED_EVERY = 8
MARK = b"dstorage was here"


@dataclass(slots=True)
class Figures:
    """What the demonstration found, sizes in bytes."""

    files: int = 0
    chunks: int = 0
    bytes: int = 0
    budget: int = 0
    peak_chunk_memory: int = 0
    peak_rss: int = 0
    rss_before: int = 0
    reads: int = 0
    hit_ratio: float = 0.0
    edits: int = 0
    evictions: int = 0
    write_backs: int = 0
    store_mb_per_s: float = 0.0
    read_mb_per_s: float = 0.0
    verified: bool = False


def demo(
    path: Annotated[
        Path | None,
        typer.Argument(help="File or folder to store; default: this Python's own library.", show_default=False),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help='Memory for chunks ("8M"); default: a quarter of the data.')
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Keep the store here; default: a temporary folder.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random order.")] = 1,
    json: AsJson = False,
) -> None:
    """Store real files several times larger than memory, read them at random by callbacks, edit some, commit, reopen, verify."""
    source = path or Path(sysconfig.get_paths()["stdlib"])
    if not source.exists():
        raise InvalidArgumentError(f"{source} does not exist: name a file or a folder")
    if store is not None and (store / "catalog").exists():
        raise InvalidArgumentError(f"there is a store at {store} already: name a new folder")
    with tempfile.TemporaryDirectory(prefix="dstorage-demo-") as scratch:
        figures = run(_Demo(source, budget, store or Path(scratch) / "store", seed).run())
    if json:
        print_json(asdict(figures))
    else:
        _print(source, figures)
    if not figures.verified:
        raise typer.Exit(1)


class _Demo:
    def __init__(self, source: Path, budget: str | None, store: Path, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)  # noqa: S311 - an order, no secret
        self._files = list(_files(source))
        self._figures = Figures(files=len(self._files), bytes=sum(size for _, size in self._files))
        if not self._figures.bytes:
            raise InvalidArgumentError(f"{source} holds no bytes to store")
        self._budget: str | int = budget or max(LEAST_BUDGET, int(self._figures.bytes * BUDGET_SHARE))
        self._chunks: list[tuple[int, Path]] = []
        self._edited: set[int] = set()
        self._process = psutil.Process()

    async def run(self) -> Figures:
        figures = self._figures
        figures.rss_before = self._process.memory_info().rss
        async with dstorage.open(self._store, budget=self._budget) as store:
            figures.budget = store.stats().budget
            if figures.budget < LEAST_BUDGET:
                raise InvalidArgumentError(
                    f"a budget of {figures.budget} bytes is too small: give {LEAST_BUDGET} or more"
                )
            await self._put(store)
            await self._read_and_edit(store)
            await store.commit()
            stats = store.stats()
            figures.evictions = stats.evictions
            figures.write_backs = stats.write_backs
            figures.hit_ratio = 1 - stats.page_ins / figures.reads
        async with dstorage.open(self._store, budget=self._budget) as store:
            figures.verified = await self._verify(store)
        self._note_rss()
        return figures

    async def _put(self, store: dstorage.Store) -> None:
        start = time.perf_counter()
        with Meter("storing", self._figures.bytes, unit="bytes") as meter:
            for path, _ in self._files:
                with path.open("rb") as file:
                    while data := file.read(CHUNK_BYTES):
                        with await store.create(data, wait=PATIENCE_S) as handle:
                            self._chunks.append((handle.id, path))
                        meter.advance(len(data))
                self._note(store)
        await store.commit()
        self._figures.chunks = len(self._chunks)
        self._figures.store_mb_per_s = self._figures.bytes / 1e6 / (time.perf_counter() - start)

    async def _read_and_edit(self, store: dstorage.Store) -> None:
        """Twice all chunks in random order, by callbacks, a bounded number at a time."""
        order = [id for id, _ in self._chunks] * 2
        self._random.shuffle(order)
        in_flight = max(1, min(IN_FLIGHT, self._figures.budget // (4 * CHUNK_BYTES)))
        room = asyncio.Semaphore(in_flight)
        read = 0
        problems: list[str] = []
        edits: set[asyncio.Task[None]] = set()
        with Meter("reading and editing", len(order)) as meter:

            def arrived(handle: Handle) -> None:
                nonlocal read
                if handle.status is not Status.RESOLVED:
                    problems.append(repr(handle.error))
                else:
                    read += handle.size
                    if handle.id % EDITED_EVERY == 0 and handle.size >= len(MARK):
                        # An edit may have to wait for memory, which a callback cannot.
                        edit = asyncio.create_task(self._edit(handle))
                        edits.add(edit)
                        edit.add_done_callback(lambda edit: done(handle))
                        return
                done(handle)

            def done(handle: Handle) -> None:
                handle.release()
                room.release()
                meter.advance()

            start = time.perf_counter()
            for id in order:
                await room.acquire()
                store.handle(id).resolve(arrived, wait=PATIENCE_S)
                self._note(store)
            for _ in range(in_flight):
                await room.acquire()
        for edit in edits:
            edit.result()
        if problems:
            raise dstorage.DStorageError(f"{len(problems)} reads failed, the first with {problems[0]}")
        self._figures.reads = len(order)
        self._figures.edits = len(self._edited)
        self._figures.read_mb_per_s = read / 1e6 / (time.perf_counter() - start)

    async def _edit(self, handle: Handle) -> None:
        async with handle.edit(wait=PATIENCE_S) as buf:
            buf[: len(MARK)] = MARK
        self._edited.add(handle.id)

    async def _verify(self, store: dstorage.Store) -> bool:
        """SHA-256 of every file, put together from its chunks, against the original with the same edits."""
        same = True
        with Meter("verifying", len(self._chunks)) as meter:
            for path, chunks in groupby(self._chunks, key=itemgetter(1)):
                ours, theirs = hashlib.sha256(), hashlib.sha256()
                with path.open("rb") as file:
                    for id, _ in chunks:
                        original = bytearray(file.read(CHUNK_BYTES))
                        if id in self._edited:
                            original[: len(MARK)] = MARK
                        theirs.update(original)
                        async with store.handle(id) as data:
                            ours.update(data)
                        self._note(store)
                        meter.advance()
                same = same and ours.digest() == theirs.digest()
        return same

    def _note(self, store: dstorage.Store) -> None:
        self._figures.peak_chunk_memory = max(self._figures.peak_chunk_memory, store.memory_used)
        if self._random.random() < 0.02:
            self._note_rss()

    def _note_rss(self) -> None:
        self._figures.peak_rss = max(self._figures.peak_rss, self._process.memory_info().rss)


def _files(source: Path) -> Iterator[tuple[Path, int]]:
    """Readable, non-empty regular files below `source`, with sizes, up to MOST_BYTES in all."""
    total = 0
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        try:
            if path.is_symlink() or not path.is_file():
                continue
            size = path.stat().st_size
            with path.open("rb"):
                pass
        except OSError:
            continue
        if size and total + size <= MOST_BYTES:
            total += size
            yield path, size


def _print(source: Path, figures: Figures) -> None:
    typer.echo(f"{source}: {figures.files:,} files through a store whose memory is smaller")
    rows: list[list[object]] = [
        ["stored", f"{figures.bytes / 1e6:,.1f} MB in {figures.chunks:,} chunks at {figures.store_mb_per_s:,.0f} MB/s"],
        ["memory budget", f"{figures.budget / 1e6:,.1f} MB ({figures.bytes / figures.budget:.1f} times less)"],
        ["peak chunk memory", f"{figures.peak_chunk_memory / 1e6:,.1f} MB"],
        [
            "peak RSS",
            f"{figures.peak_rss / 1e6:,.1f} MB ({figures.rss_before / 1e6:,.1f} MB before the store was opened)",
        ],
        [
            "random reads",
            f"{figures.reads:,} by callback at {figures.read_mb_per_s:,.0f} MB/s, hit ratio {figures.hit_ratio:.1%}",
        ],
        ["edited", f"{figures.edits:,} chunks"],
        ["evictions", f"{figures.evictions:,}"],
        ["write-backs", f"{figures.write_backs:,}"],
        ["after reopening", "every file's SHA-256 as expected" if figures.verified else "CONTENTS DIFFER"],
    ]
    print_table(["what", "figure"], rows)
