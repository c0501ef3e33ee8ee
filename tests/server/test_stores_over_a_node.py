"""Other stores keep chunks on a node, through their LAN controller."""

from __future__ import annotations

import random

from dstorage_controllers.lan import LanController

import dstorage


def opened(path, node):
    controller = LanController("node", f"redis://127.0.0.1:{node.port}")
    return dstorage.open(path, budget="2M", controllers=[controller], pressure=None, tiering=None, commit_interval=None)


async def test_a_store_keeps_its_chunks_on_a_node(make_node, tmp_path):
    node = await make_node(budget="4M")
    rng = random.Random(8)
    values = {}
    async with opened(tmp_path / "other", node) as store:
        for size in [0, 1, 64, 5000, 100_000, 300_000, 1_000_000] * 4:
            value = rng.randbytes(size)
            with await store.create(value) as handle:
                values[handle.id] = value
        await store.commit()
        commits = node.store.stats().commits
        assert commits > 0, "the commit of the one is a commit of the other"
        for id, value in values.items():
            async with store.handle(id) as data:
                assert data == value
    node = await make_node(budget="4M")
    async with opened(tmp_path / "other", node) as store:
        for id, value in values.items():
            async with store.handle(id) as data:
                assert data == value
            with store.handle(id) as handle:
                handle.delete()
        await store.commit()
    assert node.server.keyspace.count <= 2
