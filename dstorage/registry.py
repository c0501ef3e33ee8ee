"""The list of controllers, and which of them are loaded.

The list only grows: a name once registered keeps its index for ever, so a record's controller number means the same in
ten years. An entry without a loaded instance makes its chunks temporarily unavailable; an entry declared removed makes
them lost. Plug-ins are found through the entry-point group ``dstorage.controllers``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points

from dstorage.catalog import Catalog
from dstorage.controller import ENTRY_POINT_GROUP, Controller, ControllerStatus
from dstorage.errors import ControllerError, InvalidArgumentError
from dstorage.record import Record
from dstorage.tier import Throttle, TierRule

MAX_CONTROLLERS = 65536
TAKEN = frozenset({".", "..", "catalog", "lock"})
"""What else there is in a store's folder, beside the controllers' folders."""
NO_PART_OF_A_PATH = frozenset("/\\\0")


class Entry:
    """One line of the list.

    Attributes:
        index: Its place, for ever.
        name: Unique name.
        kind: Entry-point name of the plug-in.
        rank: Performance class; higher is faster.
        settings: What the plug-in needs to be built again.
        removed: Declared removed: its chunks are lost.
        draining: Its chunks are to move elsewhere, and it gets no new ones.
        controller: The loaded and opened instance, or None.
        error: Why it is not loaded, if loading failed.
        rule: How the program wants it used.
        throttle: Slows what is written to it; None: nothing does.
    """

    __slots__ = (
        "controller",
        "draining",
        "error",
        "index",
        "kind",
        "name",
        "rank",
        "removed",
        "rule",
        "settings",
        "throttle",
    )

    def __init__(
        self,
        index: int,
        name: str,
        kind: str,
        rank: int,
        settings: Mapping[str, object],
        removed: bool = False,
        draining: bool = False,
    ) -> None:
        self.index = index
        self.name = name
        self.kind = kind
        self.rank = rank
        self.settings = dict(settings)
        self.removed = removed
        self.draining = draining
        self.controller: Controller | None = None
        self.error: Exception | None = None
        self.rule = TierRule()
        self.throttle: Throttle | None = None

    @property
    def status(self) -> ControllerStatus:
        """Status as the store sees it."""
        if self.removed:
            return ControllerStatus.REMOVED
        if self.controller is None:
            return ControllerStatus.TEMPORARILY_UNAVAILABLE
        return self.controller.status

    def __repr__(self) -> str:
        draining = ", draining" if self.draining else ""
        return f"<Entry {self.index} {self.name!r} ({self.kind}), {self.status.value}{draining}>"


class Registry:
    """The store's list of controllers."""

    def __init__(self, catalog: Catalog, rules: Mapping[str, TierRule], *, read_only: bool) -> None:
        self._catalog = catalog
        self._rules = rules
        self._read_only = read_only
        self._entries = {
            index: Entry(index, e["name"], e["kind"], e["rank"], e["settings"], e["removed"], e["draining"])
            for index, e in catalog.controllers().items()
        }
        for entry in self._entries.values():
            self._apply_rule(entry)
        self._by_rank: list[Entry] = []
        self.reorder()

    def __getitem__(self, index: int) -> Entry | None:
        """The entry at `index`, or None for an index this list never had."""
        return self._entries.get(index)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def by_name(self, name: str) -> Entry | None:
        """The entry called `name`, or None."""
        return next((entry for entry in self._entries.values() if entry.name == name), None)

    def by_rank(self) -> list[Entry]:
        """Loaded entries, the fastest first."""
        return self._by_rank

    def reorder(self) -> None:
        """To be called after `Entry.controller` of any entry changed."""
        loaded = [entry for entry in self._entries.values() if entry.controller is not None and not entry.removed]
        self._by_rank = sorted(loaded, key=lambda entry: (-entry.rank, entry.index))

    def enlist(self, controller: Controller) -> Entry:
        """Give `controller` its place in the list: the old one, as it is, if the name is known, else a new one; durable.

        Raises:
            InvalidArgumentError: The name cannot be one of a folder, or is known as another kind, or is declared removed.
        """
        name = controller.name
        if not name or len(name.encode()) > 255:
            raise InvalidArgumentError(f"controller name {name!r}: give 1 to 255 bytes of UTF-8")
        entry = self.by_name(name)
        if entry is None:
            if name.casefold() in TAKEN or not NO_PART_OF_A_PATH.isdisjoint(name):
                raise InvalidArgumentError(
                    f"controller name {name!r}: it also names the controller's folder in the store; give one that is not "
                    f"{', '.join(sorted(TAKEN))}, and has no slash, backslash or zero byte"
                )
            if len(self._entries) >= MAX_CONTROLLERS:
                raise InvalidArgumentError(f"the list of controllers is full ({MAX_CONTROLLERS})")
            index = max(self._entries, default=-1) + 1
            entry = Entry(index, name, controller.kind, controller.rank, controller.settings)
            self._apply_rule(entry)
            if not self._read_only:
                # Before anybody knows whether it can be opened: a server that is away now has chunks under this index some day.
                self._write(entry)
            # A new table: this runs in the writer thread, and the loop may be going through the old one.
            self._entries = {**self._entries, index: entry}
        elif entry.kind != controller.kind:
            raise InvalidArgumentError(
                f"controller {name!r} is listed as kind {entry.kind!r}, not {controller.kind!r}: choose another name"
            )
        elif entry.removed:
            raise InvalidArgumentError(f"controller {name!r} was declared removed: choose another name")
        return entry

    def remember(self, entry: Entry, controller: Controller) -> None:
        """Have the entry's controller built again like `controller`, which has opened; durable.

        One that does not open, for a key that was left out or a path that was mistyped, is no reason to forget what did.
        """
        former = entry.rank, entry.settings
        entry.rank, entry.settings = controller.rank, dict(controller.settings)
        if not self._read_only:
            try:
                self._write(entry)
            except BaseException:
                entry.rank, entry.settings = former
                raise

    def remembers(self, entry: Entry, controller: Controller) -> bool:
        """Whether the list would have the entry's controller built again like `controller` already."""
        return (entry.rank, entry.settings) == (controller.rank, controller.settings)

    def _apply_rule(self, entry: Entry) -> None:
        entry.rule = self._rules.get(entry.name, entry.rule)
        if entry.rule.write_rate is not None:
            entry.throttle = Throttle(entry.rule.write_rate)

    def declare_removed(self, entry: Entry) -> None:
        """Note for ever, durably, that the entry's chunks are lost."""
        entry.removed = True
        self._write(entry)
        self.reorder()

    def declare_draining(self, entry: Entry, draining: bool) -> None:
        """Note, durably, whether the entry's chunks are to leave it."""
        entry.draining = draining
        self._write(entry)

    @property
    def copying(self) -> bool:
        """Whether any rule asks for copies."""
        return any(entry.rule.copy_to for entry in self._entries.values())

    def wanted_copies(self, record: Record) -> list[Entry]:
        """The entries that the rule of a record's controller names for copies, without those that take none."""
        entry = self._entries.get(record.controller)
        if entry is None or not entry.rule.copy_to:
            return []
        named = (self.by_name(name) for name in entry.rule.copy_to)
        return [
            other
            for other in named
            if other is not None
            and other is not entry
            and not (other.removed or other.draining)
            and not (other.controller is not None and other.controller.volatile)
        ]

    def _write(self, entry: Entry) -> None:
        self._catalog.put_controller(
            entry.index,
            {
                "name": entry.name,
                "kind": entry.kind,
                "rank": entry.rank,
                "settings": entry.settings,
                "removed": entry.removed,
                "draining": entry.draining,
            },
        )


def load_plugin(kind: str) -> type[Controller]:
    """The plug-in class for `kind`, through the entry points.

    Raises:
        ControllerError: No installed package offers it, or it cannot be imported.
    """
    found = list(entry_points(group=ENTRY_POINT_GROUP, name=kind))
    if not found:
        raise ControllerError(f"no installed package offers a controller of kind {kind!r}: install its plug-in")
    try:
        plugin = found[0].load()
    except ImportError as error:
        raise ControllerError(f"the plug-in for controllers of kind {kind!r} cannot be imported: {error}") from error
    if not (isinstance(plugin, type) and issubclass(plugin, Controller)):
        raise ControllerError(
            f"entry point {kind!r} of {ENTRY_POINT_GROUP} is no subclass of dstorage.controller.Controller"
        )
    return plugin
