"""Functions whose results are kept in a cache.

Of many who ask at once for what is not there, one computes and the others wait for what it comes to; if it is cancelled or interrupted,
another of them computes. Within this process, that is: a cache has one.

A cache is there to save work, and who calls a function wants what it returns: so a result that the cache has but cannot give now
(its controller is away, memory is short) is computed anew, and one that it cannot take is returned all the same.

Early recompute is that of Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015: a result
that took `cost` seconds counts as expired ``cost * early * -ln(random)`` seconds before its time, so that most likely one caller
computes it anew while the others are still served the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, ParamSpec, Protocol, TypedDict, TypeVar, overload

from dstorage.cache.calls import CallKey
from dstorage.cache.core import Core, TooLargeError, check_expire
from dstorage.cache.flights import Abandoned, Flights
from dstorage.cache.keys import Key
from dstorage.cache.records import NEVER, Entry
from dstorage.cache.values import ABSENT, Encoded, absence
from dstorage.errors import (
    DStorageError,
    InvalidArgumentError,
    MemoryUnavailable,
    ReadOnlyError,
    TemporarilyUnavailable,
)

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

Answer = tuple[Entry, bytes | bytearray] | None

NOT_NOW = (TemporarilyUnavailable, MemoryUnavailable)
"""What is asked for or given cannot be had or taken at this moment."""


class Missing(DStorageError, KeyError):
    """A memoized function said a while ago that there is no such thing, and that is remembered still."""

    __str__ = Exception.__str__  # KeyError's own is for keys, and quotes the text


class MemoizeOptions(TypedDict, total=False):
    """How results are kept.

    Attributes:
        name: First element of the keys; by default the module and name of the function.
        expire: Seconds to keep a result; None (the default) for ever.
        tag: Tag of the results.
        typed: Tell arguments apart that are equal but of different types (True and 1).
        ignore: Numbers and names of parameters that do not matter for the result, or one of them ("self" of a method).
        early: Recompute before a result expires, the sooner the longer it took and the larger this is: 1.0 is a good value,
            0 (the default) is never. Who draws the lot computes, the others are served the old one; if it fails, so is he.
        misses: Remember for so many seconds that the function raised `LookupError` (`KeyError` and the like): who asks
            meanwhile gets `dstorage.Missing`, which is a `KeyError`. By default no failure is remembered.
    """

    name: str | None
    expire: float | None
    tag: Key | None
    typed: bool
    ignore: int | str | Iterable[int | str]
    early: float
    misses: float | None


class Memoized(Protocol[P, R]):
    """A memoized function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns, from the cache if it is there."""

    def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        """The key of a call with these arguments."""

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., R]:
        """As a method."""


class AsyncDecorator(Protocol):
    """What `AsyncCache.memoize` returns: makes coroutine functions of both kinds of functions."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Memoized[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Memoized[P, Coroutine[Any, Any, R]]: ...


BRACKETS = "memoize is called first, with options by name: write @cache.memoize() with the brackets, or @cache.memoize(expire=60)"


def check_brackets(bare: tuple[object, ...]) -> None:
    """Raise if a decorator that is to be called stands there without its brackets, or got options without names."""
    if bare:
        raise InvalidArgumentError(BRACKETS)


class Memo:
    """What is common to all ways to memoize one function.

    Args:
        core: The cache, once it is open.
        function: The function.
        options: See `MemoizeOptions`.

    Raises:
        InvalidArgumentError: An option is out of range, or it is no function.
    """

    def __init__(self, core: Callable[[], Core], function: Callable[..., Any], options: MemoizeOptions) -> None:
        if not callable(function):
            raise InvalidArgumentError(BRACKETS)
        unknown = options.keys() - MemoizeOptions.__annotations__.keys()
        if unknown:
            raise InvalidArgumentError(f"memoize takes no {', '.join(sorted(unknown))}: see dstorage.MemoizeOptions")
        self.core = core
        self.expire = options.get("expire")
        self.tag = options.get("tag")
        self.early = options.get("early", 0.0)
        self.misses = options.get("misses")
        check_expire(self.expire)
        check_expire(self.misses)
        if not 0 <= self.early < math.inf or (self.early and self.expire is None):
            raise InvalidArgumentError(f"early={self.early}: give a number from 0 on, and expire=seconds with it")
        self.key = CallKey(
            function, options.get("name"), typed=options.get("typed", False), ignore=options.get("ignore", ())
        )
        self.flights = Flights()
        self.random: Callable[[], float] = random.random

    def answers(self, found: Answer) -> bool:
        """Whether what the cache has is the answer; False if it has to be computed (again)."""
        if found is None:
            return False
        entry = found[0]
        if not self.early or entry.expires == NEVER or not entry.cost:
            return True
        luck = -math.log(1.0 - self.random())
        return self.core().clock() + entry.cost * self.early * luck < entry.expires

    def value(self, found: Answer) -> Any:
        """The value of an answer, counted.

        Raises:
            Missing: It is a remembered miss.
        """
        core = self.core()
        assert found is not None
        value = core.decode(*found)
        core.hits.add()
        if found[0].kind is ABSENT:
            raise Missing(value)
        return value

    def fallback(self, found: Answer, error: BaseException) -> Any:
        """What to answer when computing failed: the old value, if it was early; else the error is raised."""
        if found is None or not isinstance(error, Exception):
            raise error
        return self.value(found)

    def encode(self, value: Any) -> Encoded:
        """A result as it is kept; in the thread that has it."""
        return self.core().codec.encode(value)

    async def keep(self, key: Key, encoded: Encoded, cost: float) -> None:
        """Keep a result, if there is room for it and the cache takes it (on the loop): who asked for it gets it all the same."""
        core = self.core()
        core.misses.add()
        with self._if_there_is_room(core):
            await core.write(key, encoded, expire=self.expire, tag=self.tag, cost=cost)

    async def keep_miss(self, key: Key, error: LookupError) -> None:
        """Remember that there is none (on the loop)."""
        core = self.core()
        core.misses.add()
        if self.misses is not None:
            reason = f"{type(error).__name__}: {error}"
            with self._if_there_is_room(core):
                await core.write(key, absence(reason), expire=self.misses)

    @staticmethod
    @contextlib.contextmanager
    def _if_there_is_room(core: Core) -> Iterator[None]:
        try:
            yield
        except (TooLargeError, ReadOnlyError, *NOT_NOW):
            core.unkept += 1


def memoized_coroutine(
    memo: Memo,
    call: Callable[..., Awaitable[Any]],
    read: Callable[[Key], Awaitable[Answer]],
    run: Callable[..., Awaitable[Any]],
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """A coroutine function that answers from the cache.

    Args:
        memo: What is to be done.
        call: Computes.
        read: What the cache has for a key.
        run: Runs a coroutine function of the cache's on the cache's loop.
    """

    async def compute(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        begun = time.perf_counter()
        try:
            value = await call(*args, **kwargs)
        except LookupError as error:
            await run(memo.keep_miss, key, error)
            raise
        cost = time.perf_counter() - begun
        await run(memo.keep, key, memo.encode(value), cost)
        return value

    async def memoized(*args: Any, **kwargs: Any) -> Any:
        key = memo.key(args, kwargs)
        task = asyncio.current_task()
        while True:
            try:
                found = await read(key)
            except NOT_NOW:
                found = None
            if memo.answers(found):
                return memo.value(found)
            flight, mine = memo.flights.join(key, task)
            if mine:
                break
            if found is not None:
                return memo.value(found)
            if flight.owner is task:
                # It called itself with the same arguments: a task cannot wait for itself.
                return await call(*args, **kwargs)
            try:
                # Whoever stops waiting cancels nothing: a future that runs takes no cancellation.
                return await asyncio.wrap_future(flight.result)
            except Abandoned:
                continue
        try:
            value = await compute(key, args, kwargs)
        except BaseException as error:
            memo.flights.land(key, flight, error=error)
            return memo.fallback(found, error)
        memo.flights.land(key, flight, value)
        return value

    return memoized


def memoized_function(
    memo: Memo,
    function: Callable[..., Any],
    read: Callable[[Key], Answer],
    run: Callable[..., Any],
) -> Callable[..., Any]:
    """A plain function that answers from the cache, for any thread; the arguments are those of `memoized_coroutine`."""

    def compute(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        begun = time.perf_counter()
        try:
            value = function(*args, **kwargs)
        except LookupError as error:
            run(memo.keep_miss, key, error)
            raise
        cost = time.perf_counter() - begun
        run(memo.keep, key, memo.encode(value), cost)
        return value

    def memoized(*args: Any, **kwargs: Any) -> Any:
        key = memo.key(args, kwargs)
        thread = threading.get_ident()
        while True:
            try:
                found = read(key)
            except NOT_NOW:
                found = None
            if memo.answers(found):
                return memo.value(found)
            flight, mine = memo.flights.join(key, thread)
            if mine:
                break
            if found is not None:
                return memo.value(found)
            if flight.owner == thread:
                # It called itself with the same arguments: a thread cannot wait for itself.
                return function(*args, **kwargs)
            try:
                return flight.result.result()
            except Abandoned:
                continue
        try:
            value = compute(key, args, kwargs)
        except BaseException as error:
            memo.flights.land(key, flight, error=error)
            return memo.fallback(found, error)
        memo.flights.land(key, flight, value)
        return value

    return memoized


def named(memoized: Callable[..., Any], function: Callable[..., Any], memo: Memo) -> Any:
    """Let `memoized` look like `function`, and know how to make keys."""
    functools.update_wrapper(memoized, function)
    memoized.key = lambda *args, **kwargs: memo.key(args, kwargs)  # type: ignore[attr-defined]
    return memoized
