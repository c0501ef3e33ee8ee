"""dstorage: a memory-paging object store. Start with `open`."""

from typing import TYPE_CHECKING, Any

from dstorage.cache import (
    AsyncCache,
    AsyncCacheTransaction,
    Cache,
    CacheEntryInfo,
    CacheStats,
    CacheTransaction,
    MemoizeOptions,
    Missing,
    Serializer,
    TransactionConflict,
)
from dstorage.controller import (
    Controller,
    ControllerStatus,
    OpenContext,
    ReadRequest,
    Space,
    WriteRequest,
)
from dstorage.errors import (
    ClosedError,
    ControllerError,
    ControllerFull,
    ControllerUnavailable,
    CorruptData,
    Deleted,
    DStorageError,
    IllegalTransitionError,
    InvalidArgumentError,
    Lost,
    MemoryUnavailable,
    NotAStoreError,
    NotResolvedError,
    OverReleaseError,
    ReadOnlyError,
    StoreFull,
    StoreLocked,
    TemporarilyUnavailable,
    TooManyHandles,
    UsageError,
    VersionError,
)
from dstorage.events import Event, EventStream
from dstorage.handle import Handle, Status
from dstorage.info import ChunkInfo, ControllerInfo, Stats
from dstorage.namespace import Namespace
from dstorage.opening import open
from dstorage.paging.pressure import PressureMonitor
from dstorage.record import Locator
from dstorage.store import Store
from dstorage.tier import TierRule
from dstorage.tiering import TieringRules

if TYPE_CHECKING:
    from dstorage.array.core import AsyncPagedArray
    from dstorage.array.halo import Block
    from dstorage.array.paged import PagedArray

__version__ = "0.1.0"

__all__ = [
    # The store
    "ChunkInfo",
    "ControllerInfo",
    "Event",
    "EventStream",
    "Handle",
    "Namespace",
    "PressureMonitor",
    "Stats",
    "Status",
    "Store",
    "TierRule",
    "TieringRules",
    "open",
    # Arrays
    "AsyncPagedArray",
    "Block",
    "PagedArray",
    # The cache
    "AsyncCache",
    "AsyncCacheTransaction",
    "Cache",
    "CacheEntryInfo",
    "CacheStats",
    "CacheTransaction",
    "MemoizeOptions",
    "Missing",
    "Serializer",
    "TransactionConflict",
    # For authors of controllers
    "Controller",
    "ControllerStatus",
    "Locator",
    "OpenContext",
    "ReadRequest",
    "Space",
    "WriteRequest",
    # Errors
    "ClosedError",
    "ControllerError",
    "ControllerFull",
    "ControllerUnavailable",
    "CorruptData",
    "DStorageError",
    "Deleted",
    "IllegalTransitionError",
    "InvalidArgumentError",
    "Lost",
    "MemoryUnavailable",
    "NotAStoreError",
    "NotResolvedError",
    "OverReleaseError",
    "ReadOnlyError",
    "StoreFull",
    "StoreLocked",
    "TemporarilyUnavailable",
    "TooManyHandles",
    "UsageError",
    "VersionError",
]

_ARRAYS = {"AsyncPagedArray": "core", "Block": "halo", "PagedArray": "paged"}


def __getattr__(name: str) -> Any:
    """Arrays need numpy, which programs without arrays need not have."""
    if name not in _ARRAYS:
        raise AttributeError(f"module 'dstorage' has no attribute {name!r}")
    from importlib import import_module

    try:
        found = getattr(import_module(f"dstorage.array.{_ARRAYS[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise ImportError(f"dstorage.{name} needs numpy: pip install 'dstorage[array]'") from error
    globals()[name] = found
    return found
