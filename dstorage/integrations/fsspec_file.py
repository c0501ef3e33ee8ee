"""Open files of the fsspec face: one version from begin to end, or new contents that take the file's place as a whole."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from dstorage.errors import ClosedError
from dstorage.integrations.mount import Mount
from dstorage.integrations.pieces import PieceWriter
from dstorage.integrations.tree import Tree

MODES = ("rb", "wb", "ab", "xb")
"""How a file can be opened."""
READ_AHEAD_BYTES = 2**18
"""Of a file read by small steps: a trip to the store's loop costs as much as copying this."""
WRITE_BYTES = 2**20
"""What a file being written gathers before it goes to the store."""


class File(AbstractBufferedFile):  # type: ignore[misc]  # fsspec ships no types
    """A file being read, or written (``wb``, ``ab`` and ``xb``).

    What is written is nowhere to be seen until it is closed; appending writes the file anew. Not thread-safe, like other files.
    """

    def __init__(
        self, fs: AbstractFileSystem, path: str, mode: str, block_size: int, *, mount: Mount, **kwargs: Any
    ) -> None:
        self._mount = mount
        # First: when this fails there is nothing to close.
        self._upload = Upload(mount, path, mode == "xb") if mode != "rb" else None
        super().__init__(fs, path, mode, block_size, **kwargs)
        if self._upload is not None and mode == "ab":
            try:
                self.loc = self._upload.begin_with(path)
            except BaseException:
                self.discard()
                raise

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self._mount.call(read, self.path, start, end, self.details["version"]))

    def _upload_chunk(self, final: bool = False) -> bool:
        assert self._upload is not None
        try:
            # No copy, and no view either, which the traceback of an error would keep.
            self._upload.append(self.buffer.getvalue())
        except BaseException:
            # A part of it may have gone.
            self.discard()
            raise
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        """Put what was written in its place (for transactions; others close the file).

        Raises:
            FileExistsError: (``xb``) There is a file now.
        """
        assert self._upload is not None
        self._upload.publish()

    def discard(self) -> None:
        """Throw away what was written; the file is as it was."""
        if self._upload is not None:
            self._upload.abort()
        self.closed = True

    def close(self) -> None:
        """Put what was written in its place. Idempotent.

        Raises:
            StoreFull, MemoryUnavailable: No room; the file is as it was.
        """
        try:
            super().close()
        except BaseException:
            self.discard()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()


class Upload:
    """Contents on their way to a path: published, or given up."""

    def __init__(self, mount: Mount, path: str, exclusive: bool) -> None:
        self._mount = mount
        self._path = path
        self._exclusive = exclusive
        self._contents: PieceWriter | None = mount.call(_begin, path, exclusive)

    def begin_with(self, path: str) -> int:
        """Let the contents of a file come first; returns their length, 0 if there is no such file."""
        assert self._contents is not None
        return self._mount.call(_append_file, self._contents, path)

    def append(self, data: Any) -> None:
        """Add bytes to the end."""
        if self._contents is None:
            raise ValueError("what was written has been given up")
        self._mount.call(_append, self._contents, data)

    def publish(self) -> None:
        """Let the path stand for them."""
        if self._contents is not None:
            self._mount.call(_publish, self._path, self._contents, self._exclusive)
            self._contents = None

    def abort(self) -> None:
        """Give up what was not published."""
        contents, self._contents = self._contents, None
        if contents is not None:
            # If the store is closed already, what was written is left for `Tree.collect`.
            with suppress(ClosedError):
                self._mount.call(_abort, contents)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()


# What runs on the store's loop.


async def read(tree: Tree, path: str, start: int, stop: int | None, version: int | None) -> Any:
    """`Tree.read`, with a version or without."""
    return await tree.read(path, start, stop, version=version)


async def _begin(tree: Tree, path: str, exclusive: bool) -> PieceWriter:
    if exclusive and tree.find(path) is not None:
        raise FileExistsError(f"there is {path!r} already")
    return tree.writer(path)


async def _append(tree: Tree, contents: PieceWriter, data: Any) -> None:
    await contents.append(data)


async def _append_file(tree: Tree, contents: PieceWriter, path: str) -> int:
    size = 0
    if tree.find(path) is not None:
        async for piece in tree.pieces(path):
            await contents.append(piece)
            size += len(piece)
    return size


async def _publish(tree: Tree, path: str, contents: PieceWriter, exclusive: bool) -> None:
    if not contents.number:
        await contents.seal()
    await tree.publish(path, contents, exclusive=exclusive)


async def _abort(tree: Tree, contents: PieceWriter) -> None:
    contents.abort()
