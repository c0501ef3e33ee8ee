"""Restoring: what we make of XML is what the tools make of it, and nothing is destroyed by bad input."""

from __future__ import annotations

import io
import os

import pytest
from thin_tools import POOLS, random_xml, require_tools, thin_check, thin_dump, thin_restore

from dstorage.errors import InvalidArgumentError, StoreLocked
from dstorage.volumes.check import check
from dstorage.volumes.dump import dump
from dstorage.volumes.errors import NotAPoolError, PoolFullError, XmlError
from dstorage.volumes.lock import MetadataLock
from dstorage.volumes.restore import restore

HEAD = b'<superblock uuid="" time="0" transaction="0" data_block_size="128" nr_data_blocks="100" version="2">'
DEVICE = b'<device dev_id="%d" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0">'


def dumped(path, **options):
    pieces = []
    dump(path, pieces.append, **options)
    return b"".join(pieces)


@pytest.fixture(scope="module", autouse=True)
def _tools():
    require_tools()


@pytest.fixture(params=POOLS)
def xml(request):
    return random_xml(*POOLS[request.param])


def test_the_tools_accept_what_we_restore_and_print_the_same_text(xml, tmp_path):
    path = tmp_path / "metadata"
    made = restore(io.BytesIO(xml), path)
    thin_check(path)
    assert thin_dump(path) == xml == dumped(path)
    report = check(path)
    assert not report.problems
    assert report.metadata_blocks == made.used_blocks
    assert report.mappings == made.mappings


def test_what_thin_restore_makes_reads_the_same(xml, tmp_path):
    path = tmp_path / "metadata"
    thin_restore(xml, path, 16 * 2**20)
    assert dumped(path) == xml
    assert check(path).sound


def test_the_smallest_file_that_suffices_is_enough(tmp_path):
    xml = random_xml(7, 3, 200)
    probe = restore(io.BytesIO(xml), tmp_path / "probe")
    path = tmp_path / "metadata"
    path.touch()
    os.truncate(path, (probe.used_blocks + 30) * 4096 + 17)
    restore(io.BytesIO(xml), path)
    thin_check(path)
    assert thin_dump(path) == xml


def test_more_than_one_bitmap_of_metadata_blocks(tmp_path):
    xml = random_xml(8, 3, 200)
    path = tmp_path / "metadata"
    path.touch()
    os.truncate(path, 17000 * 4096)
    restore(io.BytesIO(xml), path)
    thin_check(path)
    assert not check(path).problems


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_empty_devices_share_one_root(tmp_path, devices):
    path = tmp_path / "metadata"
    text = HEAD + b"".join(DEVICE % id + b"</device>" for id in range(devices)) + b"</superblock>"
    restore(io.BytesIO(text), path)
    thin_check(path)
    assert not check(path).problems


def test_runs_in_any_order_and_devices_in_any_order(tmp_path):
    path = tmp_path / "metadata"
    text = (
        HEAD
        + DEVICE % 9
        + b'<single_mapping origin_block="5" data_block="1" time="0"/>\n<!-- note -->'
        + b'<range_mapping length="2" time="0" data_begin="7" origin_begin="0"/></device>'
        + DEVICE % 3
        + b"</device></superblock>"
    )
    restore(io.BytesIO(text), path)
    thin_check(path)
    lines = thin_dump(path).decode().splitlines()
    assert [line.split('"')[1] for line in lines if "<device" in line] == ["3", "9"]
    assert [line.split('"')[1] for line in lines if "mapping " in line] == ["0", "5"]


BOMB = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'

REFUSED = {
    "not XML": (b"hello", "well-formed"),
    "nothing": (b"", "well-formed"),
    "cut short": (HEAD, "well-formed"),
    "entities": (BOMB + HEAD + b"</superblock>", "document type"),
    "unknown tag": (HEAD + b"<thing/></superblock>", "unknown tag 'thing'"),
    "unknown attribute": (HEAD.replace(b"time", b"tide") + b"</superblock>", "tide"),
    "missing attribute": (HEAD.replace(b'time="0" ', b"") + b"</superblock>", "no attribute time"),
    "missing uuid": (HEAD.replace(b'uuid="" ', b"") + b"</superblock>", "no attribute uuid"),
    "negative": (HEAD.replace(b'time="0"', b'time="-1"') + b"</superblock>", "time='-1'"),
    "huge number": (HEAD.replace(b'time="0"', b'time="' + b"9" * 5000 + b'"') + b"</superblock>", "a number from"),
    "device in device": (HEAD + DEVICE % 1 + DEVICE % 2 + b"</device></device></superblock>", "inside of device"),
    "mapping outside": (
        HEAD + b'<single_mapping origin_block="5" data_block="1" time="0"/></superblock>',
        "inside of superblock",
    ),
    "device id of 25 bits": (HEAD + DEVICE % 2**24 + b"</device></superblock>", "16777215"),
    "same device twice": (HEAD + (DEVICE % 1 + b"</device>") * 2 + b"</superblock>", "device 1 is there twice"),
    "data block outside": (
        HEAD + DEVICE % 1 + b'<single_mapping origin_block="5" data_block="100" time="0"/></device></superblock>',
        "only 100",
    ),
    "length 0": (
        HEAD
        + DEVICE % 1
        + b'<range_mapping origin_begin="5" data_begin="1" length="0" time="0"/></device></superblock>',
        "length 0",
    ),
    "mapped twice": (
        HEAD
        + DEVICE % 1
        + b'<single_mapping origin_block="5" data_block="1" time="0"/>' * 2
        + b"</device></superblock>",
        "virtual block 5 is mapped twice",
    ),
    "text": (HEAD + b"hello</superblock>", "hello"),
    "endless tag": (HEAD + b"<device " + b"x" * 2**20, "no tag ends|well-formed"),
    "endless comment": (HEAD + b"<!--" + b"x" * 2**20, "no tag ends"),
    "odd block size": (HEAD.replace(b"128", b"100") + b"</superblock>", "64 KiB"),
    "version 3": (HEAD.replace(b'version="2"', b'version="3"') + b"</superblock>", "version 3"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_by_name_and_leaves_the_file_as_it_was(what, tmp_path):
    text, message = REFUSED[what]
    path = tmp_path / "metadata"
    with pytest.raises((XmlError, InvalidArgumentError, NotAPoolError), match=message):
        restore(io.BytesIO(text), path)
    assert not path.exists()
    path.write_bytes(b"precious" * 1024)
    with pytest.raises((XmlError, InvalidArgumentError, NotAPoolError), match=message):
        restore(io.BytesIO(text), path, overwrite=True)
    assert path.read_bytes() == b"precious" * 1024


@pytest.mark.parametrize(
    ("blocks", "length"),
    [(2**39, 1), (2**39, 2**38), (100, 100)],
    ids=["too many data blocks", "too long a run", "too small a file"],
)
def test_a_file_too_small_is_refused_before_anything_is_written(tmp_path, blocks, length):
    path = tmp_path / "metadata"
    path.write_bytes(b"precious" * 1024)
    run = b'<range_mapping origin_begin="0" data_begin="0" length="%d" time="0"/>' % length
    text = HEAD.replace(b'"100"', b'"%d"' % blocks) + DEVICE % 1 + run + b"</device></superblock>"
    with pytest.raises(PoolFullError, match="are needed") as raised:
        restore(io.BytesIO(text), path, overwrite=True)
    assert raised.value.kind == "metadata"
    assert path.read_bytes() == b"precious" * 1024


def test_a_pool_that_is_there_is_replaced_only_when_told(tmp_path):
    path = tmp_path / "metadata"
    first, second = random_xml(1, 2, 10), random_xml(2, 2, 10)
    restore(io.BytesIO(first), path)
    with pytest.raises(InvalidArgumentError, match="overwrite"):
        restore(io.BytesIO(second), path)
    assert thin_dump(path) == first
    restore(io.BytesIO(second), path, overwrite=True)
    assert thin_dump(path) == second


def test_a_pool_in_use_is_not_overwritten(tmp_path):
    path = tmp_path / "metadata"
    restore(io.BytesIO(random_xml(1, 2, 10)), path)
    lock = MetadataLock(path)
    try:
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}") as raised:
            restore(io.BytesIO(random_xml(1, 2, 10)), path, overwrite=True)
        assert raised.value.pid == os.getpid()
    finally:
        lock.release()
