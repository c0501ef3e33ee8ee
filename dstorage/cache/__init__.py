"""A cache of large data on a store: `dstorage.Cache` for threads, `dstorage.AsyncCache` for coroutines."""

from dstorage.cache.asynchronous import AsyncCache
from dstorage.cache.memoize import MemoizeOptions, Missing
from dstorage.cache.report import CacheEntryInfo, CacheStats
from dstorage.cache.synchronous import Cache, CacheTransaction
from dstorage.cache.transaction import AsyncCacheTransaction, TransactionConflict
from dstorage.cache.values import Serializer

__all__ = [
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
]
