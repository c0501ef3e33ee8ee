"""What a controller can be told, checked setting by setting: settings come from the catalog and count as hostile.

A setting is a `Setting`: its types and its range. What excludes or needs each other is the controller's own to check. No message
repeats a text, for it may be a secret that stands in the wrong place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dstorage.controller import Settings
from dstorage.errors import InvalidArgumentError

MAX_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Setting:
    """What one setting may be.

    Attributes:
        types: Its types; bool is an int only if it is named.
        low: Least value of a number; no bound where it is not below `high`.
        high: Greatest.
        power_of_two: Whether nothing else is allowed.
    """

    types: tuple[type, ...]
    low: float = 0
    high: float = 0
    power_of_two: bool = False

    def trouble(self, value: object) -> str | None:
        """What is wrong with a value, to be read behind the setting's name; None if nothing is."""
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            kinds = " or ".join("None" if kind is type(None) else kind.__name__ for kind in self.types)
            return f"must be {kinds}, not {'None' if value is None else type(value).__name__}"
        if isinstance(value, int | float) and self.low < self.high and not self.low <= value <= self.high:
            return f"must be {self.low:g} to {self.high:g}, not {value!r}"
        if self.power_of_two and isinstance(value, int) and value & (value - 1):
            return f"must be a power of two, not {value}"
        return None


TEXT = Setting((str,))
TEXT_OR_NONE = Setting((str, type(None)))
SWITCH = Setting((bool,))
RANK = Setting((int,), -(2**31), 2**31)
CAPACITY = Setting((int, type(None)), 0, 2**63)


def check(owner: str, allowed: Mapping[str, Setting], settings: Settings) -> None:
    """Check that all settings are known, of the right type and in range.

    Args:
        owner: Kind and name of the controller, for messages.
        allowed: All that there are.
        settings: Those that are given.

    Raises:
        InvalidArgumentError: One is not; the message says what is allowed.
    """
    for key, value in settings.items():
        if key not in allowed:
            raise InvalidArgumentError(f"{owner}: there is no setting {key!r}; there are {', '.join(allowed)}")
        trouble = allowed[key].trouble(value)
        if trouble is not None:
            raise InvalidArgumentError(f"{owner}: {key} {trouble}")


def shown(url: str) -> str:
    """A URL without what may be a secret in it: all before an @ and behind a ? or #."""
    return repr(url.rpartition("@")[2].partition("?")[0].partition("#")[0][:MAX_SHOWN])
