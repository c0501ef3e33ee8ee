"""Who may pass at the same time: many, or one alone; nobody starves, nobody who is cancelled leaves the gate shut."""

from __future__ import annotations

import asyncio
import random

import pytest

from dstorage.volumes.gate import Gate


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


class Visitor:
    def __init__(self, gate, *, alone=False):
        self.way = gate.alone if alone else gate
        self.inside = False
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self.visit())

    async def visit(self):
        async with self.way:
            self.inside = True
            try:
                await self.leave.wait()
            finally:
                self.inside = False

    async def go(self):
        self.leave.set()
        await self.task


async def test_many_pass_together_and_one_alone():
    gate = Gate()
    first, second = Visitor(gate), Visitor(gate)
    await settle()
    assert first.inside
    assert second.inside
    alone = Visitor(gate, alone=True)
    await settle()
    late = Visitor(gate)
    await settle()
    # Whoever comes after one that waits to be alone waits behind it.
    assert not alone.inside
    assert not late.inside
    await first.go()
    await settle()
    assert not alone.inside
    await second.go()
    await settle()
    assert alone.inside
    assert not late.inside
    other = Visitor(gate, alone=True)
    await alone.go()
    await settle()
    assert late.inside
    assert not other.inside
    await late.go()
    await settle()
    assert other.inside
    await other.go()


@pytest.mark.parametrize("alone", [False, True])
async def test_one_that_is_cancelled_while_waiting_holds_up_nobody(alone):
    gate = Gate()
    holder = Visitor(gate, alone=True)
    await settle()
    waiting = Visitor(gate, alone=alone)
    behind = Visitor(gate)
    await settle()
    waiting.task.cancel()
    await settle()
    await holder.go()
    await settle()
    assert behind.inside
    await behind.go()


async def test_one_that_is_cancelled_as_it_is_let_in_leaves_again():
    gate = Gate()
    holder = Visitor(gate, alone=True)
    await settle()
    waiting = Visitor(gate, alone=True)
    await settle()
    holder.leave.set()
    while not holder.task.done():
        await asyncio.sleep(0)
    waiting.task.cancel()
    await settle()
    last = Visitor(gate, alone=True)
    await settle()
    assert last.inside
    await last.go()


@pytest.mark.parametrize("seed", range(5))
async def test_any_traffic_keeps_the_rule(seed):
    gate = Gate()
    chance = random.Random(seed)
    inside = {False: 0, True: 0}

    async def visit(alone):
        async with gate.alone if alone else gate:
            inside[alone] += 1
            assert inside[True] <= 1
            assert not (inside[True] and inside[False])
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                inside[alone] -= 1

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.create_task(visit(chance.random() < 0.3)))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError)
    async with gate.alone:
        pass
    async with gate:
        pass
