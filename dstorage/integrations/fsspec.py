"""An fsspec file system on a dstorage store, ``dstorage://``: ``pip install dstorage[fsspec]``.

Whatever opens files by URL (pandas, pyarrow, dask, xarray, ...) reads and writes the tree of files of a store (see
`dstorage.integrations.tree`), which is the one that the zarr face has its keys in.

Guarantees: a file is replaced as a whole when it is closed (or the transaction ends), and until then, or if the ``with`` block of
the file ends by an exception, it is as it was. A file that is read gives one version from begin to end, or raises.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.core import has_magic
from fsspec.utils import stringify_path, tokenize

from dstorage import blocking
from dstorage.errors import ChunkError, InvalidArgumentError
from dstorage.integrations.fsspec_file import MODES, READ_AHEAD_BYTES, WRITE_BYTES, File, Upload, read
from dstorage.integrations.mount import Mount, Source
from dstorage.integrations.tree import AT_A_TIME, Entry, Tree
from dstorage.store import Store

COPY_BYTES = 2**22
"""Step of copies from and to local files."""


class _Instances(type(AsyncFileSystem)):  # type: ignore[misc]  # fsspec ships no types
    """fsspec keeps instances, and finds them by the text of their arguments.

    So a path has to say the same wherever the program changes its directory to, and an open store, whose text another one may have, is
    not looked for.
    """

    def __call__(cls, store: Source | None = None, **options: Any) -> Any:
        if isinstance(store, Store | blocking.Store):
            options |= {"store": store, "skip_instance_cache": True}
        elif store is not None:
            options["store"] = str(Path(store).absolute())
        return super().__call__(**options)


class DStorageFileSystem(AsyncFileSystem, metaclass=_Instances):  # type: ignore[misc]  # fsspec ships no types
    """Files of a dstorage store.

    A URL is ``dstorage://path/in/the/store``. Which store, is said by ``storage_options={"store": directory}``, in fsspec's
    configuration, or at the URL's end: ``dstorage://path/in/the/store::/its/directory``. It is opened at the first use, is open once
    per process for all who name it, and closed at the exit of the program, or by `close`. What is written is durable with its next
    commit (every few seconds, by `commit`, at the end).

    Usable from any thread, and with ``asynchronous=True`` from any loop. Not from a forked child; it can be pickled, if the store
    was given as a path, for use in the same process or after the store was closed in this one: one process at a time writes a store.

    Args:
        store: Directory of a store; or a `dstorage.Store` or `dstorage.blocking.Store`, which stays open.
        fo: The same, as fsspec passes what follows a ``::`` in a URL.
        target_protocol: Of what follows a ``::``: ``file`` is the only one.
        target_options: Of what follows a ``::``: none.
        asynchronous: Whether the methods with an underscore are awaited, instead of those without called.
        loop: For those without: a loop running in another thread; by default fsspec's.
        batch_size: How many files are in work at the same time, of many.
        options: What fsspec itself knows (``use_listings_cache``, ``skip_instance_cache``, ...), and arguments for
            `dstorage.open`, such as ``budget="2G"``.

    Raises:
        InvalidArgumentError: No store is named, or it is no local directory, or there are options for a store that is open.
    """

    protocol = "dstorage"
    root_marker = ""

    def __init__(
        self,
        store: Source | None = None,
        *,
        fo: str | os.PathLike[str] | None = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        source = fo if store is None else store
        if source is None:
            raise InvalidArgumentError(
                'dstorage:// of which store? Give storage_options={"store": directory}, or dstorage://path::/directory'
            )
        if target_protocol not in (None, "file", "local") or target_options:
            raise InvalidArgumentError(f"the store is given as {target_protocol}://{fo}: give a local directory")
        known = {key: options.pop(key) for key in _FSSPEC_OPTIONS & options.keys()}
        super().__init__(asynchronous=asynchronous, loop=loop, batch_size=batch_size, **known)
        self._mount = Mount(source, options)

    @property
    def loop(self) -> Any:
        """Of those who do not await; they are not on the loop of the store, which would wait for them."""
        if not self.asynchronous:
            self._mount.check_caller()
        return super().loop

    @property
    def fsid(self) -> str:
        """Tells stores apart."""
        return f"dstorage_{tokenize(str(self._mount.path))}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return stringify_path(path).removeprefix("dstorage://").strip("/")

    def __reduce__(self) -> Any:
        if not isinstance(self._mount.source, str | os.PathLike):
            raise TypeError(f"{self!r} was given an open store: only one given a path can be pickled")
        return super().__reduce__()

    # -- life ---------------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Block until all files closed before are durable.

        Raises:
            StoreFull, TemporarilyUnavailable: They could not be made so; nothing in memory is lost.
        """
        self._mount.call(_commit)

    def collect(self) -> int:
        """Free the space of files that were being written when a process was killed; nobody sees them otherwise.

        It looks at all that is in the store, so it takes its time, while other calls go on.

        Returns:
            How many chunks were freed.
        """
        return self._mount.call(Tree.collect)

    def close(self) -> None:
        """Give the store back: the last one who does, of those who named it by path, commits and closes it.

        The next use opens it again.
        """
        self._mount.close()

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return await self._mount.run(_info, self._strip_protocol(path))

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        found = await self._mount.run(_list, self._strip_protocol(path))
        return found if detail else [info["name"] for info in found]

    def ukey(self, path: str) -> str:
        """A text that is another one each time the file is written."""
        return str(tokenize(self.fsid, self.info(path)))

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        return await self._mount.now(_exists, self._strip_protocol(path))

    # -- whole files --------------------------------------------------------------------------------------------------

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        return bytes(await self._mount.run(read, self._strip_protocol(path), start or 0, end, None))

    async def _pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        await self._mount.run(Tree.write, self._strip_protocol(path), value, exclusive=mode == "create")

    async def _get_file(
        self, rpath: str, lpath: str | os.PathLike[str], callback: Callback = DEFAULT_CALLBACK, **kwargs: Any
    ) -> None:
        info = await self._info(rpath)
        if info["type"] == "directory":
            await asyncio.to_thread(os.makedirs, lpath, exist_ok=True)
            return
        callback.set_size(info["size"])
        await asyncio.to_thread(self._download, info, Path(lpath), callback)

    def _download(self, info: dict[str, Any], target: Path, callback: Callback) -> None:
        """Copy one version of a file to a local file, which is there wholly or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as local:
                for at in range(0, info["size"], COPY_BYTES):
                    part = self._mount.call(read, info["name"], at, at + COPY_BYTES, info["version"])
                    local.write(part)
                    callback.relative_update(len(part))
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    async def _put_file(
        self,
        lpath: str | os.PathLike[str],
        rpath: str,
        mode: str = "overwrite",
        callback: Callback = DEFAULT_CALLBACK,
        **kwargs: Any,
    ) -> None:
        path = self._strip_protocol(rpath)
        if await asyncio.to_thread(os.path.isdir, lpath):
            await self._makedirs(path, exist_ok=True)
            return
        callback.set_size(await asyncio.to_thread(os.path.getsize, lpath))
        await asyncio.to_thread(self._upload, Path(lpath), path, mode == "create", callback)

    def _upload(self, source: Path, path: str, exclusive: bool, callback: Callback) -> None:
        with source.open("rb") as local, Upload(self._mount, path, exclusive) as upload:
            while part := local.read(COPY_BYTES):
                upload.append(part)
                callback.relative_update(len(part))
            upload.publish()

    async def _cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        await self._mount.run(_copy, self._strip_protocol(path1), self._strip_protocol(path2))

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Make an empty file.

        Args:
            path: The file.
            truncate: Whether one that is there is emptied; else it is left as it is, for files have no times.
            kwargs: Ignored.
        """
        self._mount.call(_touch, self._strip_protocol(path), truncate)

    # -- moving and removing ------------------------------------------------------------------------------------------

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Rename a file or a directory with all that is below, at once; into `path2` if that is a directory.

        Lists, patterns and `maxdepth` mean the same as in `copy`, after which the sources are removed.

        Raises:
            FileNotFoundError: There is no `path1`.
            FileExistsError: `path2`, or what would be in it, is there and is or would be a directory.
            IsADirectoryError: `path1` is a directory, and not `recursive`.
        """
        if isinstance(path1, list) or has_magic(stringify_path(path1)) or maxdepth is not None:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)
            return
        into = stringify_path(path2).endswith("/")
        self._mount.call(_move, self._strip_protocol(path1), self._strip_protocol(path2), into, recursive)

    async def _rm_file(self, path: str, **kwargs: Any) -> None:
        await self._mount.run(Tree.remove, self._strip_protocol(path))

    async def _rm(
        self,
        path: Any,
        recursive: bool = False,
        batch_size: int | None = None,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        whole = recursive and maxdepth is None
        paths = await self._expand_path(path, recursive=recursive and not whole, maxdepth=maxdepth)
        await self._mount.run(_remove, paths, recursive, whole)

    async def _mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        await self._mount.now(_make_directory, self._strip_protocol(path), create_parents, False)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        await self._mount.now(_make_directory, self._strip_protocol(path), True, exist_ok)

    async def _rmdir(self, path: str) -> None:
        await self._mount.now(Tree.remove_directory, self._strip_protocol(path))

    def rmdir(self, path: str) -> None:
        """Remove an empty directory.

        Raises:
            FileNotFoundError, NotADirectoryError: There is none.
            OSError: It is not empty, or the root.
        """
        self._mount.call(_remove_directory, self._strip_protocol(path))

    # -- open files ---------------------------------------------------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> File:
        if mode not in MODES:
            raise NotImplementedError(
                f"mode {mode!r}: files are read or written as a whole: give one of {', '.join(MODES)}"
            )
        if block_size is None:
            block_size = READ_AHEAD_BYTES if mode == "rb" else WRITE_BYTES
        return File(
            self,
            path,
            mode,
            block_size,
            autocommit=autocommit,
            cache_options=cache_options,
            mount=self._mount,
            **kwargs,
        )


_FSSPEC_OPTIONS = {"use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache"}
"""What `AbstractFileSystem` looks for among its arguments."""


# What runs on the store's loop.


async def _commit(tree: Tree) -> None:
    await tree.store.commit()


async def _info(tree: Tree, path: str) -> dict[str, Any]:
    try:
        entry = tree.find(path)
    except InvalidArgumentError as error:
        # No file can have such a path.
        raise FileNotFoundError(path) from error
    if entry is None:
        raise FileNotFoundError(path)
    return await _line(tree, path, entry)


def _exists(tree: Tree, path: str) -> bool:
    with suppress(InvalidArgumentError):
        return tree.find(path) is not None
    return False


async def _list(tree: Tree, path: str) -> list[dict[str, Any]]:
    info = await _info(tree, path)
    if info["type"] == "file":
        return [info]
    lines = []
    for count, entry in enumerate(tree.entries(path), 1):
        if count % AT_A_TIME == 0:
            await asyncio.sleep(0)
        where = f"{path}/{entry.name}" if path else entry.name
        try:
            lines.append(await _line(tree, where, entry))
        except (FileNotFoundError, IsADirectoryError):
            # Removed meanwhile.
            continue
        except ChunkError:
            # Its length cannot be had, as who opens it is told.
            lines.append({"name": where, "size": None, "type": "file", "version": entry.number})
    return lines


async def _line(tree: Tree, path: str, entry: Entry) -> dict[str, Any]:
    if entry.is_directory:
        return {"name": path, "size": 0, "type": "directory"}
    return {"name": path, "size": await tree.size(path), "type": "file", "version": entry.number}


async def _copy(tree: Tree, source: str, target: str) -> None:
    entry = tree.find(source)
    if entry is not None and entry.is_directory:
        tree.make_directory(target)
    else:
        await tree.copy(source, target)


async def _touch(tree: Tree, path: str, truncate: bool) -> None:
    if truncate or tree.find(path) is None:
        await tree.write(path, b"")


async def _move(tree: Tree, source: str, target: str, into: bool, recursive: bool) -> None:
    entry, there = tree.find(source), tree.find(target)
    if entry is not None and entry.is_directory and not recursive:
        raise IsADirectoryError(f"{source!r} is a directory: say recursive=True")
    if into or (there is not None and there.is_directory):
        name = source.rpartition("/")[2]
        target = f"{target}/{name}" if target else name
    await tree.move(source, target)


async def _remove(tree: Tree, paths: Iterable[str], recursive: bool, whole: bool) -> None:
    # What is in a directory comes before it.
    for path in sorted(paths, reverse=True):
        entry = tree.find(path)
        if entry is None:
            raise FileNotFoundError(path)
        if not entry.is_directory:
            await tree.remove(path)
        elif whole:
            await tree.remove_all(path)
        elif recursive:
            tree.remove_directory(path)
        else:
            raise IsADirectoryError(f"{path!r} is a directory: say recursive=True")


def _make_directory(tree: Tree, path: str, parents: bool, exist_ok: bool) -> None:
    entry = tree.find(path)
    if entry is not None and not (exist_ok and entry.is_directory):
        raise FileExistsError(f"there is {path!r} already")
    above = path.rpartition("/")[0]
    if not parents and tree.find(above) is None:
        raise FileNotFoundError(f"no directory {above!r}")
    tree.make_directory(path)


async def _remove_directory(tree: Tree, path: str) -> None:
    tree.remove_directory(path)
