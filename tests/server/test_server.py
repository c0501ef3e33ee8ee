"""The node as its clients see it: order, limits, passwords, the end."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import time

import hiredis
import pytest

from dstorage.errors import InvalidArgumentError
from dstorage.server.server import Limits, Server


async def test_set_get_and_ping(client):
    assert await client.send("PING") == b"PONG"
    assert await client.send("SET", "k", b"\x00\r\n\xff") == b"OK"
    assert await client.send("get", "k") == b"\x00\r\n\xff"
    assert await client.send("Get", "none") is None


async def test_commands_of_one_client_are_answered_in_order_whatever_has_to_wait(client):
    for number in range(200):
        client.write("SET", f"k{number}", b"x" * 1000 + b"%d" % number)
        client.write("DSTORAGE.COMMIT")
        client.write("GET", f"k{number}")
    for number in range(200):
        assert await client.receive() == b"OK"
        assert await client.receive() == b"OK"
        assert await client.receive() == b"x" * 1000 + b"%d" % number


async def test_keys_values_and_expiry_are_there_after_a_restart(make_node):
    node = await make_node()
    client = await node.client()
    await client.send("SET", "plain", "v")
    await client.send("SET", "large", b"L" * 3_000_000)
    await client.send("SET", "expires", "v", "PXAT", 4_000_000_000_000)
    await client.send("SET", "gone", "v", "PX", 1)
    await client.send("DEL", "plain2")
    await asyncio.sleep(0.01)
    node = await make_node()
    client = await node.client()
    assert await client.send("GET", "plain") == b"v"
    assert await client.send("GET", "large") == b"L" * 3_000_000
    assert await client.send("PEXPIRETIME", "expires") == 4_000_000_000_000
    assert await client.send("GET", "gone") is None
    assert await client.send("DBSIZE") == 3


async def test_what_was_not_committed_is_gone_after_a_crash_and_the_rest_is_of_one_moment(make_node, tmp_path):
    node = await make_node()
    client = await node.client()
    await client.send("SET", "a", "1")
    await client.send("SET", "b", "1", "EX", 1000)
    assert await client.send("WAITAOF", 1, 0, 0) == [1, 0]
    await client.send("SET", "a", "2")
    await client.send("PERSIST", "b")
    await client.send("SET", "c", "2")
    # A second process sees the last commit: what a crash now would leave.
    script = (
        "import asyncio, dstorage, sys\n"
        "async def main():\n"
        "    async with dstorage.open(sys.argv[1], budget='1M', read_only=True, pressure=None) as store:\n"
        "        names = dict(store.names(b'redis\\0'))\n"
        "        print(sorted(name[:7] for name in names))\n"
        "        for name, id in names.items():\n"
        "            if name[6:7] == b'k':\n"
        "                async with store.handle(id) as data: print(name[-1:], bytes(data))\n"
        "asyncio.run(main())\n"
    )
    import subprocess
    import sys

    out = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(out.stdout.splitlines()) == [
        "[b'redis\\x00k', b'redis\\x00k', b'redis\\x00x']",
        "b'a' b'1'",
        "b'b' b'1'",
    ]


async def test_a_password_is_asked_for(make_node):
    node = await make_node(password=b"secret")
    client = await node.client()
    for command in (["GET", "k"], ["DBSIZE"], ["HELLO", 3]):
        reply = await client.send(*command)
        assert isinstance(reply, hiredis.ReplyError)
        assert str(reply).startswith("NOAUTH")
    assert str(await client.send("AUTH", "wrong")).startswith("WRONGPASS")
    assert str(await client.send("AUTH", "somebody", "secret")).startswith("WRONGPASS")
    assert await client.send("AUTH", "secret") == b"OK"
    assert await client.send("DBSIZE") == 0
    other = await node.client()
    assert await other.send("HELLO", 2, "AUTH", "default", "secret", "SETNAME", "me")
    assert await other.send("CLIENT", "GETNAME") == b"me"


async def test_what_comes_behind_the_password_is_taken_as_from_a_friend(make_node):
    node = await make_node(password=b"secret")
    client = await node.client()
    client.write("GET", "k")
    client.write("AUTH", "secret")
    client.write("MSET", *[part for number in range(20) for part in (f"k{number}", "v")])
    client.write("SET", "large", b"x" * 40_000)
    client.write("STRLEN", "large")
    assert str(await client.receive()).startswith("NOAUTH")
    assert [await client.receive() for _ in range(4)] == [b"OK", b"OK", b"OK", 40_000]
    stranger = await node.client()
    stranger.write("GET", "k")
    stranger.write("MSET", *[part for number in range(20) for part in (f"k{number}", "v")])
    assert str(await stranger.receive()).startswith("NOAUTH")
    assert str(await stranger.receive()) == "ERR Protocol error: unauthenticated multibulk length"


async def test_a_wrong_password_costs_time_and_what_follows_waits_its_turn(make_node):
    node = await make_node(password=b"secret")
    client = await node.client()
    begin = time.monotonic()
    for command in (
        ["AUTH", "a"],
        ["GET", "k"],
        ["HELLO", 3, "AUTH", "default", "b"],
        ["AUTH", "secret"],
        ["SET", "k", "v"],
        ["GET", "k"],
    ):
        client.write(*command)
    replies = [await client.receive() for _ in range(6)]
    assert time.monotonic() - begin >= 0.4
    assert [str(reply).split()[0] for reply in replies[:3]] == ["WRONGPASS", "NOAUTH", "WRONGPASS"]
    assert replies[3:] == [b"OK", b"OK", b"v"]


async def test_who_does_not_show_the_password_is_let_go(make_node, monkeypatch):
    monkeypatch.setattr("dstorage.server.server.STRANGER_S", 0)
    node = await make_node(password=b"secret")
    friend, stranger = await node.client(), await node.client()
    assert await friend.send("AUTH", "secret") == b"OK"
    with pytest.raises(ConnectionResetError):
        await stranger.receive()
    assert await friend.send("PING") == b"PONG"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_beyond_loopback_a_password_is_required(make_node, host):
    node = await make_node()
    with pytest.raises(InvalidArgumentError, match="set a password"):
        await node.server.listen([host], 0)


async def test_too_many_connections_are_refused(make_node):
    node = await make_node(limits=Limits(connections=2))
    clients = [await node.client() for _ in range(2)]
    assert await clients[1].send("PING") == b"PONG"
    third = await node.client()
    assert str(await third.receive()) == "ERR max number of clients reached"
    with pytest.raises(ConnectionResetError):
        await third.receive()
    await clients[0].close()
    while len(node.server.connections) == 2:
        await asyncio.sleep(0.01)
    fourth = await node.client()
    assert await fourth.send("PING") == b"PONG"


async def test_a_protocol_error_is_answered_after_what_came_before_and_ends_the_connection(client):
    client.write("PING")
    client.writer.write(b"*1\r\n!\r\n")
    assert await client.receive() == b"PONG"
    assert str(await client.receive()) == "ERR Protocol error: expected '$', got '!'"
    with pytest.raises(ConnectionResetError):
        await client.receive()


async def test_connections_are_listed_and_ended(client):
    other = await client.node.client()
    await other.send("CLIENT", "SETNAME", "other")
    await other.send("CLIENT", "SETINFO", "LIB-NAME", "lib")
    await other.send("MULTI")
    await other.send("PING")
    lines = (await client.send("CLIENT", "LIST")).decode().splitlines()
    facts = [dict(fact.split("=", 1) for fact in line.split()) for line in lines]
    assert facts[1]["name"] == "other"
    assert facts[1]["lib-name"] == "lib"
    assert facts[1]["multi"] == "1"
    assert (await client.send("CLIENT", "LIST", "ID", facts[1]["id"])).decode().startswith(f"id={facts[1]['id']} ")
    assert await client.send("CLIENT", "KILL", "ID", facts[1]["id"], "ADDR", "127.0.0.1:1") == 0
    assert await client.send("CLIENT", "KILL", "ID", facts[1]["id"]) == 1
    with pytest.raises(ConnectionResetError):
        await other.receive()
    assert await client.send("CLIENT", "KILL", "TYPE", "normal") == 0
    assert await client.send("CLIENT", "KILL", facts[0]["addr"]) == b"OK"
    with pytest.raises(ConnectionResetError):
        await client.receive()


@pytest.mark.parametrize("command", ["CLIENT", "CONFIG", "COMMAND", "MEMORY"])
async def test_help_that_errors_point_to_is_there(client, command):
    assert f"Try {command} HELP." in str(await client.send(command, "FOO"))
    lines = await client.send(command, "HELP")
    assert lines[0].startswith(command.encode())
    for line in lines[1::2]:
        assert "unknown subcommand" not in str(await client.send(command, line.split()[0]))


async def test_info_counts_what_a_cache_is_judged_by(client):
    await client.send("SET", "k", "v")
    for key in ("k", "k", "none"):
        await client.send("GET", key)
    await client.send("MGET", "k", "none", "none")

    async def info():
        lines = (await client.send("INFO")).decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    facts = await info()
    assert (facts["keyspace_hits"], facts["keyspace_misses"]) == ("3", "3")
    assert facts["total_commands_processed"] == "6"
    assert facts["used_memory_human"] == "1.00B"
    assert facts["maxmemory_human"] == "64.00M"
    assert await client.send("CONFIG", "RESETSTAT") == b"OK"
    assert (await info())["keyspace_hits"] == "0"


@pytest.mark.parametrize("page", [b"POST / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
async def test_a_web_page_cannot_speak_to_a_node_through_its_readers_browser(client, page, caplog):
    client.writer.write(page + b"Content-Length: 15\r\n\r\nSET k stolen\r\n")
    assert b"+OK" not in await asyncio.wait_for(client.reader.read(), 60)
    assert await (await client.node.client()).send("EXISTS", "k") == 0
    assert "speaks HTTP" in caplog.text


async def test_idle_clients_are_let_go(make_node):
    node = await make_node(limits=Limits(idle=1))
    client = await node.client()
    assert await client.send("PING") == b"PONG"
    with pytest.raises(ConnectionResetError):
        await client.receive()


async def test_what_arrives_beside_the_budget_is_limited(make_node):
    node = await make_node(limits=Limits(buffers=300_000))
    first, second = await node.client(), await node.client()
    first.writer.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$200000\r\nxx")
    while not node.server.buffered:
        await asyncio.sleep(0.01)
    second.writer.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$200000\r\nxx")
    assert "no room to receive" in str(await second.receive())
    first.writer.write(b"x" * 199_998 + b"\r\n")
    assert await first.receive() == b"OK"
    assert node.server.buffered == 0


async def test_requests_whose_end_does_not_come_are_limited_together(make_node):
    node = await make_node(limits=Limits(buffers=1_000_000))
    clients = [await node.client() for _ in range(4)]
    for client in clients:
        client.writer.write(b"*1000\r\n$4\r\nMSET\r\n" + b"$10000\r\n%b\r\n" % (b"x" * 10_000) * 40)
        await client.writer.drain()
    refusals = 0
    for client in clients:
        try:
            async with asyncio.timeout(0.5):
                refusals += "no room to receive" in str(await client.receive())
        except TimeoutError:
            pass
    assert refusals == 2
    assert 700_000 < node.server.buffered < 1_000_000
    for client in clients:
        await client.close()
    while node.server.connections:
        await asyncio.sleep(0.01)
    assert node.server.buffered == 0


async def test_clients_that_do_not_read_cannot_keep_memory_from_others(make_node, monkeypatch, caplog):
    monkeypatch.setattr("dstorage.server.server.UNREAD_S", 1)
    node = await make_node(budget="4M")
    client = await node.client()
    await client.send("SET", "large", b"x" * 20_000_000)
    idlers = []
    for number in range(24):
        idler = socket.socket()
        idler.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idler.connect(("127.0.0.1", node.port))
        idler.sendall(b"GETRANGE large %d -1\r\n" % (number * node.server.large.piece))
        idlers.append(idler)
    while sum(not one._writable for one in node.server.connections) < 14:
        await asyncio.sleep(0.01)
    # They hold all there is, until they are let go.
    assert await client.send("SET", "k", b"y" * 100_000) == b"OK"
    assert await client.send("GET", "large") == b"x" * 20_000_000
    for idler in idlers:
        idler.close()
    assert "did not read its replies" in caplog.text


async def test_a_client_that_does_not_read_is_not_read_from(client):
    await client.send("SET", "k", b"x" * 100_000)
    for _ in range(500):
        client.write("GET", "k")
    (connection,) = client.node.server.connections
    while connection._writable:
        await asyncio.sleep(0.01)
    assert connection._transport.get_write_buffer_size() < 3 * 2**20
    for _ in range(500):
        assert await client.receive() == b"x" * 100_000


async def test_what_was_asked_for_before_the_end_of_input_is_answered(client):
    await client.send("SET", "k", b"x" * 2_000_000)
    client.write("GET", "k")
    client.write("PING")
    client.writer.write_eof()
    assert await client.receive() == b"x" * 2_000_000
    assert await client.receive() == b"PONG"
    with pytest.raises(ConnectionResetError):
        await client.receive()


async def test_quit_ends_the_connection(client):
    assert await client.send("QUIT") == b"OK"
    with pytest.raises(ConnectionResetError):
        await client.receive()


async def test_the_unix_socket_is_for_this_user_only_and_goes_at_the_end(client, tmp_path):
    path = tmp_path / "node.sock"
    await client.node.server.listen_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"PING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    writer.close()
    with pytest.raises(InvalidArgumentError, match="another server answers"):
        await client.node.server.listen_unix(path)
    await client.node.server.close()
    assert not path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(client, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(InvalidArgumentError, match="no socket"):
        await client.node.server.listen_unix(path)
    assert path.read_text() == "mine"
    # Left behind by a server that was killed: it can go.
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    await client.node.server.listen_unix(stale)
    assert os.path.exists(stale)


async def test_an_empty_password_and_limits_without_sense_are_refused(make_node):
    with pytest.raises(InvalidArgumentError, match="connections=0"):
        Limits(connections=0)
    with pytest.raises(InvalidArgumentError, match="idle=0"):
        Limits(idle=0)
    with pytest.raises(InvalidArgumentError, match="empty password"):
        Server((await make_node()).store, password=b"")


def contexts(folder):
    """A certificate that signs itself, for the server, and what a client checks it with."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def encrypted(tmp_path):
    contexts(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


async def test_who_does_not_finish_the_handshake_counts_as_a_connection_and_is_let_go(make_node, tmp_path, monkeypatch):
    monkeypatch.setattr("dstorage.server.door.HANDSHAKE_S", 0.5)
    node = await make_node(tls=encrypted(tmp_path), limits=Limits(connections=5))
    trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    friend = await node.client(ssl=trust)
    assert await friend.send("PING") == b"PONG"
    strangers = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(4)]
    strangers[0][1].write(b"this is no handshake")
    assert await asyncio.wait_for(strangers[0][0].read(), 60) is not None
    one_more = await asyncio.open_connection("127.0.0.1", node.port)
    two_more = await asyncio.open_connection("127.0.0.1", node.port)
    assert await asyncio.wait_for(two_more[0].read(), 60) == b"", "there is no room for it"
    for reader, _ in [*strangers, one_more]:
        assert await asyncio.wait_for(reader.read(), 60) is not None
    another = await node.client(ssl=trust)
    assert await another.send("PING") == b"PONG"
    for _, writer in [*strangers, one_more, two_more]:
        writer.close()


async def test_tls(make_node, tmp_path):
    context = encrypted(tmp_path)
    node = await make_node(tls=context)
    client = await node.client(ssl=ssl.create_default_context(cafile=str(tmp_path / "cert.pem")))
    assert await client.send("SET", "k", b"x" * 3_000_000) == b"OK"
    assert await client.send("GET", "k") == b"x" * 3_000_000
    for _ in range(100):
        client.write("GETRANGE", "k", 0, 99_999)
    for _ in range(100):
        assert await client.receive() == b"x" * 100_000
