"""What a power failure may leave of files: record writes and syncs, then build the states their order allows.

The model is that of POSIX without kindness: what a successful sync of a file covered is there; of everything later any
part may be there, in any order, torn at sectors of 512 bytes, with or without the new length (zeros where the length
came first); a new or deleted name is certain only after a sync of its directory, however well its file was synced.

Example:
    device = RecordingDevice(Device())
    ...  # write through it, remember `device.position` whenever something was promised
    for failure in power_failures(device, at=position, seed=1, count=20):
        failure.write_to(directory, elsewhere)
        ...  # reopen there: all that was promised before `position` must hold
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    # The device is given by who tests a controller; nothing here depends on it at run time.
    from dstorage_controllers.disk.device import Device
else:
    Device = object

SECTOR = 512


class Created(NamedTuple):
    """A name for a new file."""

    file: int
    path: Path


class Wrote(NamedTuple):
    """Bytes into a file."""

    file: int
    offset: int
    data: bytes


class Truncated(NamedTuple):
    """A file cut to a length."""

    file: int
    length: int


class Punched(NamedTuple):
    """A range of a file turned into zeros."""

    file: int
    offset: int
    length: int


class Synced(NamedTuple):
    """All events of a file before `begun` are durable."""

    file: int
    begun: int


class Unlinked(NamedTuple):
    """A name taken away."""

    path: Path


class Renamed(NamedTuple):
    """A name given to another file, or rather a file given another name."""

    file: int
    path: Path
    new: Path


class SyncedDirectory(NamedTuple):
    """All names in a directory that changed before `begun` are durable."""

    path: Path
    begun: int


Event = Created | Wrote | Truncated | Punched | Synced | Unlinked | Renamed | SyncedDirectory


class RecordingDevice(Device):
    """A device that does what another one does, and remembers it.

    Args:
        inner: The device that does the work.
    """

    def __init__(self, inner: Device) -> None:
        self._inner = inner
        self._lock = threading.RLock()
        """Held over each change, so that the record has the order in which the changes happened."""
        self.events: list[Event] = []
        self._files: dict[Path, int] = {}
        self._open: dict[int, int] = {}
        self._count = 0

    @property
    def position(self) -> int:
        """Number of events so far."""
        return len(self.events)

    def __getattribute__(self, name: str) -> object:
        # What is not recorded is the inner device's, also where a base class has its own.
        if name.startswith("_") or name in _OWN:
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_inner"), name)

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        """Open a file; one that is new to the record begins as durable as it is."""
        with self._lock:
            fd = self._inner.open(path, create=create, write=write)
            if create:
                self._files[path] = self._new_file()
                self.events.append(Created(self._files[path], path))
            self._open[fd] = self._known(path)
            return fd

    def open_direct(self, path: Path, *, write: bool = True) -> int:
        """Open a file for direct I/O: a drive's own cache makes that no more durable."""
        with self._lock:
            fd = self._inner.open_direct(path, write=write)
            self._open[fd] = self._known(path)
            return fd

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        with self._lock:
            self._open.pop(fd, None)
            self._inner.close(fd)

    def pwritev(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        """Write, and remember what was written."""
        with self._lock:
            done = self._inner.pwritev(fd, buffers, offset)
            data = b"".join(bytes(buffer) for buffer in buffers)[:done]
            self.events.append(Wrote(self._open[fd], offset, data))
            return done

    def punch(self, fd: int, offset: int, length: int) -> bool:
        """Punch, and remember where."""
        with self._lock:
            done = self._inner.punch(fd, offset, length)
            if done:
                self.events.append(Punched(self._open[fd], offset, length))
            return done

    def truncate(self, path: Path, length: int) -> None:
        """Cut, and remember it."""
        with self._lock:
            file = self._known(path)
            self._inner.truncate(path, length)
            self.events.append(Truncated(file, length))

    def unlink(self, path: Path) -> None:
        """Delete a name, and remember it."""
        with self._lock:
            if path.exists():
                self._known(path)
            self._inner.unlink(path)
            if self._files.pop(path, None) is not None:
                self.events.append(Unlinked(path))

    def rename(self, old: Path, new: Path) -> None:
        """Rename, and remember it."""
        with self._lock:
            file = self._known(old)
            self._inner.rename(old, new)
            self._files[new] = self._files.pop(old)
            self.events.append(Renamed(file, old, new))

    def sync(self, fd: int) -> None:
        """Sync; covers what was there when it began, is certain when it has returned."""
        with self._lock:
            file, begun = self._open[fd], len(self.events)
        self._inner.sync(fd)
        with self._lock:
            self.events.append(Synced(file, begun))

    def sync_directory(self, path: Path) -> None:
        """Sync the names in a directory."""
        with self._lock:
            begun = len(self.events)
        self._inner.sync_directory(path)
        with self._lock:
            self.events.append(SyncedDirectory(path, begun))

    def _new_file(self) -> int:
        self._count += 1
        return self._count

    def _known(self, path: Path) -> int:
        if path not in self._files:
            file = self._files[path] = self._new_file()
            self.events += [Created(file, path), Wrote(file, 0, path.read_bytes())]
            begun = len(self.events)
            self.events += [Synced(file, begun), SyncedDirectory(path.parent, begun)]
        return self._files[path]


_OWN = frozenset(
    {
        "open",
        "open_direct",
        "close",
        "pwritev",
        "punch",
        "truncate",
        "rename",
        "unlink",
        "sync",
        "sync_directory",
        "events",
        "position",
    }
)


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, Wrote | Truncated | Punched]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PowerFailure:
    """What is left.

    Attributes:
        files: Contents by path.
        how: How it was made, for the message of a failed test.
    """

    files: dict[Path, bytes]
    how: str

    def write_to(self, old: Path, new: Path) -> None:
        """Make the files below `new` as they were left below `old`."""
        for path, content in self.files.items():
            target = new / path.relative_to(old)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


MODES = ("nothing unsynced", "everything", "whole writes at random", "sectors at random", "the last ones first")


def power_failures(device: RecordingDevice, *, at: int, seed: int, count: int) -> Iterator[PowerFailure]:
    """States that a power failure right behind event number `at` may leave.

    Args:
        device: What was recorded.
        at: Events before it have happened (0 to `device.position`).
        seed: The same seed gives the same states.
        count: How many; the first ones are the extremes, the others random.
    """
    files: dict[int, _File] = {}
    names: dict[Path, int] = {}
    changes: list[tuple[int, Created | Unlinked | Renamed]] = []
    for index, event in enumerate(device.events[:at]):
        match event:
            case Created(file, _):
                files[file] = _File()
                changes.append((index, event))
            case Unlinked() | Renamed():
                changes.append((index, event))
            case Wrote(file) | Truncated(file) | Punched(file):
                files[file].pending.append((index, event))
            case Synced(file, begun):
                pending = files[file].pending
                for when, change in pending:
                    if when < begun:
                        _apply(files[file].durable, change)
                files[file].pending = [(when, change) for when, change in pending if when >= begun]
            case SyncedDirectory(path, begun):
                for when, renamed in changes:
                    if when < begun and renamed.path.parent == path:
                        _rename(names, renamed)
                changes = [(w, c) for w, c in changes if not (w < begun and c.path.parent == path)]
    for number in range(count):
        mode = MODES[number % len(MODES)]
        chance = random.Random(f"{seed}/{at}/{number}")  # noqa: S311 - has to be repeatable
        left = dict(names)
        for _, renamed in changes:
            if mode == MODES[1] or (mode != MODES[0] and chance.random() < 0.5):
                _rename(left, renamed)
        contents = {path: _torn(files[file], mode, chance) for path, file in left.items()}
        yield PowerFailure(contents, f"{mode}, at event {at}, seed {seed}, state {number}")


def _rename(names: dict[Path, int], change: Created | Unlinked | Renamed) -> None:
    if isinstance(change, Created):
        names[change.path] = change.file
        return
    names.pop(change.path, None)
    if isinstance(change, Renamed):
        names[change.new] = change.file


def _apply(content: bytearray, change: Wrote | Truncated | Punched) -> None:
    match change:
        case Wrote(_, offset, data):
            _extend(content, offset)
            content[offset : offset + len(data)] = data
        case Truncated(_, length):
            _extend(content, length)
            del content[length:]
        case Punched(_, offset, length):
            end = min(offset + length, len(content))
            if end > offset:
                content[offset:end] = bytes(end - offset)


def _extend(content: bytearray, length: int) -> None:
    if len(content) < length:
        content += bytes(length - len(content))


def _torn(file: _File, mode: str, chance: random.Random) -> bytes:
    content = bytearray(file.durable)
    last = len(file.pending) - 1
    for position, (_, change) in enumerate(file.pending):
        if mode == MODES[0]:
            break
        if mode == MODES[1] or (mode == MODES[2] and chance.random() < 0.5):
            _apply(content, change)
        elif mode == MODES[3]:
            _apply_torn(content, change, chance)
        elif mode == MODES[4] and chance.random() < (position + 1) / (last + 1):
            _apply(content, change)
    return bytes(content)


def _apply_torn(content: bytearray, change: Wrote | Truncated | Punched, chance: random.Random) -> None:
    if isinstance(change, Truncated):
        if chance.random() < 0.5:
            _apply(content, change)
        return
    length = len(change.data) if isinstance(change, Wrote) else change.length
    start, end = change.offset, change.offset + length
    if isinstance(change, Wrote) and chance.random() < 0.5:
        # The new length may come before the bytes.
        _extend(content, chance.randint(start, end))
    while start < end:
        stop = min((start // SECTOR + 1) * SECTOR, end)
        if chance.random() < 0.5:
            if isinstance(change, Wrote):
                at = start - change.offset
                _apply(content, Wrote(change.file, start, change.data[at : at + stop - start]))
            else:
                _apply(content, Punched(change.file, start, stop - start))
        start = stop
