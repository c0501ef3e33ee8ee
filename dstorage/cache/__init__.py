"""A cache of large data on a store: `dstorage.AsyncCache` for coroutines."""

from dstorage.cache.asynchronous import AsyncCache
from dstorage.cache.memoize import MemoizeOptions, Missing
from dstorage.cache.report import CacheStats, EntryInfo
from dstorage.cache.transaction import AsyncTransaction, TransactionConflict
from dstorage.cache.values import Serializer

__all__ = [
    "AsyncCache",
    "AsyncTransaction",
    "CacheStats",
    "EntryInfo",
    "MemoizeOptions",
    "Missing",
    "Serializer",
    "TransactionConflict",
]
