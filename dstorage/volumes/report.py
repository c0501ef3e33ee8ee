"""What a check of a pool's metadata found."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

MAX_PROBLEMS = 1000


class Severity(Enum):
    """How bad a problem is."""

    DAMAGE = "damage"
    """Something cannot be read or contradicts something else; writing on may lose data."""
    LEAK = "leak"
    """A block is counted more often than it is used: space lost, nothing else."""
    HINT = "hint"
    """A figure that only speeds searching up is stale; harmless."""


class Problem(NamedTuple):
    """One thing found: how bad, the metadata block or data block concerned (-1: none), and what."""

    severity: Severity
    block: int
    message: str


@dataclass(slots=True)
class CheckReport:
    """What the checker found.

    Attributes:
        problems: The first `MAX_PROBLEMS`, in the order found.
        more: How many were found beyond those.
        devices: Number of devices in the details.
        mappings: Mappings of all devices, shared ones once per device.
        data_blocks: Data blocks that are mapped.
        metadata_blocks: Metadata blocks in use.
        needs_check: The superblock asks for a check.
        complete: Whether everything could be walked; if not, counts that are too high may come from what could not.
    """

    path: str
    problems: list[Problem] = field(default_factory=list)
    more: int = 0
    devices: int = 0
    mappings: int = 0
    data_blocks: int = 0
    metadata_blocks: int = 0
    needs_check: bool = False
    complete: bool = True
    _sound: bool = True

    @property
    def sound(self) -> bool:
        """Whether nothing but hints was found."""
        return self._sound

    def add(self, severity: Severity, block: int, message: str) -> None:
        """Note a problem."""
        if severity is not Severity.HINT:
            self._sound = False
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(severity, block, message))
        else:
            self.more += 1
