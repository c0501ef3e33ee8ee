"""The index: all entries of a cache, in memory.

A lookup is one access to a dict, from any thread: entries are never changed in place, and the dict is changed on the store's loop only.
Everything else here is for the loop. An entry costs some 400 bytes of memory, whatever the size of its value.

Who leaves when the cache is too large is decided by CLOCK: entries wait in the order they were written; the hand takes the first
one, unless it was looked at since it last came by.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from dstorage.cache.keys import Key, encode_key, encode_prefix, exact
from dstorage.cache.records import NEVER, Entry
from dstorage.cache.values import ABSENT

ENTRY_BYTES = 128
"""What an entry takes besides its value: its records and names in the catalog."""
FEW = 64
"""So many keys are put into the order one by one, for which the others need only be moved; to sort them compares all."""
_SLACK = 64
"""So many leftovers in the queues are always worth keeping."""


class Entries:
    """See the module's docstring.

    Attributes:
        live: Key -> entry; may hold what has expired. Read it from any thread.
        volume: Bytes of all values, and `ENTRY_BYTES` for each.
        absent: How many of the entries are remembered misses.
    """

    def __init__(self) -> None:
        self.live: dict[Key, Entry] = {}
        self.volume = 0
        self.absent = 0
        self._tags: dict[Key, dict[Key, None]] = {}
        self._hand: deque[Entry] = deque()
        self._expiring = 0
        self._expiries: list[tuple[float, int, Entry]] = []
        self._number = itertools.count()
        self._sorted: list[tuple[bytes, Key]] | None = None
        self._added: list[Key] = []

    # -- changing -----------------------------------------------------------------------------------------------------

    def put(self, entry: Entry) -> Entry | None:
        """Let `entry` stand for its key; returns the one that did."""
        former = self.live.get(entry.key)
        self.live[entry.key] = entry
        self._came(entry, former)
        return former

    def change(self, entries: Sequence[Entry], removed: Sequence[Entry]) -> list[Entry | None]:
        """Let `entries` stand for their keys and forget `removed`, which no other thread sees half done.

        Returns:
            The ones that stood for the keys of `entries`.
        """
        formers = [self.live.get(entry.key) for entry in entries]
        after = {entry.key: entry for entry in entries}
        after |= {entry.key: entry.expiring(-math.inf) for entry in removed}
        # No other thread runs while the interpreter does this.
        self.live.update(after)
        for entry, former in zip(entries, formers, strict=True):
            self._came(entry, former)
        for entry in removed:
            self.remove(entry)
        return formers

    def _came(self, entry: Entry, former: Entry | None) -> None:
        key = entry.key
        if former is not None:
            self._leave(former, entry.tag)
        elif self._sorted is not None:
            self._added.append(key)
        self.volume += entry.size + ENTRY_BYTES
        self.absent += entry.kind is ABSENT
        if entry.tag is not None:
            self._tags.setdefault(entry.tag, {})[key] = None
        if entry.expires != NEVER:
            self._expiring += 1
            if len(self._expiries) > 2 * self._expiring + _SLACK:
                self._expiries = [item for item in self._expiries if self.live.get(item[2].key) is item[2]]
                heapq.heapify(self._expiries)
            # Numbered, for a key touched twice in one moment has two entries with the same time and id.
            heapq.heappush(self._expiries, (entry.expires, next(self._number), entry))
        if len(self._hand) > 2 * len(self.live) + _SLACK:
            self._hand = deque(entry for entry in self._hand if self.live.get(entry.key) is entry)
        self._hand.append(entry)

    def remove(self, entry: Entry) -> None:
        """Forget an entry that is in the index."""
        del self.live[entry.key]
        self._leave(entry, None)

    def _leave(self, entry: Entry, next_tag: Key | None) -> None:
        self.volume -= entry.size + ENTRY_BYTES
        self.absent -= entry.kind is ABSENT
        self._expiring -= entry.expires != NEVER
        tag = entry.tag
        if tag is not None and tag != next_tag:
            tagged = self._tags[tag]
            del tagged[entry.key]
            if not tagged:
                del self._tags[tag]

    # -- choosing -----------------------------------------------------------------------------------------------------

    def victim(self, keep: Entry | None = None) -> Entry | None:
        """The next entry to leave, still in the index; None if there is none but `keep`."""
        hand = self._hand
        while len(self.live) > (keep is not None):
            entry = hand.popleft()
            if self.live.get(entry.key) is not entry:
                continue
            if not entry.used and entry is not keep:
                return entry
            entry.used = False
            hand.append(entry)
        return None

    def expired(self, now: float) -> Entry | None:
        """An entry that has expired, still in the index, or None."""
        expiries = self._expiries
        while expiries and expiries[0][0] <= now:
            entry = heapq.heappop(expiries)[2]
            if self.live.get(entry.key) is entry:
                return entry
        return None

    @property
    def next_expiry(self) -> float:
        """When the next entry expires, or a little earlier; `NEVER`. From any thread."""
        try:
            return self._expiries[0][0]
        except IndexError:
            return NEVER

    def gone(self, now: float) -> int:
        """How many keys have expired and are there still; remembered misses are not counted."""
        rows = self._expiries
        done = 0
        # Below what has not expired in a heap, nothing has.
        pending = [0]
        while pending:
            at = pending.pop()
            if at < len(rows) and rows[at][0] <= now:
                entry = rows[at][2]
                done += entry.kind is not ABSENT and self.live.get(entry.key) is entry
                pending += (2 * at + 1, 2 * at + 2)
        return done

    # -- listing ------------------------------------------------------------------------------------------------------

    def tagged(self, tag: Key) -> list[Key]:
        """Keys with this tag, in the order they were written."""
        return list(self._tags.get(exact(tag), ()))

    def tags(self, now: float) -> list[Key]:
        """All tags of what has not expired."""
        live = self.live
        return [tag for tag, keys in self._tags.items() if any(live[key].expires > now for key in keys)]

    def in_order(self, prefix: Key | None, start: Key | None, stop: Key | None, *, reverse: bool) -> Iterator[Key]:
        """Keys in their order: those that begin with `prefix`, from `start` up to but without `stop`."""
        rows = self._in_order()
        low, high = 0, len(rows)
        if prefix is not None:
            beginning = encode_prefix(prefix)
            low, high = bisect_left(rows, (beginning,)), bisect_left(rows, (_successor(beginning),))
        if start is not None:
            low = max(low, bisect_left(rows, (encode_key(start),)))
        if stop is not None:
            high = min(high, bisect_left(rows, (encode_key(stop),)))
        found = rows[low:high]
        last: Key | None = None
        for _, key in reversed(found) if reverse else found:
            # Removed and written again: it is there twice.
            if key != last and key in self.live:
                yield key
            last = key

    def _in_order(self) -> list[tuple[bytes, Key]]:
        rows = self._sorted
        if rows is None or len(rows) + len(self._added) > 2 * len(self.live) + _SLACK:
            rows = self._sorted = [(encode_key(key), key) for key in self.live]
            rows.sort()
        elif len(self._added) <= FEW:
            for key in self._added:
                insort(rows, (encode_key(key), key))
        else:
            # Two runs in order, which the sort merges.
            rows += sorted((encode_key(key), key) for key in self._added)
            rows.sort()
        self._added = []
        return rows

    def load(self, entries: Iterable[Entry]) -> list[Entry]:
        """Take in what the catalog knows, in the order it was written; returns those superseded by a later one."""
        superseded = []
        for entry in entries:
            former = self.put(entry)
            if former is not None:
                superseded.append(former)
        return superseded


def _successor(beginning: bytes) -> bytes:
    """The least bytes that are greater than all that begin with `beginning`, which is not all 0xff."""
    stripped = beginning.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,))
