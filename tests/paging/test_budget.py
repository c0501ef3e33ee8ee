"""What a memory budget may look like."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstorage import InvalidArgumentError
from dstorage.paging.budget import parse_bytes
from dstorage.paging.pressure import memory_total


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        (2**40, 2**40),
        ("999999999999999K", 999999999999999 * 1024),
        ("512", 512),
        ("512B", 512),
        ("512M", 512 * 2**20),
        (" 512 mb ", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("2k", 2048),
        ("1T", 2**40),
    ],
)
def test_sizes(value, size):
    assert parse_bytes(value) == size


@pytest.mark.parametrize(("value", "share"), [("25%", 0.25), ("100 %", 1.0), (0.5, 0.5), (1.0, 1.0), ("0.5%", 0.005)])
def test_shares_are_of_the_memory_this_process_may_use(value, share):
    assert parse_bytes(value) == pytest.approx(memory_total() * share, abs=1)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"5M",
        0,
        -1,
        0.0,
        1.5,
        -0.1,
        True,
        "",
        "M",
        "-5",
        "5X",
        "101%",
        "0%",
        "1e9",
        "5 5",
        "0",
        "0.1",
        float("nan"),
        "\uff11\uff12M",
        "9" * 16,
    ],
)
def test_what_is_no_size_is_refused_by_its_name(value):
    with pytest.raises(InvalidArgumentError, match=r"is no size: give a number of bytes"):
        parse_bytes(value)


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_refused(text):
    with contextlib.suppress(InvalidArgumentError):
        assert parse_bytes(text) >= 1
