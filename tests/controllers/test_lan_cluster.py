"""A Cluster of three masters: the suite, slots that move, masters that go and come back."""

from __future__ import annotations

import pytest
from dstorage_controllers.lan import LanController
from dstorage_controllers.lan.layout import Layout
from redis.crc import key_slot
from servers.redis_server import RedisCluster, RedisServer, valkey
from servers.scripted import ScriptedServer

from dstorage.controller import ControllerStatus
from dstorage.errors import ControllerUnavailable
from dstorage.testing import Bench, ControllerTests, eventually, payload
from dstorage.testing.suite import STORE


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.kill()


def keys_of(id, locator):
    layout = Layout(STORE, 3, "lan")
    return layout.keys(id, layout.unpack(id, locator))


class TestCluster(ControllerTests):
    @pytest.fixture(autouse=True)
    def _server(self, cluster):
        self.cluster = cluster

    def make(self, directory):
        return LanController(url=self.cluster.url, cluster=True)

    def make_small(self, directory, capacity):
        return LanController(url=self.cluster.url, cluster=True, capacity=capacity)

    def damage(self, directory, id, locator):
        return self.cluster.ask("SETRANGE", keys_of(id, locator)[0], "100", b"\x00\xff\x00").startswith(b":")

    def lose(self, directory, id, locator):
        return all(self.cluster.ask("DEL", key) == b":1\r\n" for key in keys_of(id, locator))


@pytest.fixture
async def bench(cluster, tmp_path):
    bench = Bench(LanController(url=cluster.url, cluster=True), tmp_path)
    await bench.open()
    yield bench
    await bench.controller.close()


class Move:
    """The slot of a key goes from one node to another, step by step.

    Args:
        cluster: Of which.
        key: Any key in the slot.
        back: From the next node to where it was at first, instead of the other way.
    """

    def __init__(self, cluster, key, *, back=False):
        self.key = key
        self.slot = str(key_slot(key.encode()))
        home = min(2, int(self.slot) // (cluster.SLOTS // 3))
        nodes = [cluster.nodes[home], cluster.nodes[(home + 1) % 3]]
        self.source, self.target = reversed(nodes) if back else nodes
        self.ids = {node: node.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode() for node in nodes}

    def begin(self):
        self._set(self.target, "IMPORTING", self.source)
        self._set(self.source, "MIGRATING", self.target)

    def move_the_keys(self):
        """All of the slot: others may have fallen into it."""
        listed = self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, "100").split(b"\r\n")[2::2]
        assert self.key.encode() in listed
        for key in listed:
            told = self.source.ask("MIGRATE", "127.0.0.1", str(self.target.port), key, "0", "5000")
            assert told == b"+OK\r\n", told

    def end(self):
        for node in (self.target, self.source):
            self._set(node, "NODE", self.target)

    def _set(self, at, how, node):
        told = at.ask("CLUSTER", "SETSLOT", self.slot, how, self.ids[node])
        assert told == b"+OK\r\n", told


async def test_the_pieces_of_a_chunk_are_on_all_masters(cluster, bench):
    data = payload(1, 2**24)
    places = await bench.put({1: data})
    owners = {key_slot(key.encode()) * 3 // 16384 for key in keys_of(1, places[1])}
    assert owners == {0, 1, 2}
    assert (await bench.get(places))[1] == data


async def test_a_chunk_is_found_while_its_slot_moves_and_afterwards(cluster, bench):
    places = await bench.put({number: payload(number, 5000) for number in range(1, 40)})
    expected = {number: payload(number, 5000) for number in places}
    key = keys_of(7, places[7])[0]
    move = Move(cluster, key)
    move.begin()
    assert await bench.get(places) == expected
    move.move_the_keys()
    assert await bench.get(places) == expected, "-ASK is followed"
    move.end()
    assert await bench.get(places) == expected, "-MOVED is followed"
    assert bench.controller.status is ControllerStatus.OK
    more = await bench.put({number: payload(number, 5000) for number in range(40, 80)})
    assert (await bench.get(more))[41] == payload(41, 5000)
    await bench.commit(places | more)
    # The other tests expect it where it was.
    back = Move(cluster, key, back=True)
    back.begin()
    back.move_the_keys()
    back.end()
    cluster.wait()


async def test_a_master_that_is_away_makes_it_unavailable_until_it_is_back(cluster, bench):
    places = await bench.put({number: payload(number, 5000) for number in range(1, 40)})
    await bench.commit(places)
    cluster.nodes[1].kill()
    try:
        answers = await bench.get(places)
        refused = [answer for answer in answers.values() if not isinstance(answer, bytes)]
        assert refused
        assert all(isinstance(answer, ControllerUnavailable) for answer in refused)
        assert bench.controller.status is ControllerStatus.TEMPORARILY_UNAVAILABLE
        with pytest.raises(ControllerUnavailable):
            await bench.controller.sync()
    finally:
        cluster.nodes[1].start()
    cluster.wait()
    await eventually(lambda: bench.controller.status is ControllerStatus.OK, "the master is back")
    assert await bench.get(places) == {number: payload(number, 5000) for number in places}


async def test_a_replica_that_takes_over_is_followed(tmp_path):
    cluster = RedisCluster(tmp_path / "cluster")
    try:
        replica = cluster.add_replica(tmp_path / "replica", cluster.nodes[1])
        bench = Bench(LanController(url=cluster.url, cluster=True), tmp_path)
        await bench.open()
        places = await bench.put({number: payload(number, 5000) for number in range(1, 40)})
        await bench.commit(places)
        await eventually(lambda: replica.ask("DBSIZE") == cluster.nodes[1].ask("DBSIZE"), "the replica has it all")
        cluster.nodes[1].kill()
        await bench.get(places)
        await eventually(lambda: bench.controller.status is ControllerStatus.OK, "the replica has taken over")
        assert await bench.get(places) == {number: payload(number, 5000) for number in places}
        more = await bench.put({number: payload(number, 5000) for number in range(40, 80)})
        await bench.commit(more)
        assert await bench.get(more) == {number: payload(number, 5000) for number in more}
        await bench.controller.close()
    finally:
        cluster.kill()


async def test_a_cluster_of_valkey_keeps_chunks_and_commits(tmp_path):
    cluster = RedisCluster(tmp_path / "valkey", program=valkey())
    bench = Bench(LanController(url=cluster.url, cluster=True), tmp_path)
    await bench.open()
    chunks = {number: payload(number, 700_000) for number in range(1, 10)}
    places = await bench.put(chunks)
    await bench.commit(places)
    for node in cluster.nodes:
        node.kill()
        node.start()
    cluster.wait()
    await bench.get(places)
    await eventually(lambda: bench.controller.status is ControllerStatus.OK, "it is back")
    assert await bench.get(places) == chunks
    await bench.controller.close()
    cluster.kill()


async def test_any_node_is_enough_to_find_the_others(cluster, tmp_path):
    url = f"redis://127.0.0.1:1,127.0.0.1:{cluster.nodes[2].port}"
    bench = Bench(LanController(url=url, cluster=True), tmp_path)
    await bench.open()
    places = await bench.put({1: payload(1, 10)})
    assert (await bench.get(places))[1] == payload(1, 10)
    await bench.controller.close()


async def test_a_node_of_a_cluster_asked_as_a_single_server_is_told_in_words(cluster, tmp_path):
    # The slot of the first thing that is asked, the probe, is another's.
    bench = Bench(LanController(url=cluster.nodes[0].url), tmp_path)
    with pytest.warns(RuntimeWarning, match="pass cluster=True"):
        await bench.open()
    await bench.controller.close()


async def test_a_single_server_asked_as_a_cluster_is_told_in_words(tmp_path):
    server = RedisServer(tmp_path / "redis")
    server.start()
    bench = Bench(LanController(url=server.url, cluster=True), tmp_path)
    with pytest.warns(RuntimeWarning, match="cluster support disabled"):
        await bench.open()
    await bench.controller.close()
    server.kill()


@pytest.mark.parametrize(
    ("slots", "told"),
    [
        (b"*0\r\n", "no slot is served"),
        (b"*1\r\n*3\r\n:0\r\n:16384\r\n*2\r\n$1\r\na\r\n:1\r\n", "slots 0 to 16384"),
        (b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:99999\r\n", "port"),
        (b"*1\r\n*3\r\n:0\r\n:16383\r\n:7\r\n", "makes no sense"),
        (b"*100000\r\n" + b"*3\r\n:0\r\n:16383\r\n*2\r\n$1\r\na\r\n:1\r\n" * 100_000, "named twice"),
    ],
    ids=["empty", "beyond", "port", "number", "twice"],
)
async def test_a_table_of_slots_that_makes_no_sense_is_a_failure_that_passes(tmp_path, slots, told):
    async with ScriptedServer(lambda command: slots if command[0] == b"CLUSTER" else b"+OK\r\n") as server:
        controller = LanController(url=server.url, cluster=True, timeout=30.0)
        bench = Bench(controller, tmp_path)
        with pytest.warns(RuntimeWarning, match=told):
            await bench.open()
        assert controller.status is ControllerStatus.TEMPORARILY_UNAVAILABLE
        port = int(server.url.rpartition(":")[2])
        slots = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port
        server.answer = lambda command: {b"CLUSTER": slots, b"GET": b"$-1\r\n"}.get(command[0], b"+OK\r\n")
        await eventually(lambda: controller.status is ControllerStatus.OK, "it is used when it makes sense")
        await controller.close()
