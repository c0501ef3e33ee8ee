"""Namespaces: whose chunks leave, what is remembered over a restart, what is refused."""

from __future__ import annotations

import asyncio
import warnings

import pytest
from dstorage_controllers.ram import RamController
from memory_controller import MemoryController

import dstorage
from dstorage.catalog import Catalog
from dstorage.errors import InvalidArgumentError, ReadOnlyError

KIB = 1024


@pytest.fixture
async def store(tmp_path):
    async with dstorage.open(tmp_path / "store", budget=100 * KIB, pressure=None, commit_interval=None) as store:
        yield store


async def fill(space, count, size=KIB):
    ids = []
    for number in range(count):
        with await space.create(bytes([number % 256]) * size) as handle:
            ids.append(handle.id)
    return ids


def resident(store, ids):
    return sum(store.info(id).resident for id in ids)


async def read(store, ids):
    for id in ids:
        async with store.handle(id):
            pass


async def test_a_namespace_keeps_its_share_however_busy_the_others_are(store):
    images = await store.namespace("images", share=0.3)
    mine = await fill(images, 25)
    others = await fill(store, 300)
    await store.commit()
    await read(store, mine)
    for _ in range(3):
        await read(store, others)
    assert resident(store, mine) == 25
    assert store.memory_used <= 100 * KIB


async def test_what_nobody_uses_everybody_may(store):
    images = await store.namespace("images", share=0.3)
    ids = await fill(images, 200)
    await store.commit()
    await read(store, ids)
    assert resident(store, ids) > 90
    assert images.used <= store.memory_used

    others = await fill(store, 70)
    await store.commit()
    for _ in range(3):
        await read(store, others)
    assert 25 <= resident(store, ids) <= 30
    assert resident(store, others) >= 65


async def test_two_namespaces_press_each_other_down_to_their_shares(store):
    small, large = await store.namespace("small", share=0.2), await store.namespace("large", share=0.8)
    few, many = await fill(small, 150), await fill(large, 150)
    await store.commit()
    for _ in range(4):
        await read(store, few)
        await read(store, many)
    await read(store, few)
    assert resident(store, many) >= 75
    assert resident(store, few) >= 15


async def test_references_count_for_the_namespace_that_holds_them(store):
    held = await store.namespace("held", share=0.2)
    ids = await fill(held, 60)
    others = await fill(store, 60)
    await store.commit()
    handles = await store.resolve_all(ids)
    await read(store, others)
    # 60 of 100 are held, three times the share: the others get by with what is left.
    assert resident(store, ids) == 60
    assert held.used == 60 * KIB
    for handle in handles:
        handle.release()
    for _ in range(3):
        await read(store, others)
    assert resident(store, others) == 60
    assert resident(store, ids) <= 40


async def test_ids_tell_their_namespace_and_are_listed_by_it(store):
    images = await store.namespace("images")
    mine, others = await fill(images, 3), await fill(store, 3)
    assert all(id in images for id in mine)
    assert not any(id in images for id in others)
    assert list(images.ids()) == []
    await store.commit()
    assert list(images.ids()) == mine
    assert list(store.ids()) == others + mine
    with store.handle(mine[1]) as handle:
        handle.delete()
    assert list(images.ids()) == [mine[0], mine[2]]


async def test_names_numbers_and_shares_outlive_the_process(tmp_path):
    async with dstorage.open(tmp_path / "store", pressure=None) as store:
        first = await store.namespace("first", share=0.25)
        second = await store.namespace("second")
        assert (first.number, second.number) == (1, 2)
        ids = await fill(second, 2)
    async with dstorage.open(tmp_path / "store", pressure=None) as store:
        assert [(n.name, n.number, n.share) for n in store.namespaces()] == [("first", 1, 0.25), ("second", 2, 0.0)]
        second = await store.namespace("second", share=0.5)
        assert list(second.ids()) == ids
    async with dstorage.open(tmp_path / "store", pressure=None, read_only=True) as store:
        assert (await store.namespace("second")).share == 0.5
        with pytest.raises(ReadOnlyError):
            await store.namespace("third")
        with pytest.raises(ReadOnlyError):
            await store.namespace("second", share=0.1)


async def test_shares_never_add_up_to_more_than_the_budget(store):
    await store.namespace("a", share=0.6)
    with pytest.raises(InvalidArgumentError, match=r"give 0 to 0\.4"):
        await store.namespace("b", share=0.5)
    assert [n.name for n in store.namespaces()] == ["a"]
    a = await store.namespace("a", share=0.1)
    assert a.share == 0.1
    assert (await store.namespace("b", share=0.9)).share == 0.9


@pytest.mark.parametrize("turns", range(8))
async def test_a_share_whose_setting_is_cancelled_is_in_force_as_it_is_stored(tmp_path, turns):
    async with dstorage.open(tmp_path, pressure=None, commit_interval=None) as store:
        await store.namespace("a", share=0.1)
        setting = asyncio.create_task(store.namespace("a", share=0.9))
        making = asyncio.create_task(store.namespace("b", share=0.05))
        for _ in range(turns):
            await asyncio.sleep(0)
        setting.cancel()
        making.cancel()
        await asyncio.wait([setting, making])
        await store.namespace("c")
        shares = {space.name: space.share for space in store.namespaces()}
        free = 1 - sum(shares.values())
        with pytest.raises(InvalidArgumentError, match="which is what the others leave"):
            await store.namespace("c", share=free + 0.01)
        shares["c"] = (await store.namespace("c", share=free)).share
    async with dstorage.open(tmp_path, pressure=None) as store:
        assert {space.name: space.share for space in store.namespaces()} == shares


async def test_shares_that_do_not_fit_are_told_and_taken_for_less(tmp_path):
    async with dstorage.open(tmp_path, pressure=None) as store:
        for name in ("a", "b"):
            await store.namespace(name)
    catalog = Catalog(tmp_path / "catalog")
    for number, name in enumerate(("a", "b"), 1):
        catalog.put_namespace(number, name=name, share=0.9)
    catalog.close()
    with pytest.warns(RuntimeWarning, match=r"add up to 1\.8, and 1 is all there is: .* set them anew"):
        store = await dstorage.open(tmp_path, pressure=None)
    async with store:
        assert [space.share for space in store.namespaces()] == [0.5, 0.5]
        with pytest.raises(InvalidArgumentError, match=r"give 0 to 0\.5"):
            await store.namespace("a", share=0.6)
        # As they are in force, and not as they are stored.
        for name in ("a", "b"):
            await store.namespace(name, share=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with dstorage.open(tmp_path, pressure=None) as store:
            assert [space.share for space in store.namespaces()] == [0.5, 0.5]


@pytest.mark.parametrize("other", ["a", None, -1, 0, 2**70, 1.5, True, (1, 2)])
async def test_what_is_no_id_is_in_no_namespace(store, other):
    assert other not in await store.namespace("a")


@pytest.mark.parametrize("name", ["", "x" * 256, "\u20ac" * 86, "\ud800", b"bytes", 5, None])
async def test_what_is_no_name_is_refused(store, name):
    with pytest.raises(InvalidArgumentError, match=r"namespace name .*: give text of 1 to 255 bytes"):
        await store.namespace(name)
    assert store.namespaces() == []


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf"), "0.5", True, 1j])
async def test_what_is_no_share_is_refused(store, share):
    a = await store.namespace("a", share=0.5)
    for name in ("a", "b"):
        with pytest.raises(InvalidArgumentError, match=f"for namespace '{name}': give 0 to"):
            await store.namespace(name, share=share)
    assert (a.share, len(store.namespaces())) == (0.5, 1)


async def test_the_255th_namespace_is_the_last(tmp_path):
    async with dstorage.open(tmp_path / "store", pressure=None, controllers=[RamController("ram")]) as store:
        for number in range(255):
            await store.namespace(str(number))
        with pytest.raises(InvalidArgumentError, match="255 namespaces"):
            await store.namespace("one more")
        with await (await store.namespace("254")).create(b"x", durable=False) as handle:
            assert handle.id >> 56 == 255
            handle.delete()


async def test_a_namespace_keeps_its_share_while_others_wait_for_a_slow_disk(tmp_path):
    slow = MemoryController()
    async with dstorage.open(
        tmp_path / "store", budget=100 * KIB, controllers=[slow], pressure=None, commit_interval=None
    ) as store:
        images = await store.namespace("images", share=0.5)
        mine = await fill(images, 40)
        others = await fill(store, 300)
        await store.commit()
        await read(store, mine)
        slow.write_gate = asyncio.Event()
        for id in others[:40]:
            with store.handle(id) as handle:
                await handle.replace(bytes(KIB))
        for _ in range(3):
            await read(store, others[100:])
        kept = resident(store, mine)
        slow.write_gate.set()
        assert kept == 40
