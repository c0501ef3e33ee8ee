"""Nodes for the tests of the server."""

from __future__ import annotations

import pytest
from nodes import Node


@pytest.fixture
async def make_node(tmp_path):
    """Starts nodes on one store, one after the other."""
    running = []

    async def make(**options):
        for node in running:
            await node.stop()
        running.clear()
        node = await Node(tmp_path / "store").start(**options)
        running.append(node)
        return node

    yield make
    for node in running:
        await node.stop()


@pytest.fixture
async def client(make_node):
    node = await make_node()
    client = await node.client()
    client.node = node
    return client
