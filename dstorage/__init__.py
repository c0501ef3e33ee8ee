"""dstorage: a memory-paging object store. Start with `open`."""

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
