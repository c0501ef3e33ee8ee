"""A pool's XML, read once before anything is written: checked, counted, spooled to a compact temporary file.

A bulk writer has to know how many entries each tree will hold; and a text that is wrong in its last line must not have
destroyed anything by then. Memory: about 150 bytes per device; mappings are on the spool.

Source: the rules of thin_restore 0.9.0.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from dstorage.errors import InvalidArgumentError
from dstorage.volumes.records import DeviceDetails, Run
from dstorage.volumes.superblock import check_data_block_size
from dstorage.volumes.xml import DeviceItem, Item, PoolItem

_RUN = struct.Struct("<QQQI")
SPOOLED_RUNS = 4096
"""Kept in memory before they go to the spool."""
SORTED_RUNS = 2**20
"""A device whose runs are out of order is sorted in memory, up to so many."""


class SurveyedDevice(NamedTuple):
    """What is known about one device: where its runs are on the spool, and their number and length."""

    details: DeviceDetails
    first: int
    runs: int
    mappings: int
    ordered: bool


class Survey:
    """All of a pool's description, off the memory. A context manager: the spool goes with it.

    Args:
        items: As `dstorage.volumes.xml.parse` yields them.

    Raises:
        InvalidArgumentError: A device twice, a virtual block twice, a data block the pool has not.
        NotAPoolError: No pool can have such data blocks.
        XmlError: From `items`.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._spool = tempfile.TemporaryFile(prefix="dstorage-restore-")  # noqa: SIM115 - it lives as long as the survey
        self._buffer: list[bytes] = []
        self._written = 0
        self.pool: PoolItem
        self.devices: dict[int, SurveyedDevice] = {}
        self.mappings = 0
        try:
            self._read(iter(items))
        except BaseException:
            self._spool.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._spool.close()

    def runs(self, id: int) -> Iterator[Run]:
        """The runs of a device in ascending order of virtual blocks.

        Raises:
            InvalidArgumentError: Two of them map the same virtual block.
        """
        device = self.devices[id]
        runs: Iterable[Run] = self._spooled(device.first, device.runs)
        if not device.ordered:
            runs = sorted(runs)
        end = 0
        for run in runs:
            if run.virtual < end:
                raise InvalidArgumentError(f"device {id}: virtual block {run.virtual} is mapped twice")
            end = run.virtual + run.length
            yield run

    def _spooled(self, first: int, count: int) -> Iterator[Run]:
        self._flush()
        while count:
            part = min(count, SPOOLED_RUNS)
            self._spool.seek(first * _RUN.size)
            for fields in _RUN.iter_unpack(self._spool.read(part * _RUN.size)):
                yield Run(*fields)
            first += part
            count -= part

    def _read(self, items: Iterator[Item]) -> None:
        pool = next(items)
        assert isinstance(pool, PoolItem)
        self.pool = pool
        check_data_block_size(pool.data_block_size, "the XML")
        id = -1
        details = DeviceDetails(0, 0, 0, 0)
        first = runs = mappings = end = 0
        ordered = True

        def close() -> None:
            if id >= 0:
                if not ordered and runs > SORTED_RUNS:
                    raise InvalidArgumentError(
                        f"device {id} has {runs} runs that are not in ascending order; "
                        f"up to {SORTED_RUNS} are sorted here: sort them by their first virtual block"
                    )
                exact = DeviceDetails(mappings, details.transaction_id, details.creation_time, details.snapshotted_time)
                self.devices[id] = SurveyedDevice(exact, first, runs, mappings, ordered)
                self.mappings += mappings

        for item in items:
            if isinstance(item, Run):
                if item.data + item.length > pool.nr_data_blocks:
                    raise InvalidArgumentError(
                        f"device {id} maps data block {item.data + item.length - 1}, "
                        f"but the pool has only {pool.nr_data_blocks}"
                    )
                ordered = ordered and item.virtual >= end
                end = item.virtual + item.length
                mappings += item.length
                runs += 1
                self._add(item)
            elif isinstance(item, DeviceItem):
                close()
                id, details = item.id, item.details
                if id in self.devices:
                    raise InvalidArgumentError(f"device {id} is there twice")
                first, runs, mappings, end, ordered = self._written + len(self._buffer), 0, 0, 0, True
        close()
        for id, device in self.devices.items():
            if not device.ordered:
                # Finds what is mapped twice, before anything is written.
                for _ in self.runs(id):
                    pass

    def _add(self, run: Run) -> None:
        self._buffer.append(_RUN.pack(*run))
        if len(self._buffer) >= SPOOLED_RUNS:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            self._spool.seek(self._written * _RUN.size)
            self._spool.write(b"".join(self._buffer))
            self._written += len(self._buffer)
            self._buffer.clear()
