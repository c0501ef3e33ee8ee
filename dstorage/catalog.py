"""The catalog: where each chunk lives, on disk, in one LMDB environment.

Tables: ``records`` (ids without their low bits -> `dstorage.groups` of 32-byte records), ``copies`` (id -> records of further places of the same bytes, one after the other),
``controllers`` (index -> JSON), ``names`` (key -> id), ``state`` (controllers' private state) and ``meta`` (format version, store uuid,
next id, number of records, namespaces). `Catalog.apply` is the one place that changes it: one
LMDB transaction, durable when it returns. So a crash leaves either all of a commit or nothing of it.

Reads go through one standing read transaction that is begun anew after each commit: a lookup costs about a microsecond and
may touch a page of the map that is not in memory. All methods but `look_up`, `superseded` and those that write belong to the store's
event loop; these last are for one writer thread and may run beside reads, which see what was written after the next `refresh`.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import lmdb

from dstorage import groups
from dstorage.errors import CorruptData, NotAStoreError, UsageError, VersionError
from dstorage.known import LEAST, Known
from dstorage.lmdb_file import check_whole
from dstorage.record import KEY, MAX_ID, RECORD, Record, pack_record, unpack_record

FORMAT_VERSION = 2
FIRST_MAP_BYTES = 64 * 2**20
RECORDS_AT_A_TIME = 1024
KEPT_BYTES = 64 * 2**20
"""A catalog up to this large (more than a million chunks) when it is opened is mapped as the system likes best: what is used of it stays in
memory, and pages around what is missing are read as well. A larger one is advised to be read at random: no page is read in vain, but Linux
then does not see which pages are in use, and in a control group with little memory drops them first."""
GROUPS_AT_A_TIME = RECORDS_AT_A_TIME // groups.IDS
MAX_NAME_BYTES = 511
"""LMDB's limit on the length of a key."""

_STATE_KEY = struct.Struct(">IQ")
"""Controller index, then the controller's own key; big-endian, so that one controller's entries lie together."""
_INDEX_KEY = struct.Struct(">I")
_NAMESPACE = b"namespace "
"""Then the number in decimal: a key of ``meta``."""
_ID = struct.Struct("<Q")


class _Shared:
    """An environment and who uses it: LMDB wants one per process, so a reader beside the writer of its own process shares."""

    def __init__(self, env: lmdb.Environment, read_only: bool) -> None:
        self.env = env
        self.read_only = read_only
        self.holders = 0
        """Catalogs that need the environment."""
        self.users: list[Catalog] = []
        """Those of them that are open, each in a thread of its own perhaps."""
        self.looking: dict[int, lmdb.Transaction[bytes] | None] = {}
        """Threads that are looking something up, and in what, if that may be ended by others. Not a lock: with one, threads that look up much spend their time waiting for each other."""
        self.moving = False
        self.writing = threading.Lock()
        """Held while something is written, by a thread that whoever asked for it may have given up waiting for."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody looks anything up inside the `with`, in which the map is moved or closed."""
        with self._lock:
            self.moving = True
            # An interrupt may have kept this thread from saying that it has left.
            self.looking.pop(threading.get_ident(), None)
            try:
                while self.looking:
                    time.sleep(0)
                yield
            finally:
                self.moving = False

    def __enter__(self) -> None:
        """The map is not moved or closed inside the `with`, which does not nest: there may be another store's loop that wants to."""
        looking, thread = self.looking, threading.get_ident()
        # In this order: who is `alone` raises the flag first, and looks who is here after that.
        looking[thread] = None
        while self.moving:
            del looking[thread]
            with self._lock:
                looking[thread] = None

    def __exit__(self, *_: object) -> None:
        del self.looking[threading.get_ident()]


_shared: dict[Path, _Shared] = {}
_sharing = threading.Lock()
"""Held while an environment is opened or closed."""


def _share(path: Path, *, data_bytes: int, read_only: bool) -> _Shared:
    """The environment, which the caller has to leave again."""
    with _sharing:
        shared = _environment(path, data_bytes=data_bytes, read_only=read_only)
        shared.holders += 1
        return shared


def _environment(path: Path, *, data_bytes: int, read_only: bool) -> _Shared:
    shared = _shared.get(path.resolve())
    if shared is None:
        try:
            env = lmdb.open(
                str(path),
                map_size=max(FIRST_MAP_BYTES, 2 * data_bytes),
                max_dbs=16,
                readonly=read_only,
                create=not read_only,
                max_readers=512,
                readahead=data_bytes <= KEPT_BYTES,
                mode=0o600,
            )
        except lmdb.Error as error:
            if "already open" not in str(error):
                raise
            raise UsageError(
                f"the catalog {path} is open in this process, or a thread of its parent was reading it while it was forked: "
                "fork again, or start processes by spawn or forkserver"
            ) from error
        shared = _shared[path.resolve()] = _Shared(env, read_only)
    elif shared.read_only and not read_only:
        raise UsageError(f"{path.parent} is open here with read_only=True: close that first, then open it for writing")
    return shared


@dataclass(slots=True)
class Changes:
    """What one commit switches.

    Attributes:
        records: id -> its new record, or None for a deleted chunk.
        copies: id -> records of its further places; an id in `records` that is not here has none.
        accessed: id -> last access (ns since the epoch), for records that are otherwise unchanged.
        names: key -> id, or None to delete the name.
        state: (controller index, key) -> value; an empty value deletes the entry.
        count: How many records there are, where they were counted anew and none is changed.
    """

    records: Mapping[int, Record | None] = field(default_factory=dict)
    copies: Mapping[int, tuple[Record, ...]] = field(default_factory=dict)
    accessed: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[bytes, int | None] = field(default_factory=dict)
    state: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    count: int | None = None


def _unpack_copies(raw: bytes) -> tuple[Record, ...]:
    if len(raw) % RECORD.size:
        raise CorruptData(f"an entry of {len(raw)} bytes in the catalog's table of copies is damaged")
    return tuple(unpack_record(raw[start : start + RECORD.size]) for start in range(0, len(raw), RECORD.size))


class Catalog:
    """An open catalog; of those that write, one for each environment, which its commits need not be told of others'.

    Args:
        path: Directory of the LMDB environment.
        read_only: Look only; a writer in another process may go on meanwhile.
        create: Make a new one if there is none.
        most_known: So many groups of records that were looked up are remembered.

    Raises:
        NotAStoreError: There is none and `create` is False.
        VersionError: It was written by another version; nothing was changed.
        CorruptData: The file is there but no catalog, or was cut off; or it is gone and what the controllers hold is not.
    """

    def __init__(self, path: Path, *, read_only: bool = False, create: bool = True, most_known: int = LEAST) -> None:
        self.path = path
        self._read_only = read_only
        self._most_known = most_known
        self._known: tuple[lmdb.Transaction[bytes] | None, Known] = (None, Known(most_known))
        """The transaction to read in, and what was looked up in it."""
        self._changed: dict[int, bytes | None] = {}
        """Groups that were written since the last look anew, and what they are now, where that was noted."""
        self._noting = threading.Lock()
        """Held while that changes."""
        data = path / "data.mdb"
        exists = data.exists() and data.stat().st_size > 0
        if not exists and (read_only or not create):
            raise NotAStoreError(f"no store at {path.parent}: create it with `dstorage init` or open it for writing")
        if exists:
            check_whole(data)
        else:
            self._refuse_beside_others()
        if not read_only:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._shared = _share(path, data_bytes=data.stat().st_size if exists else 0, read_only=read_only)
        except lmdb.Error as error:
            raise CorruptData(f"{data} cannot be opened as a catalog: {error}") from error
        self._env = self._shared.env
        self._former: list[lmdb.Transaction[bytes]] = []
        """Earlier ones, in which somebody may be looking something up still."""
        try:
            # To open a table begins a transaction that writes: beside another one, py-lmdb waits for that without giving the interpreter's
            # lock away, for ever.
            with self._shared.writing, self._shared:
                if not read_only and not self._env.stat()["entries"]:
                    if exists:
                        # Left so by a process that was killed before it had made the tables, or emptied.
                        self._refuse_beside_others()
                    self._make_tables()
                self._open_tables()
                self._txn = self._begin()
                self.has_copies = self._any_copies()
                self._shared.users.append(self)
        except BaseException:
            self._leave()
            raise

    def _refuse_beside_others(self) -> None:
        """A new catalog would know nothing of what the controllers hold, and they would clear it away."""
        if self.path.is_dir() and any(other.is_dir() and other != self.path for other in self.path.parent.iterdir()):
            raise CorruptData(
                f"the catalog {self.path / 'data.mdb'} is empty or missing, and there are folders of controllers beside it: restore "
                f"the store from a backup, or begin anew in another folder"
            )

    def _make_tables(self) -> None:
        env = self._env
        with env.begin(write=True) as txn:
            meta = env.open_db(b"meta", txn)
            txn.put(b"format", str(FORMAT_VERSION).encode(), db=meta)
            txn.put(b"uuid", uuid4().bytes, db=meta)
            txn.put(b"next_id", _ID.pack(1), db=meta)
            txn.put(b"records", _ID.pack(0), db=meta)
            env.open_db(b"records", txn, integerkey=True)
            env.open_db(b"copies", txn, integerkey=True)
            for name in (b"controllers", b"names", b"state"):
                env.open_db(name, txn)

    def _open_tables(self) -> None:
        env = self._env
        try:
            self._meta = env.open_db(b"meta", create=False)
            with env.begin(db=self._meta) as txn:
                version = txn.get(b"format", b"0")
                found = int(version) if version.isdigit() else 0
                if found != FORMAT_VERSION:
                    way_out = "upgrade dstorage" if found > FORMAT_VERSION else "read it with the version that wrote it"
                    raise VersionError(
                        f"{self.path.parent} has store format {found}, this version of dstorage reads {FORMAT_VERSION}: "
                        f"{way_out} (the store was not touched)",
                        found=found,
                        supported=FORMAT_VERSION,
                    )
                self.uuid = UUID(bytes=txn.get(b"uuid", b""))
            self._records = env.open_db(b"records", create=False, integerkey=True)
            self._copies = env.open_db(b"copies", create=False, integerkey=True)
            self._controllers = env.open_db(b"controllers", create=False)
            self._names = env.open_db(b"names", create=False)
            self._state = env.open_db(b"state", create=False)
        except (lmdb.Error, ValueError) as error:
            raise CorruptData(f"{self.path} is no dstorage catalog: {error}") from error

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, id: int) -> Record | None:
        """The committed record of `id`, or None.

        Raises:
            CorruptData: The catalog is damaged there.
        """
        known = self._known[1]
        number = id >> groups.BITS
        group = known.get(number)
        if group is None:
            if self._empty:
                # A store of scratch alone deletes much, and would look here each time.
                return None
            try:
                with self._shared:
                    group = self._txn.get(KEY.pack(number), b"", db=self._records)
            except lmdb.Error as error:
                raise self._damaged(error) from error
            known.put(number, group)
        return groups.record_in(group, id)

    def look_up(self, id: int) -> Record | None:
        """The record of `id` as of the newest commit, for any thread; None also where only `get` can tell."""
        txn, known = self._known
        try:
            number = id >> groups.BITS
            group = known.get(number)
        except TypeError:  # No id at all.
            return None
        if group is None:
            group = self._look_into(txn, number)
            if group is None:
                return None
            known.put(number, group)
        return groups.record_in(group, id)

    def _look_into(self, txn: lmdb.Transaction[bytes] | None, number: int) -> bytes | None:
        thread = threading.get_ident()
        shared = self._shared
        try:
            # In this order: who ends a transaction sets another one or raises the flag first, and looks who is here after that.
            shared.looking[thread] = txn
            if shared.moving or txn is None or self._txn is not txn:
                return None
            return txn.get(KEY.pack(number), b"", db=self._records)
        except (lmdb.Error, struct.error):  # Closed, damaged, grown by another process; or no id at all.
            return None
        finally:
            shared.looking.pop(thread, None)

    def _damaged(self, error: lmdb.Error) -> CorruptData:
        return CorruptData(f"the catalog {self.path} is damaged: {error}; restore the store from a backup")

    def copies(self, id: int) -> tuple[Record, ...]:
        """The committed records of the further places of `id`."""
        if not self.has_copies:
            return ()
        with self._shared:
            raw = self._txn.get(KEY.pack(id), db=self._copies)
        return () if raw is None else _unpack_copies(raw)

    def _any_copies(self) -> bool:
        return bool(self._txn.stat(self._copies)["entries"])

    def get_name(self, name: bytes) -> int | None:
        """The id committed under `name`, or None."""
        with self._shared:
            raw = self._txn.get(name, db=self._names)
        return None if raw is None else _ID.unpack(raw)[0]

    def names(self, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, int]]:
        """Committed names that start with `prefix`, from `start` on, in byte order, with their ids.

        Commits meanwhile do not disturb it, as for `records`.
        """
        start = max(prefix, start)
        while True:
            with self._shared, self._txn.cursor(db=self._names) as cursor:
                if not cursor.set_range(start):
                    return
                part = [(bytes(key), _ID.unpack(raw)[0]) for key, raw in islice(cursor, RECORDS_AT_A_TIME)]
            for name, id in part:
                if not name.startswith(prefix):
                    return
                yield name, id
            if len(part) < RECORDS_AT_A_TIME:
                return
            start = part[-1][0] + b"\0"

    def records(self, start: int = 0) -> Iterator[tuple[int, Record]]:
        """All committed (id, record) pairs with id >= `start`, in order of id.

        Commits meanwhile do not disturb it; it shows each part of the ids as it is when it comes there.

        Raises:
            CorruptData: The catalog is damaged there.
        """
        number = start >> groups.BITS
        while True:
            # No transaction stays open between two parts: it would keep the map from growing.
            try:
                with self._shared, self._txn.cursor(db=self._records) as cursor:
                    if not cursor.set_range(KEY.pack(number)):
                        return
                    part = [(KEY.unpack(key)[0], group) for key, group in islice(cursor, GROUPS_AT_A_TIME)]
            except lmdb.Error as error:
                raise self._damaged(error) from error
            for number, group in part:
                for id, record in groups.records_in(number, group):
                    if id >= start:
                        yield id, record
            if len(part) < GROUPS_AT_A_TIME or number >= MAX_ID >> groups.BITS:
                return
            number += 1

    def count(self) -> int:
        """Number of committed records; costs no scan."""
        with self._shared:
            return _counted(self._txn.get(b"records", b"", db=self._meta))

    def next_id(self) -> int:
        """First id that was never handed out, as of the last reservation."""
        with self._shared:
            return int(_ID.unpack(self._txn.get(b"next_id", _ID.pack(1), db=self._meta))[0])

    def controllers(self) -> dict[int, dict[str, Any]]:
        """The list of controllers: index -> {name, kind, rank, settings, removed, draining}."""
        found = {}
        for key, raw in self._entries(self._controllers, b""):
            try:
                entry = json.loads(raw)
                checked = {
                    "name": str(entry["name"]),
                    "kind": str(entry["kind"]),
                    "rank": int(entry["rank"]),
                    "settings": dict(entry["settings"]),
                    "removed": bool(entry["removed"]),
                    "draining": bool(entry["draining"]),
                }
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptData(f"{self.path}: entry {key!r} in the list of controllers is damaged") from error
            found[_INDEX_KEY.unpack(key)[0]] = checked
        return found

    def namespaces(self) -> dict[int, dict[str, Any]]:
        """Number -> {name, share} of each namespace."""
        found = {}
        for key, raw in self._entries(self._meta, _NAMESPACE):
            try:
                entry = json.loads(raw)
                found[int(key[len(_NAMESPACE) :])] = {"name": str(entry["name"]), "share": float(entry["share"])}
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptData(f"{self.path}: the entry {key!r} of a namespace is damaged") from error
        return found

    def state(self, controller: int) -> dict[int, bytes]:
        """The private state of one controller as of the last commit."""
        entries = self._entries(self._state, _INDEX_KEY.pack(controller))
        return {_STATE_KEY.unpack(key)[1]: value for key, value in entries}

    def _entries(self, table: Any, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """All of a small table whose keys begin with `prefix`."""
        with self._shared, self._txn.cursor(db=table) as cursor:
            if not cursor.set_range(prefix):
                return []
            return list(takewhile(lambda item: item[0].startswith(prefix), cursor))

    def refresh(self) -> None:
        """See the newest commit, also one of another process."""
        try:
            self._look_anew()
        except lmdb.MapResizedError:
            self._set_size(0)
            self._look_anew()

    def _look_anew(self) -> None:
        with self._shared:
            former, self._txn = self._txn, self._begin()
            self._former.append(former)
            self._end_former()
            self.has_copies = self._any_copies()

    def _end_former(self) -> None:
        """End the earlier transactions in which nobody looks any more: each keeps the pages of its commit from being used again."""
        looked_in = self._shared.looking.copy().values()
        for former in self._former:
            if former not in looked_in:
                former.abort()
        self._former = [former for former in self._former if former in looked_in]

    def _begin(self) -> lmdb.Transaction[bytes]:
        """A transaction to read in, in any thread: what LMDB notes down at the first look into a table is noted here."""
        txn = self._env.begin()
        self._empty = txn.stat(self._records)["entries"] == 0
        if self._read_only:
            known = Known(self._most_known)
        else:
            # Nobody else writes: what was not changed here is as it was.
            with self._noting:
                known = self._known[1].after(self._changed)
                self._changed = {}
        self._known = txn, known
        return txn

    # -- writing ------------------------------------------------------------------------------------------------------

    def make_room(self, entries: int) -> None:
        """Grow the map, if need be, so that a commit of so many entries fits. Not while `apply` runs.

        A copy-on-write B-tree touches at worst a path of pages per entry; the factor leaves room for that, and for
        the pages of the commits before that readers still hold. It is an estimate: where `apply` says `lmdb.MapFullError` all the
        same, `grow`.
        """
        # A reader of another process that was killed would keep the pages of its commit for ever.
        self._env.reader_check()
        with self._shared:
            info = self._env.info()
            page = self._env.stat()["psize"]
        need = entries * 4 * page if entries < 4096 else entries * 512 + 4096 * 4 * page
        used = (info["last_pgno"] + 1) * page
        size = info["map_size"]
        if used + need + FIRST_MAP_BYTES // 4 > size:
            self._set_size(max(size * 2, used + 2 * need))

    def grow(self) -> None:
        """Double the map. Not while `apply` runs."""
        self._set_size(self._env.info()["map_size"] * 2)

    def _set_size(self, size: int) -> None:
        with self._shared.writing, self._shared.alone():
            # LMDB moves the map: no transaction of this process may be open meanwhile.
            for user in self._shared.users:
                user._end_former()
                user._txn.abort()
            self._env.set_mapsize(size)
            for user in self._shared.users:
                user._txn = user._begin()

    def superseded(self, ids: Iterable[int]) -> Iterator[tuple[int, tuple[Record, ...]]]:
        """Each of `ids` with its committed places, all copies (for the writer thread; to be read to its end).

        Raises:
            CorruptData: The catalog is damaged there.
        """
        known = self._known[1]
        try:
            with self._env.begin() as txn:
                for number, members in _by_group(ids).items():
                    group = None if number in self._changed else known.get(number)
                    if group is None:
                        group = txn.get(KEY.pack(number), b"", db=self._records)
                    for id in members:
                        record = groups.record_in(group, id)
                        copies = txn.get(KEY.pack(id), db=self._copies) if record and self.has_copies else None
                        yield id, (() if record is None else (record, *_unpack_copies(copies or b"")))
        except lmdb.Error as error:
            raise self._damaged(error) from error

    def apply(self, changes: Changes) -> None:
        """Switch to a new state, durably and as one: the whole of `changes` or, on any exception, nothing."""
        with self._shared.writing:
            with self._env.begin(write=True) as txn:
                changed = self._put_records(txn, changes)
                self._put_others(txn, changes)
                # Whoever looks anew from now on may see it committed, and is not to go on with what was known.
                with self._noting:
                    self._changed = dict.fromkeys([*self._changed, *changed])
            with self._noting:
                self._changed |= changed

    def _put_records(self, txn: lmdb.Transaction[bytes], changes: Changes) -> dict[int, bytes | None]:
        """Returns the groups that are changed, and what they are now, of so many as are worth remembering."""
        changed: dict[int, bytes | None] = {}
        assert changes.count is None or not changes.records
        more = 0
        for number, members in _by_group(changes.records.keys() | changes.accessed.keys()).items():
            key = KEY.pack(number)
            before = txn.get(key, b"", db=self._records)
            group = groups.editable(number, before)
            more -= groups.count_in(group)
            for id in members:
                if id in changes.records:
                    groups.put_in(group, id, changes.records[id])
                elif (record := groups.record_in(before, id)) is not None:
                    groups.put_in(group, id, record._replace(last_access=changes.accessed[id]))
            after = bytes(group)
            if after:
                txn.put(key, after, db=self._records)
            else:
                txn.delete(key, db=self._records)
            changed[number] = after if len(changed) < self._most_known // 2 else None
            more += groups.count_in(after)
        if changes.count is not None:
            txn.put(b"records", _ID.pack(changes.count), db=self._meta)
        elif more:
            count = _counted(txn.get(b"records", b"", db=self._meta)) + more
            txn.put(b"records", _ID.pack(min(max(0, count), MAX_ID)), db=self._meta)
        return changed

    def _put_others(self, txn: lmdb.Transaction[bytes], changes: Changes) -> None:
        for id in changes.records:
            copies = changes.copies.get(id)
            if copies:
                txn.put(KEY.pack(id), b"".join(map(pack_record, copies)), db=self._copies)
            elif self.has_copies:
                txn.delete(KEY.pack(id), db=self._copies)
        for name, named in changes.names.items():
            if named is None:
                txn.delete(name, db=self._names)
            else:
                txn.put(name, _ID.pack(named), db=self._names)
        for (index, key), value in changes.state.items():
            if value:
                txn.put(_STATE_KEY.pack(index, key), value, db=self._state)
            else:
                txn.delete(_STATE_KEY.pack(index, key), db=self._state)

    def reserve_ids(self, next_id: int) -> None:
        """Promise, durably, never to hand out an id below `next_id` again."""
        with self._shared.writing, self._env.begin(write=True, db=self._meta) as txn:
            txn.put(b"next_id", _ID.pack(next_id))

    def put_controller(self, index: int, entry: Mapping[str, object]) -> None:
        """Write one entry of the list of controllers (see `controllers`), durably."""
        with self._shared.writing, self._env.begin(write=True, db=self._controllers) as txn:
            txn.put(_INDEX_KEY.pack(index), json.dumps(dict(entry), sort_keys=True).encode())

    def put_namespace(self, number: int, *, name: str, share: float) -> None:
        """Write one entry of the list of namespaces, durably."""
        with self._shared.writing, self._env.begin(write=True, db=self._meta) as txn:
            txn.put(_NAMESPACE + str(number).encode(), json.dumps({"name": name, "share": share}).encode())

    def close(self) -> None:
        """Give the environment back. Idempotent."""
        if self in self._shared.users:
            with self._shared.alone():
                self._end_former()
                self._txn.abort()
                self._known = None, Known(0)
                self._shared.users.remove(self)
            self._leave()

    def _leave(self) -> None:
        with _sharing:
            self._shared.holders -= 1
            if not self._shared.holders:
                del _shared[self.path.resolve()]
                with self._shared.alone():
                    self._env.close()

    def __repr__(self) -> str:
        return f"<Catalog {str(self.path)!r}, {self.count()} records>"


def _counted(raw: bytes) -> int:
    """A damaged count keeps nobody from committing; a check tells that it is wrong."""
    return int(_ID.unpack(raw)[0]) if len(raw) == _ID.size else 0


def _by_group(ids: Iterable[int]) -> dict[int, list[int]]:
    """Group -> those of `ids` that are in it, all in order: what lies on one page of the map is found in the processor's cache."""
    found: dict[int, list[int]] = {}
    for id in sorted(ids):
        found.setdefault(id >> groups.BITS, []).append(id)
    return found


def _after_fork() -> None:
    """An environment is its process's own: a child that went on with its parent's would read in the parent's name, and a page that it
    read when it ended would not be used again for as long as the parent lives. LMDB opens another one when nobody has the first.
    """
    global _sharing
    _sharing = threading.Lock()
    for shared in _shared.values():
        for catalog in shared.users:
            del catalog._env, catalog._txn, catalog._former, catalog._known, catalog._shared
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
