"""Opening a cache: from the names in the catalog to the index in memory.

Everything read here is checked like bytes from anybody: what is damaged is dropped and told, what a newer version wrote is left alone.
"""

from __future__ import annotations

import asyncio
import json
import warnings

from dstorage.cache.core import DEFAULT_SIZE_LIMIT, SETTINGS_FORMAT, Core
from dstorage.cache.records import Entry, batches
from dstorage.errors import CorruptData, Lost, TemporarilyUnavailable, VersionError

MAX_SETTINGS_BYTES = 4096


async def load(core: Core) -> None:
    """Read the index and the settings, and delete what a crash left of values half written."""
    store = core.store
    superseded: list[Entry] = []
    damaged: list[bytes] = []
    for names in batches(store.names(core.names.entries), core.names.id_of):
        found, bad = core.names.read(names)
        superseded += core.entries.load(found)
        damaged += [name for name, _ in bad]
        # There may be millions of them, and the loop has other things to do.
        await asyncio.sleep(0)
    await _load_settings(core)
    if store.options.read_only:
        return
    for entry in superseded:
        core.unname(entry)
        core.delete(entry)
    for name in damaged:
        # What it stood for stays: whose it is cannot be known.
        store.set_name(name, None)
    core.chunks.discard([id for _, id in list(store.names(core.names.pending))])
    if damaged:
        warnings.warn(
            f"cache {core.name!r} of {store.path}: {len(damaged)} damaged records were dropped",
            RuntimeWarning,
            stacklevel=4,
        )


async def _load_settings(core: Core) -> None:
    id = core.store.get_name(core.names.settings)
    if id is None:
        return
    handle = core.store.table.get(id)
    try:
        raw = bytes((await handle)[:MAX_SETTINGS_BYTES])
        settings = json.loads(raw)
        found = settings["format"]
        if type(found) is int and found > SETTINGS_FORMAT:
            raise VersionError(
                f"the settings of cache {core.name!r} have format {found}, this version of dstorage reads up to "
                f"{SETTINGS_FORMAT}: upgrade dstorage (the cache was not touched)",
                found=found,
                supported=SETTINGS_FORMAT,
            )
        limit = settings["size_limit"]
        if limit is not None and (type(limit) is not int or limit <= 0):
            raise ValueError(f"size_limit {limit!r}")
    except (ValueError, KeyError, TypeError, RecursionError, Lost, CorruptData) as error:
        _do_without(core, f"its settings are damaged ({error})", "from now on")
        if not core.store.options.read_only:
            core.store.set_name(core.names.settings, None)
            core.chunks.delete(id)
    except TemporarilyUnavailable as error:
        _do_without(core, f"its settings cannot be had now ({error})", "until it is opened again")
    else:
        core.size_limit = limit
    finally:
        handle.release()


def _do_without(core: Core, why: str, how_long: str) -> None:
    """With a limit for which nothing has to leave."""
    core.size_limit = max(DEFAULT_SIZE_LIMIT, core.entries.volume)
    warnings.warn(
        f"cache {core.name!r} of {core.store.path}: {why}: size_limit is {core.size_limit} {how_long}, or give another",
        RuntimeWarning,
        stacklevel=6,
    )
