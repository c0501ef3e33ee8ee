"""The eviction policy: in which order pages leave.

A hit is nothing but ``page.hot = True``, done by the store; the policy is not called. It looks at the mark when it searches a
victim, as the hand of a clock does, so a hit never costs more than one attribute store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from dstorage.errors import InvalidArgumentError
from dstorage.paging.car import Car
from dstorage.paging.clock import Clock
from dstorage.paging.page import Page


@runtime_checkable
class Policy(Protocol):
    """The order in which pages leave memory. All calls are O(1), amortised."""

    def insert(self, page: Page) -> None:
        """The page became resident; clears `hot`: what brings a page in is no hit."""

    def victim(self) -> Page | None:
        """Take the next page to leave out of the order; None if it is empty."""

    def restore(self, page: Page) -> None:
        """A page that `victim` gave out is not to leave yet: it goes back, as used just now."""

    def evicted(self, page: Page) -> None:
        """A page that `victim` gave out has left: may be remembered by its id."""

    def dropped(self, page: Page) -> None:
        """A page that `victim` gave out was deleted: it neither comes back nor is to be remembered."""

    def remove(self, page: Page) -> None:
        """Take a page out of the order for good."""

    def resize(self, capacity: int) -> None:
        """So many bytes may be resident from now on."""

    def __len__(self) -> int:
        """Pages in the order."""


POLICIES: dict[str, Callable[[int], Policy]] = {"car": Car, "clock": Clock}
DEFAULT = "car"


def policy_maker(policy: str | Callable[[int], Policy] | None) -> Callable[[int], Policy]:
    """What makes the policy called so, or the maker given.

    Raises:
        InvalidArgumentError: There is none of that name.
    """
    if policy is None or isinstance(policy, str):
        name = policy or DEFAULT
        if name not in POLICIES:
            raise InvalidArgumentError(f"no eviction policy {name!r}: there are {', '.join(sorted(POLICIES))}")
        return POLICIES[name]
    return policy
