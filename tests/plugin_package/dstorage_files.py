"""Chunks as plain files, one each: a whole controller on two pages, to begin your own with.

Simple before fast: every write waits for its fsync, and one thread does all file calls. A locator's `b` is the number of the
file; `c` is a CRC-32 over the bytes that begins with the chunk's id, so that another chunk's file does not pass for this one.
The private state lists the files that the last commit refers to (number -> size); what lies there beside them was
written by a process that crashed before its commit, and is deleted by the next open.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, TypeVar

from dstorage import (
    Controller,
    ControllerError,
    ControllerFull,
    ControllerStatus,
    ControllerUnavailable,
    CorruptData,
    InvalidArgumentError,
    Locator,
    Lost,
    OpenContext,
    ReadRequest,
    Space,
    WriteRequest,
)
from dstorage.controller import Buffer, Settings

T = TypeVar("T")


class FilesController(Controller):
    """Keeps every chunk in a file of its own.

    Args:
        name: The name under which the store lists it.
        path: Directory for the files; each store makes its own in it.
        capacity: Bytes to keep at most, or None for what the file system has.
        rank: Performance class.

    Raises:
        InvalidArgumentError: `capacity` is negative.
    """

    kind: ClassVar[str] = "files"

    def __init__(self, name: str, path: str | os.PathLike[str], *, capacity: int | None = None, rank: int = 20) -> None:
        if capacity is not None and capacity < 0:
            raise InvalidArgumentError(f"controller {name!r}: capacity must be a number of bytes >= 0, not {capacity}")
        path = Path(path).absolute()
        super().__init__(name, rank=rank, settings={"path": str(path), "capacity": capacity, "rank": rank})
        self._path = path
        self._capacity = capacity
        self._directory = path
        self._thread: ThreadPoolExecutor | None = None
        self._sizes: dict[int, int] = {}
        self._used = 0
        self._next = 1
        self._full = False
        self._committed_bytes = 0
        self._planned_bytes = 0
        self._read_only = False
        self._status_changed: Callable[[], None] = lambda: None

    @classmethod
    def from_settings(cls, name: str, settings: Settings) -> FilesController:
        """Build one from what the catalog kept, believing none of it."""
        path, capacity, rank = settings.get("path"), settings.get("capacity"), settings.get("rank", 20)
        known = settings.keys() <= {"path", "capacity", "rank"}
        if not (known and isinstance(path, str) and isinstance(capacity, int | None) and isinstance(rank, int)):
            raise InvalidArgumentError(f"controller {name!r} has settings that make no sense: {dict(settings)}")
        return cls(name, path, capacity=capacity, rank=rank)

    # -- inspection: on the loop, never waiting ------------------------------------------------------------------------

    @property
    def status(self) -> ControllerStatus:
        """FULL from the first refusal until something is freed."""
        return ControllerStatus.FULL if self._full else ControllerStatus.OK

    def space(self) -> Space:
        """The capacity, and the bytes of all files."""
        return Space(self._capacity, self._used)

    # -- open and close -----------------------------------------------------------------------------------------------

    async def open(self, context: OpenContext) -> None:
        """Take over the files of the last commit and delete what a crash has left beside them."""
        self._directory = self._path / f"{context.store_uuid}-{context.index}"
        self._read_only = context.read_only
        self._status_changed = context.status_changed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"dstorage-{self.name}")
        self._sizes = {number: int.from_bytes(size, "little") for number, size in context.state.items()}
        self._used = self._committed_bytes = self._planned_bytes = sum(self._sizes.values())
        try:
            await self._run(self._load)
        except OSError as error:
            raise ControllerUnavailable(f"controller {self.name!r} cannot use {self._directory}: {error}") from error

    def _load(self) -> None:
        if self._read_only:
            # Another process may be writing: its files are none of ours.
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self._directory.iterdir():
            if file.name.isdigit() and int(file.name) not in self._sizes:
                file.unlink()
        self._next = max(self._sizes, default=0) + 1

    async def close(self) -> None:
        """Wait for what is under way."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)

    # -- the bytes ----------------------------------------------------------------------------------------------------

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Read whole files; each request fails for itself."""
        return await self._run(lambda: [self._read(id, locator) for id, locator in requests])

    def _read(self, id: int, locator: Locator) -> Buffer | Exception:
        try:
            data = self._file(locator.b).read_bytes()
        except FileNotFoundError:
            return Lost(f"{self._file(locator.b)} is missing", id=id, controller=self.name)
        except OSError as error:
            return ControllerUnavailable(f"controller {self.name!r} cannot read chunk {id}: {error}; ask again")
        if len(data) != locator.size or _checksum(id, data) != locator.c:
            return CorruptData(f"{self._file(locator.b)} is damaged", id=id, controller=self.name)
        return data

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Write each chunk to a new file; the old one stays until `discard`: that is the copy-on-write of the contract."""
        self._check_writable()
        was = self.status
        refused: dict[int, Locator | Exception] = {}
        accepted: dict[int, WriteRequest] = {}
        numbers = range(self._next, self._next + len(requests))
        self._next = numbers.stop
        # Room is set aside here, on the loop, because several batches may be under way.
        for number, (id, data) in zip(numbers, requests, strict=True):
            if self._capacity is not None and self._used + len(data) > self._capacity:
                refused[number] = ControllerFull(f"controller {self.name!r} has no room for chunk {id} ({len(data)} B)")
            else:
                accepted[number] = WriteRequest(id, data)
                self._sizes[number] = len(data)
                self._used += len(data)
        try:
            answers = refused | await self._run(self._write, accepted)
        except asyncio.CancelledError:
            # Nobody will ever name these files; there is one thread, so this comes after the writes.
            self._start(self._unlink, list(accepted))
            self._forget(accepted)
            raise
        self._forget(number for number in accepted if isinstance(answers[number], Exception))
        self._full = self._full or any(isinstance(answer, ControllerFull) for answer in answers.values())
        self._tell(was)
        return [answers[number] for number in numbers]

    def _write(self, chunks: Mapping[int, WriteRequest]) -> dict[int, Locator | Exception]:
        answers: dict[int, Locator | Exception] = {}
        for number, (id, data) in chunks.items():
            try:
                with self._file(number).open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                answers[number] = Locator(len(data), number, _checksum(id, data))
            except OSError as error:
                self._unlink([number])
                no_room = error.errno in (errno.ENOSPC, errno.EDQUOT)
                kind = ControllerFull if no_room else ControllerUnavailable
                answers[number] = kind(f"controller {self.name!r} cannot write chunk {id}: {error}")
        return answers

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Delete files that no commit refers to any more."""
        self._check_writable()
        was = self.status
        numbers = [locator.b for _, locator in locators]
        await self._run(self._unlink, numbers)
        self._forget(numbers)
        self._full = False
        self._tell(was)

    def _unlink(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            # What cannot be deleted now is deleted by the next open.
            with contextlib.suppress(OSError):
                self._file(number).unlink()

    # -- durability ---------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """The files themselves are durable since `write`; what is left to do is their names."""
        try:
            await self._run(self._sync_directory)
        except OSError as error:
            raise ControllerUnavailable(f"controller {self.name!r} cannot sync {self._directory}: {error}") from error

    def _sync_directory(self) -> None:
        if hasattr(os, "O_DIRECTORY"):
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def checkpoint(self, alive: Sequence[tuple[int, Locator]], dead: Sequence[tuple[int, Locator]]) -> dict[int, bytes]:
        """Which files the commit begins, and which it ceases, to refer to."""
        self._planned_bytes = self._committed_bytes
        self._planned_bytes += sum(locator.size for _, locator in alive) - sum(locator.size for _, locator in dead)
        changes = {locator.b: locator.size.to_bytes(8, "little") for _, locator in alive}
        return changes | {locator.b: b"" for _, locator in dead}

    def committed(self) -> None:
        """What `checkpoint` planned has become true."""
        self._committed_bytes = self._planned_bytes

    def committed_bytes(self) -> int:
        """For `dstorage check`, which compares it with the catalog."""
        return self._committed_bytes

    # -- private ------------------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self._read_only:
            raise ControllerError(f"controller {self.name!r} was opened read-only")

    def _forget(self, numbers: Iterable[int]) -> None:
        self._used -= sum(self._sizes.pop(number, 0) for number in numbers)

    def _file(self, number: int) -> Path:
        return self._directory / str(number)

    def _start(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        if self._thread is None:
            raise ControllerError(f"controller {self.name!r} is not open")
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        return await self._start(function, *args)

    def _tell(self, was: ControllerStatus) -> None:
        if self.status is not was:
            self._status_changed()


def _checksum(id: int, data: Buffer) -> int:
    return zlib.crc32(data, zlib.crc32(id.to_bytes(8, "little")))
