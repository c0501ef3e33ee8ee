"""Plug-ins that answer nonsense to a write: the chunk it concerns fails, by name, and the others go on."""

from __future__ import annotations

import asyncio

import pytest
from memory_controller import MemoryController

import dstorage
from dstorage import Locator, TemporarilyUnavailable
from dstorage.check import check

NONSENSE = [
    lambda good: good._replace(b=2**64),
    lambda good: good._replace(c=2**64),
    lambda good: good._replace(b=-1),
    lambda good: good._replace(c=-1),
    lambda good: good._replace(b=1.5),
    lambda good: good._replace(b=None),
    lambda good: good._replace(size=good.size + 1),
    lambda good: good._replace(size=2**32),
    lambda good: tuple(good),
    lambda good: None,
    lambda good: b"here",
]


class Confused(MemoryController):
    """Answers nonsense for one chunk."""

    def __init__(self, nonsense, *args, **options):
        super().__init__(*args, **options)
        self.nonsense = nonsense
        self.victim = 0

    async def write(self, requests):
        answers = await super().write(requests)
        return [
            self.nonsense(answer) if request.id == self.victim else answer
            for request, answer in zip(requests, answers, strict=True)
        ]


def opening(path, *controllers):
    return dstorage.open(path, budget=2**20, controllers=controllers, commit_interval=None, pressure=None)


async def three(store):
    ids = []
    for content in (b"one", b"two", b"three"):
        with await store.create(content) as handle:
            ids.append(handle.id)
    return ids


def listen():
    messages = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: messages.append(context))
    return messages


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_a_commit_names_the_chunk_and_the_controller_and_those_after_it_go_on(tmp_path, nonsense):
    messages = listen()
    controller = Confused(nonsense, "muddle")
    async with opening(tmp_path, controller) as store:
        ids = await three(store)
        controller.victim = ids[1]
        for _ in range(2):
            with pytest.raises(TemporarilyUnavailable, match=rf"(?s)chunk {ids[1]} .*'muddle' answered .* no locator"):
                await store.commit()
        assert messages
        assert all("'muddle' broke its contract" in context["message"] for context in messages)
        # Nothing is lost, and without it the others are committed.
        with store.handle(ids[1]) as handle:
            assert await handle == b"two"
            handle.delete()
        await store.commit()
        assert (await check(store)).sound
    async with opening(tmp_path, MemoryController("muddle", medium=controller.medium)) as store:
        for id, content in ((ids[0], b"one"), (ids[2], b"three")):
            async with store.handle(id) as data:
                assert data == content


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_the_next_controller_takes_what_one_answered_nonsense_to(tmp_path, nonsense):
    listen()
    fast, slow = Confused(nonsense, "muddle", rank=99), MemoryController("slow", rank=1)
    async with opening(tmp_path, fast, slow) as store:
        ids = await three(store)
        fast.victim = ids[1]
        await store.commit()
        assert [store.info(id).controller for id in ids] == ["muddle", "slow", "muddle"]
        assert (await check(store)).sound


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_a_chunk_is_not_moved_to_one_that_answers_nonsense(tmp_path, nonsense):
    fast, slow = Confused(nonsense, "muddle", rank=1), MemoryController("slow", rank=99)
    async with opening(tmp_path, fast, slow) as store:
        ids = await three(store)
        await store.commit()
        fast.victim = ids[1]
        with pytest.raises(TemporarilyUnavailable, match="'muddle' answered"):
            await store.migrate(ids, to="muddle")
        await store.commit()
        assert store.info(ids[1]).controller == "slow"
        assert (await check(store)).sound


@pytest.mark.parametrize("answers", [[], [Locator(3, 1)], None, 7])
async def test_too_few_answers_fail_the_batch(tmp_path, answers):
    listen()
    controller = MemoryController("muddle")

    async def write(requests):
        return answers

    async with opening(tmp_path, controller) as store:
        await three(store)
        controller.write = write
        with pytest.raises(TemporarilyUnavailable, match=r"'muddle' gave .* answers to 3 writes"):
            await store.commit()
        del controller.write
        await store.commit()
        assert (await check(store)).sound
