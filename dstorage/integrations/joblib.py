"""A store backend for `joblib.Memory`: ``pip install dstorage[joblib]``.

joblib pickles what functions return, and unpickles it: as with joblib's own directories, a store that others can write to is theirs to
run code with.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

from joblib import register_store_backend
from joblib._store_backends import CacheItemInfo, StoreBackendBase, StoreBackendMixin

from dstorage.errors import ChunkError, InvalidArgumentError
from dstorage.integrations.fsspec import DStorageFileSystem
from dstorage.integrations.tree import Tree

NAME = "dstorage"
"""Of the backend, for `joblib.Memory`."""
OUTPUT = "output.pkl"
"""joblib's name for what a call returned."""


def register() -> None:
    """Make ``joblib.Memory(directory, backend="dstorage")`` known::

    dstorage.integrations.joblib.register()
    memory = joblib.Memory("results", backend="dstorage", backend_options={"budget": "512M"})
    """
    register_store_backend(NAME, StoreBackend)


class StoreBackend(StoreBackendBase, StoreBackendMixin):  # type: ignore[misc]  # joblib ships no types
    """What functions returned, in the tree of files of a dstorage store.

    The store's directory is ``joblib`` in the location of the `Memory`, if that is a text, and the location itself, if that is a
    `pathlib.Path`: so joblib has it. It is opened once per process and closed at exit. Among the
    ``backend_options`` are ``path``, the directory in the tree (default: ``joblib``), and arguments for `dstorage.open`. One process at
    a time writes a store, so functions cached here are called in the program's own process, or in threads.
    """

    def configure(self, location: str, verbose: int = 1, backend_options: dict[str, Any] | None = None) -> None:
        """Name the store (joblib calls this).

        Raises:
            InvalidArgumentError: ``mmap_mode`` was asked for, which needs files of the system.
            StoreLocked, NotAStoreError, VersionError: It cannot be opened. (Later, joblib would make a warning of that.)
        """
        options = dict(backend_options or {})
        if options.pop("mmap_mode", None) is not None:
            raise InvalidArgumentError("mmap_mode: values in a dstorage store are no files to be mapped; leave it out")
        self.mmap_mode = None
        self.compress = options.pop("compress", False)
        self.verbose = verbose
        self.location = options.pop("path", "joblib")
        self.files = DStorageFileSystem(location, **options)
        self.files._mount.open()

    def close(self) -> None:
        """Commit, and give the store back; the next call opens it again."""
        self.files.close()

    def create_location(self, location: str) -> None:
        """Make a directory."""
        self.files.makedirs(location, exist_ok=True)

    def clear_location(self, location: str) -> None:
        """Remove a directory with all that is in it."""
        self.files._mount.call(Tree.remove_all, location)

    def get_items(self) -> list[CacheItemInfo]:
        """All values, with their sizes and the time they were last used, as far as it has been committed."""
        found: list[CacheItemInfo] = self.files._mount.call(_items, self.location)
        return found

    def _open_item(self, path: str, mode: str) -> Any:
        return self.files.open(path, mode)

    def _item_exists(self, path: str) -> bool:
        return bool(self.files.exists(path))

    def _move_item(self, source: str, target: str) -> None:
        self.files._mount.call(Tree.move, source, target)


# What runs on the store's loop.


async def _items(tree: Tree, path: str) -> list[CacheItemInfo]:
    items = []
    for file, entry in list(tree.files(path)):
        directory, _, name = file.rpartition("/")
        if name == OUTPUT:
            size = 0
            for other in tree.entries(directory):
                # One that is damaged counts for nothing; it goes with the others.
                with suppress(ChunkError):
                    size += await tree.size(f"{directory}/{other.name}")
            record = tree.store.record(entry.number)
            used = datetime.now() if record is None else datetime.fromtimestamp(record.last_access / 1e9)
            items.append(CacheItemInfo(directory, size, used))
    return items
