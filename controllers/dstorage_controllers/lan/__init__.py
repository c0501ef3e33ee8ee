"""Chunks on other machines of the local network, over the Redis protocol."""

from __future__ import annotations

try:
    import hiredis  # noqa: F401 - redis-py would do without, several times slower
    import redis  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the LAN controller needs {error.name}, which is not installed: pip install 'dstorage[lan]'", name=error.name
    ) from error

from dstorage_controllers.lan.controller import LanController

__all__ = ["LanController"]
