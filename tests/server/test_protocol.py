"""Cutting a client's stream into commands: whatever the pieces it comes in, whatever the bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dstorage.server import replies
from dstorage.server.protocol import LARGE, LargeCommand, MemorySink, ProtocolError, RequestParser, split_inline


def pack(*args: bytes) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args)


def run(stream: bytes, cuts=(), **settings) -> list[list[bytes]]:
    """All commands of a stream that comes in the pieces the cuts make, read as a connection reads it."""
    parser = RequestParser(MemorySink, **settings)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    commands = []
    for start, stop in pairwise(edges):
        piece = stream[start:stop]
        while piece:
            if parser.sink is not None:
                window = parser.sink.window()
                count = min(len(window), len(piece))
                window[:count] = piece[:count]
                parser.filled(count)
                piece = piece[count:]
            else:
                commands += parser.feed(piece)
                piece = b""
    return commands


ARGUMENT = st.binary(max_size=40) | st.sampled_from(
    [
        b"\r\n",
        b"\r\n*1\r\n$4\r\nPING\r\n",
        b"*12345",
        b"\r\n$20000\r\n",
        b"GET",
        b"*",
        b"$",
        b"\n",
        b"x" * LARGE,
        b"\r\n*" * LARGE,
    ]
)
COMMAND = st.lists(ARGUMENT, min_size=1, max_size=5)


@given(st.lists(COMMAND, max_size=8), st.lists(st.integers(0, 2**20), max_size=6))
@example([[b"SET", b"k", b"\r\n*"], [b"SET", b"k", b"v" * LARGE]], [40])
@example([[b"SET", b"k", b"\r\n"], [b"GET", b"k"]], [28])
def test_commands_come_out_whole_however_the_stream_is_cut(commands, cuts):
    stream = b"".join(pack(*command) for command in commands)
    assert [[bytes(arg) for arg in command] for command in run(stream, cuts)] == commands


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=4))
@example(b"*4294967295\r\n$1\r\na\r\n", [])
@example(b">4294967295\r\n$1\r\na\r\n", [])
@example(b"*1\r\n:5\r\n", [])
@example(b"*1\r\n*1\r\n$1\r\na\r\n", [])
@example(b"*2\r\n$3\r\nGET\r\n$-1\r\n", [])
@example(b"+OK\r\n*1\r\n$4\r\nPING\r\n", [])
@example(b"*-1\r\n*0\r\n*1\r\n$4\r\nPING\r\n", [])
@example(b"\r\n*1\r\n$4\r\nPING\r\n", [2])
def test_any_bytes_are_commands_or_a_protocol_error_and_mean_the_same_in_any_pieces(stream, cuts):
    def outcome(cuts):
        try:
            return run(stream, cuts)
        except ProtocolError as error:
            return str(error)

    whole = outcome([])
    assert outcome(cuts) == whole
    assert outcome(range(len(stream))) == whole
    assert isinstance(whole, str) or all(type(arg) is bytes and command for command in whole for arg in command)


SHAPES = st.lists(
    st.sampled_from(
        [
            b"*1\r\n",
            b"*2\r\n",
            b"$4\r\n",
            b"PING\r\n",
            b"\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"$-1\r\n",
            b"PING",
            b"$0\r\n",
            b">1\r\n",
            b":1\r\n",
            b"'",
        ]
    ),
    max_size=12,
).map(b"".join)


@given(SHAPES, st.lists(st.integers(0, 100), max_size=4))
def test_the_fast_and_the_exact_way_agree(stream, cuts):
    test_any_bytes_are_commands_or_a_protocol_error_and_mean_the_same_in_any_pieces.hypothesis.inner_test(stream, cuts)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"*abc\r\n", "invalid multibulk length"),
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "invalid bulk length"),
        (b"*" + b"1" * 70000, "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 70000, "too big bulk count string"),
        (b"x" * 70000, "too big inline request"),
        (b"GET 'a\r\n", "unbalanced quotes in request"),
        (b'GET "a"b\r\n', "unbalanced quotes in request"),
    ],
)
def test_what_makes_no_sense_is_said_as_redis_says_it(stream, error):
    with pytest.raises(ProtocolError, match=error.replace("$", r"\$")):
        run(stream)


def test_commands_before_an_error_are_not_lost():
    with pytest.raises(ProtocolError) as failure:
        run(pack(b"PING") + b"*x\r\n")
    assert failure.value.commands == [[b"PING"]]


def test_a_long_argument_is_read_straight_into_its_buffer():
    parser = RequestParser(MemorySink)
    assert parser.feed(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$20000\r\nab") == []
    assert parser.sink is not None
    window = parser.sink.window()
    assert len(window) == 19998
    window[:] = b"c" * 19998
    parser.filled(19998)
    assert parser.sink is None
    assert parser.feed(b"\r") == []
    assert parser.feed(b"\n" + pack(b"PING")) == [[b"SET", b"k", b"ab" + b"c" * 19998], [b"PING"]]
    assert parser.idle


def test_a_command_with_an_argument_from_a_sink_says_so():
    large, small = run(pack(b"SET", b"k", b"v" * 70000) + pack(b"PING"), cuts=[40000])
    assert isinstance(large, LargeCommand)
    assert not isinstance(small, LargeCommand)


def test_a_request_of_many_arguments_is_bounded():
    with pytest.raises(ProtocolError, match="more than 100000 bytes"):
        run(pack(b"MSET", *[b"x" * 10000] * 11), max_request=100000, cuts=[5])


def test_who_has_not_given_a_password_gets_little():
    with pytest.raises(ProtocolError, match="unauthenticated multibulk length"):
        run(pack(*[b"x"] * 11), trusted=False)
    with pytest.raises(ProtocolError, match="unauthenticated bulk length"):
        run(pack(b"AUTH", b"x" * 20000), trusted=False)
    assert run(pack(b"AUTH", b"secret"), trusted=False) == [[b"AUTH", b"secret"]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b"  PING \r", [b"PING"]),
        (b"set k 'a b'", [b"set", b"k", b"a b"]),
        (rb"set k 'it\'s' x", [b"set", b"k", b"it's", b"x"]),
        (rb'set k "\x41\n\"\\\q"', [b"set", b"k", b'A\n"\\q']),
        (rb'set k "\xZZ"', [b"set", b"k", b"xZZ"]),
        (b'set k ""', [b"set", b"k", b""]),
    ],
)
def test_inline_commands_have_quotes(line, words):
    assert split_inline(line) == words


def test_replies_are_encoded():
    assert replies.array([replies.bulk(b"a"), replies.integer(-1)]) == b"*2\r\n$1\r\na\r\n:-1\r\n"
    assert replies.mapping([(b"+a\r\n", b":1\r\n")], 3) == b"%1\r\n+a\r\n:1\r\n"
    assert replies.mapping([(b"+a\r\n", b":1\r\n")], 2) == b"*2\r\n+a\r\n:1\r\n"
    assert replies.error("ERR a\r\nb") == b"-ERR a  b\r\n"
