r"""A tree of files over names and chunks, shared by the zarr and the fsspec face.

The names table says what is in a directory: the name ``tree\0``, the number of the directory (8 bytes, big-endian; the root is 0) and
one component of a path stand for the contents of a file (see `dstorage.integrations.pieces`); with a "/" behind the component they
stand for the number of a directory. The name ``tree\0`` alone counts the directories.

So a path may be of any depth and length, a component has at most `MAX_COMPONENT_BYTES` of UTF-8, listing a directory looks at nothing
else, and renaming one costs one name, whatever is below.

Guarantees: a file is replaced as a whole, in memory at once and on disk by one commit; one read of it gives all of the old contents or
all of the new. Chunks of a writer that a crash cut off are in nobody's way; `Tree.collect` frees them.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from dstorage.catalog import MAX_NAME_BYTES
from dstorage.controller import Buffer
from dstorage.errors import CorruptData, Deleted, InvalidArgumentError
from dstorage.integrations.pieces import Pieces, PieceWriter
from dstorage.store import Store

PREFIX = b"tree\0"
ROOT = 0
ERRORS = "surrogateescape"
"""Paths of file systems that are no UTF-8 come through, as in `os.fsencode`."""
AT_A_TIME = 1000
"""Chunks or files looked at, or freed, between two turns of the loop."""
_NUMBER = struct.Struct(">Q")
MAX_COMPONENT_BYTES = MAX_NAME_BYTES - len(PREFIX) - _NUMBER.size - len("/")
"""What is left of a name for one component of a path."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a directory.

    Attributes:
        name: Component of the path.
        number: Of a directory its number; of a file what stands for its contents, another number each time it is written.
        is_directory: Whether it is a directory, and no file.
    """

    name: str
    number: int
    is_directory: bool = False


_ROOT = Entry("", ROOT, is_directory=True)


class Tree:
    """Files in directories, on a store; get it from `Tree.open`, use it on the store's loop.

    Paths are components joined by "/", without one in front or behind; "" is the root.
    """

    def __init__(self, store: Store, pieces: Pieces, *, overlap: bool) -> None:
        self.store = store
        self._pieces = pieces
        self._overlap = overlap

    @classmethod
    async def open(cls, store: Store, *, piece_bytes: int | None = None, overlap: bool = False) -> Self:
        """The tree of a store; a store has one.

        Args:
            store: Where it is.
            piece_bytes: Files longer than this are split; by default 4 MiB, or an eighth of the budget if that is less.
            overlap: Let a path stand for a file and for a directory as well, as keys of object storage do: "a" beside "a/b".

        Raises:
            InvalidArgumentError: `piece_bytes` is not positive, or more than the budget.
        """
        return cls(store, await Pieces.open(store, piece_bytes), overlap=overlap)

    # -- looking ------------------------------------------------------------------------------------------------------

    def find(self, path: str) -> Entry | None:
        """What `path` leads to (if both, the file), or None."""
        return self._find(split(path))

    def _find(self, parts: list[str]) -> Entry | None:
        return self._find_file(parts) or self._find_directory(parts)

    def _find_file(self, parts: list[str]) -> Entry | None:
        parent = self._find_directory(parts[:-1])
        number = self.store.get_name(_key(parent.number, parts[-1])) if parent is not None and parts else None
        return None if number is None else Entry(parts[-1], number)

    def _find_directory(self, parts: list[str]) -> Entry | None:
        entry = _ROOT
        for part in parts:
            number = self.store.get_name(_key(entry.number, part + "/"))
            if number is None:
                return None
            entry = Entry(part, number, is_directory=True)
        return entry

    def directory(self, path: str) -> Entry:
        """The directory at `path`.

        Raises:
            FileNotFoundError, NotADirectoryError: There is none.
        """
        parts = split(path)
        entry = self._find_directory(parts)
        if entry is not None:
            return entry
        if self._find_file(parts) is not None:
            raise NotADirectoryError(f"{path!r} is a file")
        raise FileNotFoundError(f"no directory {path!r}")

    def file(self, path: str) -> Entry:
        """The file at `path`.

        Raises:
            FileNotFoundError, IsADirectoryError: There is none.
        """
        parts = split(path)
        entry = self._find_file(parts)
        if entry is not None:
            return entry
        if self._find_directory(parts) is not None:
            raise IsADirectoryError(f"{path!r} is a directory")
        raise FileNotFoundError(f"no file {path!r}")

    def entries(self, path: str) -> list[Entry]:
        """What is in a directory, in the order of the names' bytes.

        Raises:
            FileNotFoundError, NotADirectoryError: There is no such directory.
        """
        return self._entries(self.directory(path))

    def _entries(self, directory: Entry) -> list[Entry]:
        prefix = PREFIX + _NUMBER.pack(directory.number)
        found = ((name[len(prefix) :].decode(errors=ERRORS), number) for name, number in self.store.names(prefix))
        return [Entry(name.removesuffix("/"), number, name.endswith("/")) for name, number in found]

    def files(self, path: str = "") -> Iterator[tuple[str, Entry]]:
        """All files at and below `path`, with their full paths; none if there is no such path."""
        return ((where, entry) for where, entry in self._walk(path) if not entry.is_directory)

    def _walk(self, path: str) -> Iterator[tuple[str, Entry]]:
        """What is at and below `path`, directories before what is in them."""
        parts = split(path)
        pending = [
            (path, entry) for entry in (self._find_directory(parts), self._find_file(parts)) if entry is not None
        ]
        seen: set[int] = set()
        while pending:
            where, entry = pending.pop()
            if entry.is_directory:
                if entry.number in seen:
                    raise CorruptData(f"the directory {where[:80]!r} is in itself, or in two places")
                seen.add(entry.number)
                below = f"{where}/" if where else ""
                pending += [(below + inner.name, inner) for inner in reversed(self._entries(entry))]
            yield where, entry

    async def size(self, path: str) -> int:
        """Length of a file in bytes.

        Raises:
            FileNotFoundError, IsADirectoryError: There is no such file.
        """
        while True:
            entry = self.file(path)
            try:
                return await self._pieces.size(entry.number)
            except Deleted:
                if self._find_file(split(path)) == entry:
                    raise

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read(self, path: str, start: int = 0, stop: int | None = None, *, version: int | None = None) -> Buffer:
        """Contents of a file from `start` to before `stop`, as Python slices them: negative ends count from the end.

        What lies in one piece is not copied: it shares memory with the store, and counts as stray while held.

        Args:
            path: The file.
            start: First byte.
            stop: End, exclusive; None for all.
            version: Only if the file is still the one with this `Entry.number`.

        Raises:
            FileNotFoundError, IsADirectoryError: There is no such file.
            Deleted: It is another version now.
            TemporarilyUnavailable, Lost, MemoryUnavailable: As for a chunk.
        """
        while True:
            entry = self.file(path)
            if version is not None and entry.number != version:
                raise _replaced(path, version)
            try:
                return await self._pieces.read(entry.number, start, stop)
            except Deleted:
                # Replaced since it was looked up: the next round finds the new one, or none.
                if self._find_file(split(path)) == entry:
                    raise

    async def pieces(self, path: str) -> AsyncIterator[memoryview]:
        """Contents of a file from begin to end, piece by piece, as they lie in memory.

        Raises:
            FileNotFoundError, IsADirectoryError: There is no such file.
            Deleted: It was replaced meanwhile.
        """
        entry = self.file(path)
        try:
            async for piece in self._pieces.iterate(entry.number):
                yield piece
        except Deleted as error:
            if self._find_file(split(path)) == entry:
                raise
            raise _replaced(path, entry.number) from error

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(self, path: str, data: Buffer, *, exclusive: bool = False) -> int:
        """Make or replace a file; directories on the way are made.

        Args:
            path: The file.
            data: Its contents (copied).
            exclusive: Only if there is nothing yet.

        Returns:
            Its `Entry.number`.

        Raises:
            FileExistsError: (`exclusive`) There is one.
            IsADirectoryError, NotADirectoryError: The path is taken by a directory, or leads through a file.
            StoreFull, MemoryUnavailable: No room; the file is as it was.
        """
        self._check_place(path)
        contents = await self._pieces.put(data)
        try:
            await self.publish(path, contents, exclusive=exclusive)
        finally:
            contents.abort()
        return contents.number

    def writer(self, path: str) -> PieceWriter:
        """Contents to be written piece by piece, and then put in their place by `publish`, or given back by `abort`."""
        self._check_place(path)
        return PieceWriter(self._pieces)

    async def publish(self, path: str, contents: PieceWriter, *, exclusive: bool = False) -> None:
        """Let `path` stand for sealed contents, and free those it stood for before."""
        while True:
            parts = self._check_place(path)
            old = self._find_file(parts)
            if old is not None and exclusive:
                raise FileExistsError(f"there is a file {path!r}")
            doomed = await self._pieces.chunks(old.number) if old is not None else []
            # Nothing is awaited from here on: what was found is what is replaced.
            if self._find_file(parts) == old:
                break
        self.store.set_name(_key(self._make(parts[:-1]).number, parts[-1]), contents.number)
        contents.published()
        self._pieces.delete(doomed)

    def _check_place(self, path: str) -> list[str]:
        """Components of a path where a file may be put."""
        self.store.check_writable()
        parts = split(path)
        if not parts or (not self._overlap and self._find_directory(parts) is not None):
            raise IsADirectoryError(f"{path!r} is a directory")
        self._check_way(parts[:-1])
        return parts

    def _check_way(self, parts: list[str]) -> None:
        """A directory may be at this path: no file is on the way."""
        depth = 0 if self._overlap else len(parts)
        while depth and self._find_directory(parts[:depth]) is None:
            if self._find_file(parts[:depth]) is not None:
                raise NotADirectoryError(f"{'/'.join(parts[:depth])!r} is a file")
            depth -= 1

    def _make(self, parts: list[str]) -> Entry:
        """A directory, made if need be; `_check_way` has been asked."""
        entry = _ROOT
        for part in parts:
            key = _key(entry.number, part + "/")
            number = self.store.get_name(key)
            if number is None:
                number = (self.store.get_name(PREFIX) or ROOT) + 1
                self.store.set_name(PREFIX, number)
                self.store.set_name(key, number)
            entry = Entry(part, number, is_directory=True)
        return entry

    async def copy(self, source: str, target: str) -> None:
        """Copy a file, piece by piece.

        Raises:
            FileNotFoundError, IsADirectoryError: There is no file `source`, or `target` is a directory.
        """
        while True:
            entry = self.file(source)
            contents = self.writer(target)
            try:
                async for piece in self._pieces.iterate(entry.number):
                    await contents.append(piece)
                await contents.seal()
                await self.publish(target, contents)
            except Deleted:
                # Replaced meanwhile: once more, with what is there now.
                if self._find_file(split(source)) == entry:
                    raise
            else:
                return
            finally:
                contents.abort()

    async def move(self, source: str, target: str) -> None:
        """Rename a file or a directory; a file at `target` is replaced by a file.

        Raises:
            FileNotFoundError: There is no `source`.
            FileExistsError: `target` is a directory, or a file while `source` is a directory.
            InvalidArgumentError: `target` is inside of `source`.
        """
        self.store.check_writable()
        old, new = split(source), split(target)
        while True:
            entry, there = self._find(old), self._find(new)
            if entry is None:
                raise FileNotFoundError(f"no file or directory {source!r}")
            if old == new:
                return
            if not old or new[: len(old)] == old:
                raise InvalidArgumentError(f"{source!r} cannot be moved into itself, to {target!r}")
            if there is not None and (entry.is_directory or there.is_directory):
                raise FileExistsError(f"{target!r} is there already")
            doomed = await self._pieces.chunks(there.number) if there is not None else []
            if self._find(old) == entry and self._find(new) == there:
                break
        self._check_way(new[:-1])
        self._unlink(old, entry)
        suffix = "/" if entry.is_directory else ""
        self.store.set_name(_key(self._make(new[:-1]).number, new[-1] + suffix), entry.number)
        self._pieces.delete(doomed)

    # -- directories, and removing ------------------------------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        """Make a directory, and those it is in; fine if it is there.

        Raises:
            NotADirectoryError: There is a file on the way.
        """
        self.store.check_writable()
        parts = split(path)
        self._check_way(parts)
        self._make(parts)

    async def remove(self, path: str, *, prune: bool = False) -> None:
        """Remove a file.

        Args:
            path: The file.
            prune: Remove the directories too that are empty then.

        Raises:
            FileNotFoundError, IsADirectoryError: There is no such file.
        """
        self.store.check_writable()
        while True:
            entry = self.file(path)
            doomed = await self._pieces.chunks(entry.number)
            parts = split(path)
            if self._find_file(parts) == entry:
                break
        self._unlink(parts, entry)
        self._pieces.delete(doomed)
        if prune:
            self.prune("/".join(parts[:-1]))

    def prune(self, path: str) -> None:
        """Remove a directory and those it is in, as far up as they are empty; fine if it is not there."""
        parts = split(path)
        while parts and (directory := self._find_directory(parts)) is not None and not self._entries(directory):
            self._unlink(parts, directory)
            parts = parts[:-1]

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory.

        Raises:
            FileNotFoundError, NotADirectoryError: There is no such directory.
            OSError: It is not empty, or the root.
        """
        self.store.check_writable()
        entry = self.directory(path)
        if self._entries(entry) or entry == _ROOT:
            raise OSError(f"the directory {path!r} is not empty, or the root")
        self._unlink(split(path), entry)

    async def remove_all(self, path: str) -> None:
        """Remove a file, or a directory with all that is below ("" for all there is); fine if it is not there."""
        for count, (file, _) in enumerate(list(self.files(path)), 1):
            with suppress(FileNotFoundError):
                await self.remove(file)
            if count % AT_A_TIME == 0:
                await asyncio.sleep(0)
        for directory in reversed([where for where, entry in self._walk(path) if entry.is_directory]):
            with suppress(OSError):
                self.remove_directory(directory)

    def _unlink(self, parts: list[str], entry: Entry) -> None:
        parent = self._find_directory(parts[:-1])
        assert parent is not None
        self.store.set_name(_key(parent.number, parts[-1] + ("/" if entry.is_directory else "")), None)

    async def collect(self) -> int:
        """Free chunks that no file has: what writers left that a crash cut off.

        Returns:
            How many.
        """
        candidates: set[int] = set()
        for count, id in enumerate(self._pieces.ids(), 1):
            candidates.add(id)
            if count % AT_A_TIME == 0:
                await asyncio.sleep(0)
        candidates -= self._pieces.unfinished
        seen: set[int] = set()
        # Reading the indexes takes time in which files come and go: until all there are now have been seen.
        while fresh := self._numbers() - seen:
            seen |= fresh
            candidates -= fresh
            for number in filter(self._pieces.split, fresh):
                candidates.difference_update(await self._pieces.chunks(number))
        freed = 0
        for count, id in enumerate(candidates, 1):
            freed += self._pieces.delete([id])
            if count % AT_A_TIME == 0:
                await asyncio.sleep(0)
        return freed

    def _numbers(self) -> set[int]:
        """Numbers of all files; in one go, for one that is moved meanwhile must not be missed (half a second for a million)."""
        names = self.store.names(PREFIX)
        return {number for name, number in names if len(name) > len(PREFIX) and not name.endswith(b"/")}


def _replaced(path: str, version: int) -> Deleted:
    return Deleted(f"{path!r} was replaced while it was read: open it again", id=version)


def split(path: str) -> list[str]:
    """Components of a path.

    Raises:
        InvalidArgumentError: One is empty, "." or "..", or too long, or is no text that has bytes.
    """
    if not path:
        return []
    parts = path.split("/")
    for part in parts:
        if part in ("", ".", ".."):
            raise InvalidArgumentError(f"path {path[:80]!r} has a component {part!r}: write it without")
        try:
            length = len(part.encode(errors=ERRORS))
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"path component {part[:40]!r} is not to be had in UTF-8: {error.reason}"
            ) from error
        if length > MAX_COMPONENT_BYTES:
            raise InvalidArgumentError(
                f"path component {part[:40]!r}... is too long: give at most {MAX_COMPONENT_BYTES} bytes of UTF-8"
            )
    return parts


def _key(directory: int, component: str) -> bytes:
    return PREFIX + _NUMBER.pack(directory) + component.encode(errors=ERRORS)
