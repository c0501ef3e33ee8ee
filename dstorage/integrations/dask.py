"""Spilling of dask workers to a dstorage store: ``pip install dstorage[dask]``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import zict
from distributed.metrics import context_meter
from distributed.protocol.compression import get_compression_settings
from distributed.protocol.serialize import deserialize_bytes, serialize_bytelist
from distributed.spill import Slow, SpilledSize, _in_memory_weight
from distributed.spill import SpillBuffer as DistributedSpillBuffer
from zict.common import discard

from dstorage.errors import InvalidArgumentError, MemoryUnavailable
from dstorage.integrations.spill import SpillMapping
from dstorage.paging.budget import parse_bytes

BUDGET_SHARE = 4
"""Of a worker's target this part is the store's: enough for what is being written and read, with little taken from the objects."""


class SpillBuffer(DistributedSpillBuffer):
    """What a dask worker keeps its data in: distributed's own, but for where the bytes go::

        LocalCluster(memory_limit="4GB", data=(SpillBuffer, {"target": "2.4GB"}))

    Metrics, the dashboard's "spilled" figures, the memory monitor, ``spill-compression`` and the handling of errors are distributed's.

    Args:
        target: Managed memory, in bytes or as text, at which spilling begins, and which is held: objects and the store's budget
            together. Distributed's own takes 60 % of a worker's memory limit.
        budget: The part of it that is the store's; by default a quarter.
        max_spill: Most bytes that are on the disk; False for no limit.
        rewrite: Write a value anew each time it leaves memory. Else what is on the disk already is not written again, for tasks do not
            change their inputs; if one does it in place nevertheless, spilling undoes it.
        worker_local_directory: Where to make the temporary directory; dask gives the worker's own.

    Raises:
        InvalidArgumentError: An argument is out of range.
    """

    def __init__(
        self,
        target: int | str,
        *,
        budget: int | str | None = None,
        max_spill: int | bool = False,
        rewrite: bool = False,
        worker_local_directory: str | None = None,
    ) -> None:
        whole = parse_bytes(target)
        part = whole // BUDGET_SHARE if budget is None else parse_bytes(budget)
        if not 0 < part < whole:
            raise InvalidArgumentError(
                f"budget={budget} of target={target}: give less than the target, and more than 0"
            )
        mapping: SpillMapping[Any] = SpillMapping(worker_local_directory, budget=part)
        self._spilled = slow = _Slow(mapping, max_spill, rewrite, whole - part)
        # As distributed's own does it: a value still in use somewhere is not read a second time.
        cached: Any = zict.Cache(slow, zict.WeakValueMapping())
        zict.Buffer.__init__(self, fast={}, slow=cached, n=whole - part, weight=_in_memory_weight)
        self.logged_pickle_errors = set()
        self.cumulative_metrics = defaultdict(float)

    def __setitem__(self, key: Any, value: object) -> None:
        # First of all, for the new value may be spilled at once.
        discard(self.slow, key)
        self._spilled.forget(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        self._spilled.forget(key)

    def close(self) -> None:
        """Forget all data and remove the directory. Idempotent; done at the latest at the exit of the worker."""
        if hasattr(self, "slow"):  # else making it failed
            super().close()


class _Slow(Slow):
    """Serializes, counts and measures as distributed's own; the bytes go to a `SpillMapping`.

    What has been read and deleted, as the buffer does with what it brings back to memory, may be in the mapping still: *kept*. If it comes
    again, it is there.
    """

    d: SpillMapping[Any]  # type: ignore[assignment]  # it takes more than bytes, and gives bytearrays

    def __init__(self, mapping: SpillMapping[Any], max_weight: int | bool, rewrite: bool, most: int) -> None:
        compression = get_compression_settings("distributed.worker.memory.spill-compression")
        dump: Any = partial(serialize_bytelist, compression=compression, on_error="raise")
        zict.Func.__init__(self, dump, deserialize_bytes, mapping)
        self.max_weight = max_weight
        self.weight_by_key = {}
        self.total_weight = SpilledSize(0, 0)
        self._rewrite = rewrite
        self._most = most
        self._kept: dict[Any, SpilledSize] = {}

    def __getitem__(self, key: Any) -> object:
        if key not in self.weight_by_key:
            raise KeyError(key)
        with context_meter.meter("disk-read", "seconds"):
            # What the buffer will not take to memory, for it has more than `most` bytes there, stays here.
            pickled: Any = self.d.lend(key) if self.weight_by_key[key].memory <= self._most else self.d[key]
        context_meter.digest_metric("disk-read", 1, "count")
        context_meter.digest_metric("disk-read", len(pickled), "bytes")
        return self.load(pickled)

    def __setitem__(self, key: Any, value: object) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.weight_by_key[key] = kept
            self.total_weight += kept
            return
        try:
            if self.max_weight is not False:
                # Of what may be on the disk, that which need not be there leaves first.
                for other in list(self._kept):
                    self.forget(other)
            super().__setitem__(key, value)
        except MemoryUnavailable as error:
            # This is what distributed knows as "keep it in memory, and say so".
            raise OSError(str(error)) from error

    def __delitem__(self, key: Any) -> None:
        weight = self.weight_by_key.pop(key)
        self.total_weight -= weight
        if self.d.keeps(key) and not self._rewrite:
            self._kept[key] = weight
        else:
            del self.d[key]

    def __contains__(self, key: object) -> bool:
        return key in self.weight_by_key

    def __iter__(self) -> Iterator[Any]:
        return iter(self.weight_by_key)

    def __len__(self) -> int:
        return len(self.weight_by_key)

    def forget(self, key: Any) -> None:
        """The value is another one from now on, or none."""
        if self._kept.pop(key, None) is not None:
            del self.d[key]
