"""Spilling of dask workers to a dstorage store: ``pip install dstorage[dask]``."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import zict
from distributed.metrics import context_meter
from distributed.protocol.compression import get_compression_settings
from distributed.protocol.serialize import deserialize_bytes, serialize_bytelist
from distributed.spill import Slow, SpilledSize, _in_memory_weight
from distributed.spill import SpillBuffer as DistributedSpillBuffer

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
        max_spill: Most bytes that are spilled; False for no limit.
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
        worker_local_directory: str | None = None,
    ) -> None:
        whole = parse_bytes(target)
        part = whole // BUDGET_SHARE if budget is None else parse_bytes(budget)
        if not 0 < part < whole:
            raise InvalidArgumentError(
                f"budget={budget} of target={target}: give less than the target, and more than 0"
            )
        slow = _Slow(SpillMapping(worker_local_directory, budget=part), max_spill)
        # As distributed's own does it: a value still in use somewhere is not read a second time.
        cached: Any = zict.Cache(slow, zict.WeakValueMapping())
        zict.Buffer.__init__(self, fast={}, slow=cached, n=whole - part, weight=_in_memory_weight)
        self.logged_pickle_errors = set()
        self.cumulative_metrics = defaultdict(float)

    def close(self) -> None:
        """Forget all data and remove the directory. Idempotent; done at the latest at the exit of the worker."""
        if hasattr(self, "slow"):  # else making it failed
            super().close()


class _Slow(Slow):
    """Serializes, counts and measures as distributed's own; the bytes go to a `SpillMapping`."""

    d: SpillMapping[Any]  # type: ignore[assignment]  # it takes more than bytes, and gives bytearrays

    def __init__(self, mapping: SpillMapping[Any], max_weight: int | bool) -> None:
        compression = get_compression_settings("distributed.worker.memory.spill-compression")
        dump: Any = partial(serialize_bytelist, compression=compression, on_error="raise")
        zict.Func.__init__(self, dump, deserialize_bytes, mapping)
        self.max_weight = max_weight
        self.weight_by_key = {}
        self.total_weight = SpilledSize(0, 0)

    def __getitem__(self, key: Any) -> object:
        with context_meter.meter("disk-read", "seconds"):
            # The buffer deletes what it has read.
            pickled: Any = self.d.lend(key)
        context_meter.digest_metric("disk-read", 1, "count")
        context_meter.digest_metric("disk-read", len(pickled), "bytes")
        return self.load(pickled)

    def __setitem__(self, key: Any, value: object) -> None:
        try:
            super().__setitem__(key, value)
        except MemoryUnavailable as error:
            # This is what distributed knows as "keep it in memory, and say so".
            raise OSError(str(error)) from error
