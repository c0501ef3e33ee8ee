"""Loading and unloading the controllers of a store, and what follows when one comes, goes, or says that it is another now."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from dstorage.catalog import Catalog
from dstorage.commit import Committer
from dstorage.controller import Controller, OpenContext
from dstorage.errors import ControllerError, DStorageError, InvalidArgumentError
from dstorage.record import Locator
from dstorage.registry import Entry, Registry, load_plugin
from dstorage.tier import TierRule


class Loader:
    """Loads the controllers of one store.

    Args:
        path: The store's directory.
        catalog: Knows what each controller left behind.
        registry: The list.
        committer: Changes the list between commits.
        read_only: Whether the store was opened only to look.
        changed: Called when an entry is loaded or unloaded, or its controller has another status.
    """

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        registry: Registry,
        committer: Committer,
        *,
        read_only: bool,
        changed: Callable[[Entry], None],
    ) -> None:
        self._path = path
        self._catalog = catalog
        self._registry = registry
        self._committer = committer
        self._read_only = read_only
        self._changed = changed

    async def start(self, controllers: Sequence[Controller]) -> None:
        """Load what the list names, all at a time, and register `controllers`, in their order."""
        given = {controller.name for controller in controllers}
        await asyncio.gather(
            *(
                self._load_listed(entry)
                for entry in list(self._registry)
                if entry.name not in given and not entry.removed
            )
        )
        for controller in controllers:
            await self.register(controller)

    def warn_of_unknown(self, rules: Mapping[str, TierRule]) -> None:
        """Tell which rules are for controllers that there are not, or ask for copies where none can be."""
        wrong = [
            f"no controller {name!r} in this store yet"
            for name in dict.fromkeys((*rules, *(name for rule in rules.values() for name in rule.copy_to)))
            if self._registry.by_name(name) is None
        ]
        for name, rule in rules.items():
            for target in map(self._registry.by_name, rule.copy_to):
                if target is None:
                    continue
                if target.name == name:
                    wrong.append(f"copies of what is on {name!r} cannot be on {name!r} itself")
                elif target.removed or (target.controller is not None and target.controller.volatile):
                    why = "was declared removed" if target.removed else "is volatile"
                    wrong.append(f"{target.name!r} takes no copies: it {why}")
        if wrong:
            known = ", ".join(repr(entry.name) for entry in self._registry)
            warnings.warn(f"tiers: {'; '.join(wrong)} (there are: {known})", RuntimeWarning, stacklevel=5)

    async def register(self, controller: Controller) -> Entry:
        """Load a controller; see `Store.register`."""
        entry: Entry | None = None

        def enlist() -> None:
            nonlocal entry
            entry = self._registry.enlist(controller)

        await self._committer.exclusively(enlist)
        assert entry is not None
        await self._open(entry, controller)
        if not self._registry.remembers(entry, controller):
            try:
                # Before it gets any chunk: what it took the next `open` would not find.
                await self._committer.exclusively(partial(self._registry.remember, entry, controller))
            except BaseException:
                await controller.close()
                raise
        self._opened(entry, controller)
        return entry

    async def unload(self, entry: Entry) -> None:
        """Close an entry's controller."""
        controller, entry.controller = entry.controller, None
        self._registry.reorder()
        if controller is not None:
            await controller.close()
        self._changed(entry)

    async def declare_removed(self, entry: Entry) -> None:
        """Close an entry's controller for ever; see `Store.declare_removed`."""
        await self.unload(entry)
        await self._committer.exclusively(lambda: self._registry.declare_removed(entry))
        self._changed(entry)

    def named(self, name: str) -> Entry:
        """The entry called `name`.

        Raises:
            InvalidArgumentError: There is none.
        """
        entry = self._registry.by_name(name)
        if entry is None:
            known = ", ".join(repr(e.name) for e in self._registry) or "none"
            raise InvalidArgumentError(f"no controller {name!r} in this store (there are: {known})")
        return entry

    async def _load_listed(self, entry: Entry) -> None:
        """Load what the list names; what cannot be is unavailable, which is no reason not to open the rest."""
        try:
            controller = load_plugin(entry.kind).from_settings(entry.name, entry.settings)
            await self._open(entry, controller)
        except DStorageError as error:
            entry.error = error
            warnings.warn(f"controller {entry.name!r} is not available: {error}", RuntimeWarning, stacklevel=4)
        else:
            self._opened(entry, controller)

    async def _open(self, entry: Entry, controller: Controller) -> None:
        former, entry.controller = entry.controller, None
        self._registry.reorder()
        if former is not None:
            # What it was asked is answered, or fails as unavailable and is asked again.
            await former.close()
        try:
            await controller.open(self._context(entry))
        except Exception as error:
            await controller.close()
            entry.error = error
            if isinstance(error, DStorageError):
                raise
            raise ControllerError(f"controller {entry.name!r} cannot be opened: {error}") from error

    def _opened(self, entry: Entry, controller: Controller) -> None:
        entry.controller = controller
        entry.error = None
        self._registry.reorder()
        self._changed(entry)

    def _context(self, entry: Entry) -> OpenContext:
        def place(id: int) -> Locator | None:
            committed = self._catalog.get(id)
            places = () if committed is None else (committed, *self._catalog.copies(id))
            return next((record.locator for record in places if record.controller == entry.index), None)

        return OpenContext(
            store_uuid=self._catalog.uuid,
            index=entry.index,
            directory=self._path / entry.name,
            state=self._catalog.state(entry.index),
            read_only=self._read_only,
            status_changed=lambda: self._changed(entry) if entry.controller is not None else None,
            place=place,
        )
