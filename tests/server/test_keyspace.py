"""Keys: listing them while they come and go, expiry, emptying, and patterns."""

from __future__ import annotations

import asyncio
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nodes import Client

from dstorage.server import keyspace
from dstorage.server.glob import matcher
from dstorage.server.server import Limits


async def scan(client: Client, *options, between=None) -> list[bytes]:
    cursor, found = b"0", []
    while True:
        cursor, keys = await client.send("SCAN", cursor, *options)
        found += keys
        if cursor == b"0":
            return found
        if between is not None:
            await between()


async def test_a_list_of_keys_has_a_longest_length(make_node):
    node = await make_node(limits=Limits(request=10_000))
    client = await node.client()
    for number in range(200):
        await client.send("SET", b"k%0100d" % number, "v")
    assert "use SCAN" in str(await client.send("KEYS", "*"))
    assert len(await client.send("KEYS", "*1")) == 20


@pytest.mark.parametrize("count", [1, 10, 5000])
async def test_scan_lists_every_key_once(client, count):
    keys = {f"key {number}".encode() for number in range(500)}
    for key in sorted(keys)[:250]:
        await client.send("SET", key, "v")
    await client.send("DSTORAGE.COMMIT")
    for key in sorted(keys)[250:]:
        await client.send("SET", key, "v")
    found = await scan(client, "COUNT", count)
    assert len(found) == 500
    assert set(found) == keys
    assert set(await scan(client, "MATCH", "key 1*", "COUNT", count)) == {
        key for key in keys if key.startswith(b"key 1")
    }
    assert await scan(client, "TYPE", "list", "COUNT", count) == []
    assert set(await client.send("KEYS", "*")) == keys
    assert await client.send("RANDOMKEY") in keys


async def test_keys_that_are_there_all_the_time_are_listed_whatever_comes_and_goes(client):
    rng = random.Random(4)
    stays = {b"stays %d" % number for number in range(200)}
    for key in stays:
        await client.send("SET", key, "v")
    steps = 0

    async def churn():
        nonlocal steps
        steps += 1
        for _ in range(20):
            key = b"churn %d" % rng.randrange(50)
            await client.send(*(["SET", key, "v"] if rng.random() < 0.5 else ["DEL", key]))
        if steps % 5 == 0:
            await client.send("DSTORAGE.COMMIT")

    found = await scan(client, "COUNT", 7, between=churn)
    assert stays <= set(found)
    assert steps > 20


async def test_keys_whose_hashes_are_equal_are_listed_together(client, monkeypatch):
    monkeypatch.setattr(keyspace, "xxh3_64_digest", lambda key: bytes([len(key)]) * 8)
    keys = {b"x" * length + b"%d" % number for length in range(5) for number in range(9)}
    for key in keys:
        await client.send("SET", key, key)
    found = await scan(client, "COUNT", 1)
    assert sorted(found) == sorted(keys)
    for key in keys:
        assert await client.send("GET", key) == key


async def test_a_cursor_stays_good_over_a_restart(make_node):
    client = await (await make_node()).client()
    for number in range(100):
        await client.send("SET", f"k{number}", "v")
    cursor, found = await client.send("SCAN", 0, "COUNT", 50)
    client = await (await make_node()).client()
    while cursor != b"0":
        cursor, more = await client.send("SCAN", cursor, "COUNT", 50)
        found += more
    assert sorted(found) == sorted(f"k{number}".encode() for number in range(100))


async def test_what_has_expired_is_gone_also_when_nobody_asks(client):
    for number in range(50):
        await client.send("SET", f"soon{number}", "v", "EX", 100)
        await client.send("SET", f"later{number}", "v", "EX", 100)
        await client.send("PEXPIRE", f"later{number}", 10_000_000)
    await client.send("SET", "large", b"x" * 3_000_000)
    for key in ["large", *[f"soon{number}" for number in range(50)]]:
        await client.send("PEXPIRE", key, 100_000)
    await client.send("PERSIST", "soon1")
    await client.send("SET", "soon2", "without an end")
    for key in ["large", "soon0", *[f"soon{number}" for number in range(3, 50)]]:
        await client.send("PEXPIRE", key, 50)
    await asyncio.sleep(0.06)
    assert len(await client.send("KEYS", "*")) == 52
    await client.node.server.keyspace.expire_due()
    assert await client.send("DBSIZE") == 52
    assert client.node.server.keyspace.expired >= 48, "unless the moment came before the command was done"
    await client.send("DSTORAGE.COMMIT")
    assert client.node.store.stats().chunks == 52


async def test_expiry_that_is_changed_over_and_over_costs_no_more_memory(client):
    await client.send("SET", "k", "v")
    for _ in range(5000):
        client.write("PEXPIRE", "k", 10_000_000)
    for _ in range(5000):
        await client.receive()
    assert len(client.node.server.keyspace._due) < 2000


async def test_emptying_is_immediate_and_frees_everything(make_node):
    node = await make_node(budget="4M")
    client = await node.client()
    for number in range(300):
        await client.send("SET", f"k{number}", b"x" * 20_000, "EX", 1000)
    await client.send("SET", "large", b"x" * 3_000_000)
    await client.send("DSTORAGE.COMMIT")
    client.write("FLUSHDB", "ASYNC")
    client.write("DBSIZE")
    client.write("EXISTS", "k1")
    client.write("SET", "k1", "new")
    client.write("SCAN", 0)
    assert [await client.receive() for _ in range(5)] == [b"OK", 0, 0, b"OK", [b"0", [b"k1"]]]
    assert await client.send("TTL", "k1") == -1
    assert await client.send("FLUSHDB", "SYNC") == b"OK"
    await client.send("DSTORAGE.COMMIT")
    assert node.store.stats().chunks == 0
    assert dict(node.store.names()).keys() == {b"redis\0epoch"}


async def test_emptying_that_a_crash_interrupted_goes_on_at_the_next_start(make_node):
    node = await make_node()
    client = await node.client()
    for number in range(100):
        await client.send("SET", f"k{number}", "v", "EX", 1000)
    space = node.server.keyspace
    space.clear().cancel()
    await client.send("SET", "k", "v")
    node = await make_node()
    client = await node.client()
    assert await client.send("DBSIZE") == 1
    await node.server.keyspace._cleaning
    await client.send("DSTORAGE.COMMIT")
    assert node.store.stats().chunks == 1
    assert len(dict(node.store.names())) == 2


async def test_other_names_and_chunks_of_the_store_are_left_alone(client):
    with await client.node.store.create(b"mine") as handle:
        client.node.store.set_name(b"mine", handle.id)
        await client.send("SET", "k", "v")
        assert await client.send("FLUSHALL", "SYNC") == b"OK"
        assert bytes(await handle) == b"mine"
    assert client.node.store.get_name(b"mine") == handle.id


ALPHABET = b"ab-]^[\\*?"


def reference(pattern: bytes, key: bytes) -> bool:
    """Matching as redis does it, written down plainly."""
    if not pattern:
        return not key
    first = pattern[0:1]
    if first == b"*":
        return any(reference(pattern[1:], key[start:]) for start in range(len(key) + 1))
    if not key:
        return False
    if first == b"?":
        return reference(pattern[1:], key[1:])
    if first == b"[":
        rest = pattern[1:]
        negated = rest[:1] == b"^"
        rest = rest[1:] if negated else rest
        hit = False
        while rest and rest[:1] != b"]":
            if rest[:1] == b"\\" and len(rest) > 1:
                hit |= rest[1] == key[0]
                rest = rest[2:]
            elif rest[1:2] == b"-" and len(rest) > 2:
                hit |= min(rest[0], rest[2]) <= key[0] <= max(rest[0], rest[2])
                rest = rest[3:]
            else:
                hit |= rest[0] == key[0]
                rest = rest[1:]
        return hit != negated and reference(rest[1:], key[1:])
    if first == b"\\" and len(pattern) > 1:
        pattern = pattern[1:]
    return pattern[0] == key[0] and reference(pattern[1:], key[1:])


@given(
    st.lists(st.sampled_from(list(ALPHABET)), max_size=8).map(bytes),
    st.lists(st.sampled_from(list(b"ab-]^")), max_size=5).map(bytes),
)
def test_patterns_match_as_they_do_in_redis(pattern, key):
    assert bool(matcher(pattern)(key)) == reference(pattern, key)


def test_no_pattern_takes_long():
    assert not matcher(b"*a" * 200 + b"b")(b"a" * 400)
    assert matcher(re.escape(b"").join([b"*a"] * 100))(b"a" * 400)


@pytest.mark.parametrize("seed", range(5))
async def test_no_bytes_bring_the_node_down(client, seed, caplog):
    rng = random.Random(seed)
    commands = [name for name in client.node.server.table if name not in (b"quit", b"QUIT")]
    for _ in range(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.node.port)
        junk = bytearray()
        for _ in range(rng.randrange(1, 20)):
            args = [rng.choice(commands), *[rng.randbytes(rng.randrange(6)) for _ in range(rng.randrange(5))]]
            junk += b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args)
        for _ in range(rng.randrange(3)):
            junk[rng.randrange(len(junk))] = rng.choice(b"*$\r\n0123456789\x00\xff>~")
        writer.write(junk)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 60)
        writer.close()
    assert await client.send("PING") == b"PONG"
    assert not caplog.records


async def test_many_keys_that_are_not_committed_yet_are_listed_in_order_and_once(client):
    for number in range(3000):
        client.write("SET", f"k{number}", "v")
    for _ in range(3000):
        assert await client.receive() == b"OK"
    names = client.node.store.names(b"redis\0k")
    listed = [next(names) for _ in range(1500)]
    await client.send("DSTORAGE.COMMIT")
    listed += list(names)
    assert len(listed) == 3000
    assert listed == sorted(set(listed))
    await client.send("DEL", "k1", "k2")
    await client.send("SET", "k1", "again")
    assert len(await scan(client, "COUNT", 1000)) == 2999
