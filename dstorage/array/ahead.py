"""Going through parts of an array one by one, with the tiles of the next ones on their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Generic, Self, TypeVar

from dstorage.array.access import Access
from dstorage.array.tiles import Tiles

T = TypeVar("T")


class Ahead(Generic[T]):
    """Gives items one by one; the tiles of the next ones are brought in while one is worked on (``async for``).

    Args:
        items: What to give.
        numbers: The tiles that an item needs.
        depth: How many items ahead.
        access: Way to the store.
        tiles: The tiles.
        once: Tiles that an item needed, and none of those ahead, may leave memory first.
    """

    def __init__(
        self,
        items: Iterable[T],
        numbers: Callable[[T], Iterable[int]],
        depth: int,
        access: Access,
        tiles: Tiles,
        *,
        once: bool,
    ) -> None:
        self._items = iter(items)
        self._numbers = numbers
        self._depth = depth
        self._access = access
        self._tiles = tiles
        self._once = once
        self._coming: deque[tuple[T, tuple[int, ...]]] = deque()
        self._given: tuple[int, ...] | None = None
        self._done: list[int] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        coming = self._coming
        if self._once and self._given:
            needed = {number for _, numbers in coming for number in numbers}
            self._done += [number for number in self._given if number not in needed]
        # Not one by one: each time costs a trip to the loop.
        if len(coming) <= self._depth * 3 // 4:
            coming += [
                (item, tuple(self._numbers(item))) for item in islice(self._items, self._depth + 1 - len(coming))
            ]
            if len(coming) > 1 or self._done:
                # All of them: for some there may have been no room when they were named first.
                await self._tiles.prefetch((number for _, numbers in coming for number in numbers), self._done)
                self._done.clear()
        if not coming:
            raise StopAsyncIteration
        if self._given is not None:
            await self._access.breathe()
        item, self._given = coming.popleft()
        return item
