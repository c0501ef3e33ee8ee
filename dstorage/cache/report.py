"""What a cache tells about itself and its entries."""

from __future__ import annotations

from dataclasses import dataclass

from dstorage.cache.keys import Key
from dstorage.cache.records import NEVER, Entry


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters of a cache.

    Attributes:
        hits: Times a value was asked for and found.
        misses: Times there was none.
        entries: Keys now, remembered misses included.
        volume: Bytes of all values now, with 128 for each entry.
        size_limit: What `volume` may be, or None.
        culled: Entries that left because the cache was full.
        expired: Entries that were removed because their time was over.
        lost: Entries that were dropped because their chunk was gone or damaged.
        unkept: Results of memoized functions that were not kept, being larger than `size_limit` or finding no room, or a cache that is
            read-only; and small values of `Cache.set` that found no room after it had returned.
    """

    hits: int
    misses: int
    entries: int
    volume: int
    size_limit: int | None
    culled: int
    expired: int
    lost: int
    unkept: int


@dataclass(frozen=True, slots=True)
class CacheEntryInfo:
    """What is known of one key.

    Attributes:
        size: Bytes of the value as it is kept.
        expires: Seconds since the epoch at which it expires, or None.
        tag: Its tag, or None.
    """

    size: int
    expires: float | None
    tag: Key | None


def info_of(entry: Entry) -> CacheEntryInfo:
    """What is told of an entry."""
    return CacheEntryInfo(entry.size, None if entry.expires == NEVER else entry.expires, entry.tag)
