"""dstorage for programs without an event loop, from any thread. Start with `open`."""

from dstorage.blocking.delivery import Deliver
from dstorage.blocking.events import EventStream
from dstorage.blocking.handle import Edit, Handle
from dstorage.blocking.namespace import Namespace
from dstorage.blocking.opening import OpenOptions, open
from dstorage.blocking.store import Store

__all__ = ["Deliver", "Edit", "EventStream", "Handle", "Namespace", "OpenOptions", "Store", "open"]
