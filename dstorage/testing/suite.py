"""The conformance suite: what every controller must do, one test for each sentence of the contract.

Subclass `ControllerTests`, say how to make a controller, and run pytest. The tests are plain functions that run their
own event loop, so no plug-in of pytest is needed.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from uuid import UUID

from dstorage.controller import (
    Buffer,
    Controller,
    ControllerStatus,
    OpenContext,
    ReadRequest,
    Space,
    WriteRequest,
)
from dstorage.errors import ChunkError, ControllerError, ControllerFull, CorruptData, DStorageError, Lost
from dstorage.record import Locator

SIZES = (0, 1, 2, 63, 511, 512, 4095, 4096, 4097, 65536, 100_003, 2**20)
"""Lengths at which implementations go wrong: nothing, odd, around sectors and pages, large."""

PATIENCE_S = 60.0
"""What a test waits for something that must happen; never reached when it does."""

STORE = UUID("5d2f0ac2-6f3c-4a5b-9d52-2f6a8d0a7c11")


def payload(seed: int, size: int) -> bytes:
    """Bytes of a chunk, different for each seed; half of them shrink when compressed."""
    source = random.Random(seed)  # noqa: S311 - test data
    return source.randbytes(size) if seed % 2 else (source.randbytes(min(size, 97)) * (size // 97 + 1))[:size]


class Bench:
    """One controller under test, opened, with the commits a store would make.

    Attributes:
        controller: It.
        state: Its private state as of the last `commit`.
        changes: How often it said that its status changed.
    """

    def __init__(self, controller: Controller, directory: Path, state: Mapping[int, bytes] | None = None) -> None:
        self.controller = controller
        self.directory = directory
        self.state: dict[int, bytes] = dict(state or {})
        self.changes = 0

    async def open(self, *, read_only: bool = False) -> None:
        """Open it as a store would."""

        def changed() -> None:
            self.changes += 1

        await self.controller.open(
            OpenContext(STORE, 3, self.directory, dict(self.state), read_only=read_only, status_changed=changed)
        )

    async def put(self, chunks: Mapping[int, Buffer]) -> dict[int, Locator]:
        """Write chunks that must all be taken."""
        answers = await self.controller.write([WriteRequest(id, data) for id, data in chunks.items()])
        assert len(answers) == len(chunks), "one answer for each request"
        placed = {}
        for (id, data), answer in zip(chunks.items(), answers, strict=True):
            assert isinstance(answer, Locator), f"chunk {id} was not taken: {answer!r}"
            assert answer.size == len(data), "Locator.size is the chunk's length"
            placed[id] = answer
        return placed

    async def get(self, places: Mapping[int, Locator]) -> dict[int, bytes | Exception]:
        """Read chunks: bytes, or the error."""
        answers = await self.controller.read([ReadRequest(id, locator) for id, locator in places.items()])
        assert len(answers) == len(places), "one answer for each request"
        return {
            id: answer if isinstance(answer, Exception) else bytes(answer)
            for id, answer in zip(places, answers, strict=True)
        }

    async def commit(
        self, alive: Mapping[int, Locator] | None = None, dead: Mapping[int, Locator] | None = None
    ) -> None:
        """Sync, checkpoint, save the state, tell; then discard what died."""
        gone = list((dead or {}).items())
        await self.controller.sync()
        self.save(self.controller.checkpoint(list((alive or {}).items()), gone))
        self.controller.committed()
        await self.controller.discard(gone)

    def save(self, changes: Mapping[int, bytes]) -> None:
        """Take changes of the private state in as a store does."""
        for key, value in changes.items():
            assert isinstance(value, bytes), "values of the private state are bytes"
            if value:
                self.state[key] = value
            else:
                self.state.pop(key, None)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return when `condition` holds.

    Raises:
        AssertionError: It did not before `PATIENCE_S`; the message says `what`.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            await _until(condition)
            return
    raise AssertionError(what)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - works for any condition, which no event does
        await asyncio.sleep(0.001)


class ControllerTests(ABC):
    """Subclass it as ``class TestMine(ControllerTests)``; every inherited test must pass.

    `make` is needed; the other hooks open more tests. Tests whose hook returns None pass without a look, so implement
    all that your controller has.

    Example:
        class TestRam(ControllerTests):
            def make(self, directory):
                return RamController()
    """

    # -- hooks ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def make(self, directory: Path) -> Controller:
        """A new controller, not opened; those made for one `directory` share their medium."""

    def make_small(self, directory: Path, capacity: int) -> Controller | None:
        """One with room for `capacity` bytes, or None if it cannot be limited."""
        return None

    def damage(self, directory: Path, id: int, locator: Locator) -> bool:
        """Change at least one stored byte of a chunk behind the controller's back; False if that cannot be done."""
        return False

    def lose(self, directory: Path, id: int, locator: Locator) -> bool:
        """Take the stored bytes of a chunk away behind the controller's back; False if that cannot be done."""
        return False

    def run(self, scenario: Callable[[Path], Awaitable[None]]) -> None:
        """Run one test; override to give it other directories or another loop."""

        async def bounded(directory: Path) -> None:
            async with asyncio.timeout(60):
                await scenario(directory)

        with tempfile.TemporaryDirectory(prefix="dstorage-test-") as directory:
            asyncio.run(bounded(Path(directory)))

    async def opened(self, stack: AsyncExitStack, directory: Path, state: Mapping[int, bytes] | None = None) -> Bench:
        """A controller opened for one test, closed with the stack."""
        bench = Bench(self.make(directory), directory / "own", state)
        stack.push_async_callback(bench.controller.close)
        await bench.open()
        return bench

    def _with(self, scenario: Callable[[Bench], Awaitable[None]]) -> None:
        async def prepared(directory: Path) -> None:
            async with AsyncExitStack() as stack:
                await scenario(await self.opened(stack, directory))

        self.run(prepared)

    # -- what it is -----------------------------------------------------------------------------------------------------

    def test_it_says_what_it_is(self) -> None:
        """Kind, name, rank, status and space can be asked at any time; its repr names it."""

        async def scenario(directory: Path) -> None:
            controller = self.make(directory)
            assert isinstance(controller.kind, str)
            assert controller.kind
            assert isinstance(controller.rank, int)
            assert isinstance(controller.status, ControllerStatus)
            assert isinstance(controller.space(), Space)
            assert controller.name in repr(controller)
            await controller.close()

        self.run(scenario)

    def test_settings_are_json_and_build_it_again(self) -> None:
        """What the catalog keeps survives JSON and makes an equal controller."""

        async def scenario(directory: Path) -> None:
            controller = self.make(directory)
            kept = json.loads(json.dumps(dict(controller.settings)))
            again = type(controller).from_settings(controller.name, kept)
            assert (again.name, again.rank, again.settings) == (controller.name, controller.rank, controller.settings)
            assert again.volatile == controller.volatile

        self.run(scenario)

    def test_hostile_settings_are_refused(self) -> None:
        """Unknown names and wrong types in settings raise a typed error."""

        async def scenario(directory: Path) -> None:
            controller = self.make(directory)
            spoilt: list[dict[str, object]] = [{**controller.settings, "no such setting": 1}]
            spoilt += [{**controller.settings, key: object()} for key in controller.settings]
            spoilt += [{**controller.settings, key: [[]]} for key in controller.settings]
            for settings in spoilt:
                try:
                    type(controller).from_settings(controller.name, settings)
                except DStorageError:
                    continue
                raise AssertionError(f"settings {settings} were taken")

        self.run(scenario)

    # -- reading and writing --------------------------------------------------------------------------------------------

    def test_what_is_written_is_read(self) -> None:
        """Chunks of all sizes, the empty one included, in one batch and one by one."""

        async def scenario(bench: Bench) -> None:
            chunks = {id: payload(id, size) for id, size in enumerate(SIZES, 1)}
            places = await bench.put(chunks)
            assert await bench.get(places) == chunks
            for id, locator in places.items():
                assert await bench.get({id: locator}) == {id: chunks[id]}

        self._with(scenario)

    def test_every_kind_of_buffer_is_taken(self) -> None:
        """`bytes`, `bytearray` and `memoryview`, read-only or not, of any item size."""

        async def scenario(bench: Bench) -> None:
            data = payload(1, 8192)
            chunks: dict[int, Buffer] = {
                1: data,
                2: bytearray(data),
                3: memoryview(data),
                4: memoryview(bytearray(data)),
            }
            places = await bench.put(chunks)
            assert set((await bench.get(places)).values()) == {data}

        self._with(scenario)

    def test_a_written_buffer_may_change_after_the_answer(self) -> None:
        """The controller keeps no reference to what it was given."""

        async def scenario(bench: Bench) -> None:
            data = bytearray(payload(1, 70_000))
            before = bytes(data)
            places = await bench.put({1: data})
            data[:] = bytes(len(data))
            assert await bench.get(places) == {1: before}

        self._with(scenario)

    def test_what_is_read_belongs_to_the_reader(self) -> None:
        """Changing it changes nothing that is read later."""

        async def scenario(bench: Bench) -> None:
            data = payload(1, 70_000)
            (place,) = (await bench.put({1: data})).values()
            for answer in [
                *await bench.controller.read([ReadRequest(1, place)]),
                bench.controller.read_nowait(1, place),
            ]:
                if isinstance(answer, bytearray) or (isinstance(answer, memoryview) and not answer.readonly):
                    answer[:100] = bytes(100)
            assert await bench.get({1: place}) == {1: data}

        self._with(scenario)

    def test_read_nowait_answers_right_or_not_at_all(self) -> None:
        """Its answer is the bytes or None, before and after they were read otherwise."""

        async def scenario(bench: Bench) -> None:
            chunks = {id: payload(id, size) for id, size in enumerate(SIZES, 1)}
            places = await bench.put(chunks)
            for _ in range(2):
                for id, place in places.items():
                    answer = bench.controller.read_nowait(id, place)
                    assert answer is None or bytes(answer) == chunks[id]
                await bench.get(places)

        self._with(scenario)

    def test_read_in_thread_answers_right_or_not_at_all(self) -> None:
        """Its answer is the bytes or None, in any thread, for places that are freed meanwhile, and after closing."""

        async def scenario(bench: Bench) -> None:
            chunks = {id: payload(id, size) for id, size in enumerate(SIZES, 1)}
            places = await bench.put(chunks)
            await bench.get(places)
            controller = bench.controller
            wrong: list[int] = []

            def read() -> None:
                for kind in [bytes, bytearray] * 10:
                    for id, place in places.items():
                        answer = controller.read_in_thread(id, place, writable=kind is bytearray)
                        if not (answer is None or (type(answer) is kind and answer == chunks[id])):
                            wrong.append(id)

            readers = [asyncio.create_task(asyncio.to_thread(read)) for _ in range(3)]
            await controller.discard(list(places.items()))
            await controller.close()
            await asyncio.gather(*readers)
            assert not wrong
            assert all(controller.read_in_thread(id, place) is None for id, place in places.items())

        self._with(scenario)

    def test_empty_batches_are_answered_empty(self) -> None:
        """No requests, no answers, no error."""

        async def scenario(bench: Bench) -> None:
            assert await bench.controller.read([]) == []
            assert await bench.controller.write([]) == []
            await bench.controller.discard([])
            await bench.controller.sync()
            assert bench.controller.checkpoint([], []) is not None

        self._with(scenario)

    def test_answers_stand_in_the_place_of_their_requests(self) -> None:
        """However large the batch and whatever its order, and the same chunk may be asked for twice."""

        async def scenario(bench: Bench) -> None:
            chunks = {id: payload(id, 1 + id * 37 % 3000) for id in range(1, 301)}
            places = await bench.put(chunks)
            order = [*chunks, *chunks]
            random.Random(5).shuffle(order)  # noqa: S311
            answers = await bench.controller.read([ReadRequest(id, places[id]) for id in order])
            for id, answer in zip(order, answers, strict=True):
                assert not isinstance(answer, Exception)
                assert bytes(answer) == chunks[id]

        self._with(scenario)

    def test_a_failed_request_fails_no_other(self) -> None:
        """A locator that leads nowhere is answered with an error in its place."""

        async def scenario(bench: Bench) -> None:
            chunks = {id: payload(id, 5000) for id in range(1, 6)}
            places = await bench.put(chunks)
            real = places[3]
            answers = await bench.get({**places, 3: Locator(real.size, real.b ^ 0x5A5A5A5A5A5A, real.c ^ 0xA5A5)})
            assert isinstance(answers.pop(3), DStorageError)
            assert answers == {id: data for id, data in chunks.items() if id != 3}

        self._with(scenario)

    def test_a_locator_serves_only_its_own_chunk(self) -> None:
        """Asking for one chunk with the locator of another gives an error, never the other's bytes."""

        async def scenario(bench: Bench) -> None:
            places = await bench.put({1: payload(1, 4096), 2: payload(3, 4096)})
            for answer in (await bench.get({1: places[2], 2: places[1]})).values():
                assert isinstance(answer, ChunkError)

        self._with(scenario)

    def test_hostile_locators_are_refused_one_by_one(self) -> None:
        """Random and bit-flipped locators give errors in their places: no exception of the batch, no wrong bytes."""

        async def scenario(bench: Bench) -> None:
            chunks = {id: payload(id, 3000 + id) for id in range(1, 9)}
            places = await bench.put(chunks)
            source = random.Random(11)  # noqa: S311
            for _ in range(40):
                asked = {}
                for id, place in places.items():
                    size, b, c = place
                    what = source.randrange(4)
                    if what == 0:
                        size ^= 1 << source.randrange(20)
                    elif what == 1:
                        b ^= 1 << source.randrange(64)
                    elif what == 2:
                        c ^= 1 << source.randrange(64)
                    else:
                        size, b, c = source.randrange(2**16), source.getrandbits(64), source.getrandbits(64)
                    asked[id] = Locator(size, b, c)
                for id, answer in (await bench.get(asked)).items():
                    assert isinstance(answer, DStorageError), f"{asked[id]} instead of {places[id]} gave {answer!r:.80}"
                    with suppress(DStorageError):
                        assert bench.controller.read_nowait(id, asked[id]) is None
            assert await bench.get(places) == chunks

        self._with(scenario)

    def test_everything_may_be_under_way_at_once(self) -> None:
        """Reads, writes, discards and syncs run beside each other."""

        async def scenario(bench: Bench) -> None:
            kept = {id: payload(id, 2000 + id) for id in range(1, 30)}
            places = await bench.put(kept)
            passing = await bench.put({id: payload(id, 900) for id in range(100, 130)})

            async def write(first: int) -> tuple[dict[int, bytes], dict[int, Locator]]:
                chunks = {id: payload(id, 50 * id) for id in range(first, first + 10)}
                return chunks, await bench.put(chunks)

            async def read() -> None:
                assert await bench.get(places) == kept

            written = asyncio.gather(*(write(first) for first in range(1000, 1100, 10)))
            await asyncio.gather(
                written,
                *(read() for _ in range(10)),
                *(bench.controller.discard([pair]) for pair in passing.items()),
                *(bench.controller.sync() for _ in range(5)),
            )
            for chunks, new in await written:
                assert await bench.get(new) == chunks

        self._with(scenario)

    # -- copy-on-write and freeing --------------------------------------------------------------------------------------

    def test_writing_again_leaves_the_old_bytes(self) -> None:
        """The old locator reads the old bytes until it is discarded."""

        async def scenario(bench: Bench) -> None:
            versions = [payload(seed, 4000 + seed) for seed in range(1, 8)]
            places = [(await bench.put({7: data}))[7] for data in versions]
            assert len(set(places)) == len(places), "each write has a place of its own"
            for place, data in zip(places, versions, strict=True):
                assert await bench.get({7: place}) == {7: data}

        self._with(scenario)

    def test_discarding_frees_exactly_that(self) -> None:
        """The space comes back, the neighbours stay, and the discarded chunk never reads as anything else."""

        async def scenario(bench: Bench) -> None:
            before = bench.controller.space().used
            chunks = {id: payload(id, 9000 + id) for id in range(1, 21)}
            places = await bench.put(chunks)
            assert bench.controller.space().used > before
            odd = {id: place for id, place in places.items() if id % 2}
            await bench.controller.discard(list(odd.items()))
            rest = {id: place for id, place in places.items() if not id % 2}
            assert await bench.get(rest) == {id: chunks[id] for id in rest}
            for id, answer in (await bench.get(odd)).items():
                assert isinstance(answer, Exception) or answer == chunks[id]
            await bench.controller.discard(list(rest.items()))
            assert bench.controller.space().used == before

        self._with(scenario)

    def test_discarding_what_never_was_is_no_error(self) -> None:
        """Neither for hostile locators nor for the empty chunk."""

        async def scenario(bench: Bench) -> None:
            places = await bench.put({1: payload(1, 5000), 2: b""})
            used = bench.controller.space().used
            source = random.Random(3)  # noqa: S311
            # Segments, slots and keys that do not exist: those of a damaged catalog.
            hostile = [(id, Locator(77, source.getrandbits(64) | 1 << 61, 1 << 40)) for id in range(50, 60)]
            await bench.controller.discard([*hostile, (2, places[2])])
            assert bench.controller.space().used == used
            assert await bench.get({1: places[1]}) == {1: payload(1, 5000)}

        self._with(scenario)

    def test_space_never_lies_beyond_the_total(self) -> None:
        """`used` follows what is kept; `total`, if known, is not less."""

        async def scenario(bench: Bench) -> None:
            for id in range(1, 10):
                await bench.put({id: payload(id, 3001)})
                total, used = bench.controller.space()
                assert used > 0
                assert total is None or total >= used

        self._with(scenario)

    # -- full -----------------------------------------------------------------------------------------------------------

    def test_what_does_not_fit_is_refused_alone(self) -> None:
        """`ControllerFull` for the requests that do not fit; the status follows, and comes back with the room."""

        async def scenario(directory: Path) -> None:
            controller = self.make_small(directory, 100_000)
            if controller is None:
                return
            bench = Bench(controller, directory / "own")
            async with AsyncExitStack() as stack:
                stack.push_async_callback(controller.close)
                await bench.open()
                # Odd seeds: they do not shrink.
                chunks = {id: payload(2 * id + 1, 40_000) for id in range(1, 5)}
                answers = await controller.write([WriteRequest(id, data) for id, data in chunks.items()])
                taken = {id: a for id, a in zip(chunks, answers, strict=True) if isinstance(a, Locator)}
                refused = [answer for answer in answers if not isinstance(answer, Locator)]
                assert len(taken) == 2
                assert all(isinstance(answer, ControllerFull) for answer in refused)
                assert _status(controller) is ControllerStatus.FULL
                assert bench.changes == 1
                assert await bench.get(taken) == {id: chunks[id] for id in taken}
                used = controller.space().used
                assert used <= 100_000
                assert (await bench.put({9: b"small"}))[9].size == 5, "what fits is still taken"
                await controller.discard(list(taken.items()))
                assert _status(controller) is ControllerStatus.OK
                assert bench.changes == 2
                assert len(await bench.put({id: chunks[id] for id in (3, 4)})) == 2

        self.run(scenario)

    # -- cancelling -----------------------------------------------------------------------------------------------------

    def test_a_cancelled_write_leaves_nothing(self) -> None:
        """Wherever the cancellation hits, the space comes back and other chunks are as they were."""

        async def scenario(bench: Bench) -> None:
            kept = await bench.put({1: payload(1, 5000)})
            used = bench.controller.space().used
            requests = [WriteRequest(id, payload(id, 50_000)) for id in range(2, 12)]
            for turns in range(12):
                task = asyncio.create_task(bench.controller.write(requests))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if not task.cancel():
                    await bench.controller.discard(
                        [(r.id, a) for r, a in zip(requests, task.result(), strict=True) if isinstance(a, Locator)]
                    )
                    continue
                with suppress(asyncio.CancelledError):
                    await task
                    raise AssertionError("cancelled, and answered all the same")
            await eventually(lambda: bench.controller.space().used == used, "cancelled writes still count as used")
            assert await bench.get(kept) == {1: payload(1, 5000)}

        self._with(scenario)

    def test_a_cancelled_read_disturbs_nobody(self) -> None:
        """The same chunks are read by others meanwhile."""

        async def scenario(bench: Bench) -> None:
            chunks = {id: payload(id, 50_000) for id in range(1, 10)}
            places = await bench.put(chunks)
            for turns in range(6):
                cancelled = asyncio.create_task(bench.get(places))
                other = asyncio.create_task(bench.get(places))
                for _ in range(turns):
                    await asyncio.sleep(0)
                cancelled.cancel()
                assert await other == chunks
                with suppress(asyncio.CancelledError):
                    await cancelled

        self._with(scenario)

    def test_a_cancelled_sync_disturbs_nobody(self) -> None:
        """Who else waits for the same round is answered."""

        async def scenario(bench: Bench) -> None:
            for turns in range(5):
                await bench.put({turns + 1: payload(turns, 5000)})
                cancelled = asyncio.create_task(bench.controller.sync())
                other = asyncio.create_task(bench.controller.sync())
                for _ in range(turns):
                    await asyncio.sleep(0)
                cancelled.cancel()
                await other
                with suppress(asyncio.CancelledError):
                    await cancelled

        self._with(scenario)

    # -- commits, crashes, and the private state ------------------------------------------------------------------------

    def _reopened(self, before: Callable[[Bench], Awaitable[None]], after: Callable[[Bench], Awaitable[None]]) -> None:
        async def scenario(directory: Path) -> None:
            async with AsyncExitStack() as stack:
                bench = await self.opened(stack, directory)
                await before(bench)
                await bench.controller.close()
                await after(await self.opened(stack, directory, bench.state))

        self.run(scenario)

    def test_what_was_committed_is_there_after_reopening(self) -> None:
        """Or, on a volatile controller, lost: never anything else. Opening twice changes nothing."""
        chunks = {id: payload(id, size) for id, size in enumerate(SIZES, 1)}
        places: dict[int, Locator] = {}
        used: list[int] = []

        async def before(bench: Bench) -> None:
            places.update(await bench.put(chunks))
            await bench.commit(places)
            used.append(bench.controller.space().used)

        async def after(bench: Bench) -> None:
            answers = await bench.get(places)
            if bench.controller.volatile:
                assert all(isinstance(answer, Lost) for answer in answers.values())
            else:
                assert answers == chunks
                assert bench.controller.space().used == used[0]

        self._reopened(before, after)

    def test_what_was_not_committed_is_not_counted_after_a_crash(self) -> None:
        """Written and even synced, but named by no commit: garbage, whose space is free again."""
        places: dict[int, Locator] = {}
        used: list[int] = []

        async def before(bench: Bench) -> None:
            places.update(await bench.put({1: payload(1, 30_000)}))
            await bench.commit(places)
            used.append(bench.controller.space().used)
            await bench.put({id: payload(id, 10_000) for id in range(2, 30)})
            await bench.controller.sync()

        async def after(bench: Bench) -> None:
            if not bench.controller.volatile:
                assert bench.controller.space().used == used[0]
                assert await bench.get(places) == {1: payload(1, 30_000)}
                later = await bench.put({id: payload(id, 10_000) for id in range(2, 30)})
                assert await bench.get(later) == {id: payload(id, 10_000) for id in later}
                assert await bench.get(places) == {1: payload(1, 30_000)}

        self._reopened(before, after)

    def test_what_a_commit_let_die_is_free_after_a_crash(self) -> None:
        """Nobody calls `discard` again for what was dead when the process ended."""
        rest: dict[int, Locator] = {}

        async def before(bench: Bench) -> None:
            places = await bench.put({id: payload(id, 5000) for id in range(1, 11)})
            await bench.commit(places)
            dead = {id: place for id, place in places.items() if id > 3}
            rest.update({id: place for id, place in places.items() if id <= 3})
            bench.save(bench.controller.checkpoint([], list(dead.items())))

        async def after(bench: Bench) -> None:
            if bench.controller.volatile:
                return
            assert await bench.get(rest) == {id: payload(id, 5000) for id in rest}
            await bench.commit({}, rest)
            assert bench.controller.space().used == 0

        self._reopened(before, after)

    def test_a_commit_that_failed_changes_nothing(self) -> None:
        """`checkpoint` may be asked again and again, with more each time; only `committed` counts."""
        places: dict[int, Locator] = {}

        async def before(bench: Bench) -> None:
            places.update(await bench.put({1: payload(1, 5000), 2: payload(2, 5000)}))
            first = list(places.items())
            await bench.controller.sync()
            once = bench.controller.checkpoint(first, [])
            assert bench.controller.checkpoint(first, []) == once
            places.update(await bench.put({3: payload(3, 5000)}))
            await bench.commit(places)
            bench.controller.checkpoint([], [(1, places[1])])
            bench.save(bench.controller.checkpoint([], [(2, places[2])]))
            bench.controller.committed()

        async def after(bench: Bench) -> None:
            if bench.controller.volatile:
                return
            alive = {id: place for id, place in places.items() if id != 2}
            assert await bench.get(alive) == {id: payload(id, 5000) for id in alive}
            await bench.commit({}, alive)
            assert bench.controller.space().used == 0

        self._reopened(before, after)

    def test_many_rounds_leak_nothing(self) -> None:
        """Overwriting and reopening for long leaves as much in use as one round."""

        async def scenario(directory: Path) -> None:
            state: dict[int, bytes] = {}
            current: dict[int, Locator] = {}
            seen: set[int] = set()
            for round in range(6):
                async with AsyncExitStack() as stack:
                    bench = await self.opened(stack, directory, state)
                    if bench.controller.volatile:
                        current = {}
                    for step in range(5):
                        chunks = {id: payload(2 * (round * 100 + step * 10 + id) + 1, 7000) for id in range(1, 9)}
                        new = await bench.put(chunks)
                        await bench.commit(new, current)
                        current = new
                        assert await bench.get(current) == chunks
                        seen.add(bench.controller.space().used)
                    state = bench.state
            assert len(seen) == 1, f"the space in use wanders: {sorted(seen)}"

        self.run(scenario)

    # -- damage ---------------------------------------------------------------------------------------------------------

    def _behind(self, act: Callable[[Path, int, Locator], bool], allowed: Iterable[type[Exception]]) -> None:
        async def scenario(directory: Path) -> None:
            async with AsyncExitStack() as stack:
                bench = await self.opened(stack, directory)
                chunks = {id: payload(id, 6000) for id in range(1, 8)}
                places = await bench.put(chunks)
                await bench.commit(places)
                if not act(directory, 4, places[4]):
                    return
                with suppress(DStorageError):
                    assert bench.controller.read_nowait(4, places[4]) is None
                answers = await bench.get(places)
                assert isinstance(answers.pop(4), tuple(allowed))
                if CorruptData in allowed:
                    assert answers == {id: data for id, data in chunks.items() if id != 4}

        self.run(scenario)

    def test_damaged_bytes_are_never_returned(self) -> None:
        """They are answered with `CorruptData` or `Lost`, and nothing else is touched."""
        self._behind(self.damage, (CorruptData, Lost))

    def test_bytes_that_are_gone_are_lost(self) -> None:
        """They are answered with `Lost`."""
        self._behind(self.lose, (Lost,))

    # -- read-only, and the end -----------------------------------------------------------------------------------------

    def test_read_only_changes_nothing(self) -> None:
        """Reading works beside the writer; writing is refused; the files stay as they are."""

        async def scenario(directory: Path) -> None:
            async with AsyncExitStack() as stack:
                writer = await self.opened(stack, directory)
                if writer.controller.volatile:
                    return
                chunks = {id: payload(id, 5000) for id in range(1, 6)}
                places = await writer.put(chunks)
                await writer.commit(places)
                await writer.put({6: payload(6, 5000)})
                before = _files(directory)
                reader = Bench(self.make(directory), directory / "own", writer.state)
                stack.push_async_callback(reader.controller.close)
                await reader.open(read_only=True)
                assert await reader.get(places) == chunks
                for refused in (
                    reader.controller.write([WriteRequest(9, b"x")]),
                    reader.controller.discard([(1, places[1])]),
                ):
                    try:
                        await refused
                    except DStorageError:
                        continue
                    raise AssertionError("a read-only controller took a change")
                await reader.controller.close()
                assert _files(directory) == before

        self.run(scenario)

    def test_after_close_calls_are_errors(self) -> None:
        """Typed ones; closing again is none."""

        async def scenario(bench: Bench) -> None:
            places = await bench.put({1: payload(1, 5000)})
            await bench.controller.close()
            await bench.controller.close()
            calls: Sequence[Callable[[], Awaitable[object]]] = (
                lambda: bench.controller.read([ReadRequest(1, places[1])]),
                lambda: bench.controller.write([WriteRequest(1, b"x")]),
                lambda: bench.controller.sync(),
            )
            for call in calls:
                try:
                    await call()
                except ControllerError:
                    continue
                raise AssertionError("a closed controller answered")
            assert isinstance(bench.controller.status, ControllerStatus)

        self._with(scenario)

    def test_closing_without_opening_is_no_error(self) -> None:
        """Also after an `open` that failed, which leaves the same."""

        async def scenario(directory: Path) -> None:
            controller = self.make(directory)
            await controller.close()
            await controller.close()

        self.run(scenario)


def _status(controller: Controller) -> ControllerStatus:
    return controller.status


def _files(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }
