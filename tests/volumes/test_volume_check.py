"""The deep checker: what it finds, that it always ends, and that no damage becomes a wrong answer."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc

import pytest
from thin_tools import random_xml

from dstorage.errors import DStorageError
from dstorage.volumes.check import check
from dstorage.volumes.dump import dump
from dstorage.volumes.errors import DamagedMetadataError, NotAPoolError
from dstorage.volumes.layout import BITMAP_SALT, NODE_SALT, SUPERBLOCK_SALT, seal
from dstorage.volumes.reader import MetadataReader
from dstorage.volumes.report import MAX_PROBLEMS, Severity
from dstorage.volumes.restore import restore

XML = random_xml(3, 5, 300)


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "metadata"
    restore(io.BytesIO(XML), path)
    return path


def patch(path, number, at, data, salt):
    """Change some bytes of a block, and make its checksum right again: what a bug or an attacker writes."""
    content = bytearray(path.read_bytes())
    block = bytearray(content[number * 4096 : number * 4096 + 4096])
    block[at : at + len(data)] = data
    content[number * 4096 : number * 4096 + 4096] = seal(block, number, salt)
    path.write_bytes(content)


def test_a_file_is_not_the_dearer_for_being_long(pool, tmp_path):
    """A pool cannot have more than 15.9 GiB of metadata; a sparse file may say that it has any length."""
    with pool.open("r+b") as file:
        file.truncate(2**42)
    tracemalloc.start()
    report = check(pool)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.sound
    assert peak < 300 * 2**20
    # Blocks behind the map are nobody's.
    assert report.devices == 5


def root(path, name):
    with MetadataReader(path) as reader:
        superblock = reader.superblock()
        first = reader.node(superblock.mapping_root, 8, "x", root=True).values[0]
        data = struct.unpack("<QQQQ", superblock.data_map_root)
        metadata = struct.unpack("<QQQQ", superblock.metadata_map_root)
        index = reader.node(data[2], 16, "x", root=True).values[0]
        return {
            "devices": superblock.mapping_root,
            "details": superblock.details_root,
            "mappings": first,
            "leaf": reader.node(first, 8, "x", root=True).values[0],
            "data bitmap": struct.unpack_from("<Q", index)[0],
            "metadata index": metadata[2],
            "overflow": data[3],
        }[name]


def messages(path):
    report = check(path)
    assert not report.sound
    return "\n".join(problem.message for problem in report.problems)


def test_a_data_count_that_is_wrong_is_found(pool):
    bitmap = root(pool, "data bitmap")
    byte = pool.read_bytes()[bitmap * 4096 + 16 + 5]
    patch(pool, bitmap, 16 + 5, bytes([byte ^ 0b10]), BITMAP_SALT)
    assert "data block 20: counted" in messages(pool)


def test_a_wrong_number_of_mapped_blocks_is_found(pool):
    patch(pool, root(pool, "details"), 32 + 8 * 126, struct.pack("<Q", 1), NODE_SALT)
    assert "its details say 1 mappings" in messages(pool)


def test_devices_in_one_tree_only_are_found(pool):
    # The highest id in the details becomes another.
    patch(pool, root(pool, "details"), 32 + 8 * 4, struct.pack("<Q", 2**24 + 5), NODE_SALT)
    text = messages(pool)
    assert "details but no mapping tree" in text
    assert "mapping tree but no details" in text
    assert "highest possible id" in text


def test_a_tree_that_contains_itself_ends(pool):
    number = root(pool, "mappings")
    patch(pool, number, 32 + 8 * 252, struct.pack("<Q", number), NODE_SALT)
    assert "the tree contains itself" in messages(pool)
    with pytest.raises(DamagedMetadataError):
        dump(pool, lambda _: None)


def test_a_block_used_for_two_purposes_is_found(pool):
    patch(pool, root(pool, "devices"), 32 + 8 * 252, struct.pack("<Q", root(pool, "details")), NODE_SALT)
    assert "in use as device details as well" in messages(pool)


def test_the_rest_of_a_damaged_tree_is_walked(pool):
    whole = check(pool).mappings
    content = bytearray(pool.read_bytes())
    content[root(pool, "leaf") * 4096 + 100] ^= 1
    pool.write_bytes(content)
    report = check(pool)
    assert not report.complete
    assert whole - 252 <= report.mappings < whole
    assert [problem.severity for problem in report.problems] == [Severity.DAMAGE]
    assert "wrong checksum" in report.problems[0].message


def test_all_problems_are_counted_and_a_bounded_number_kept(pool):
    bitmap = root(pool, "data bitmap")
    patch(pool, bitmap, 16, bytes(4080), BITMAP_SALT)
    report = check(pool)
    assert len(report.problems) == MAX_PROBLEMS
    assert report.more > 1000


@pytest.mark.parametrize("blocks", [0, 1, 2**40, 2**64 - 1])
def test_a_superblock_that_claims_any_number_of_data_blocks(pool, blocks):
    patch(pool, 0, 64, struct.pack("<Q", blocks), SUPERBLOCK_SALT)
    tracemalloc.start()
    try:
        assert not check(pool).sound
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_what_is_no_pool_is_said_to_be_none(tmp_path):
    with pytest.raises(NotAPoolError, match="cannot be read"):
        check(tmp_path / "missing")
    for content, message in [(b"", "shorter"), (bytes(8192), "is empty")]:
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(NotAPoolError, match=message):
            check(tmp_path / "file")
    (tmp_path / "file").write_bytes(random.Random(1).randbytes(65536))
    assert not check(tmp_path / "file").sound


def attempt(action, path):
    """The answer, or the error, which has to name the file."""
    try:
        return action(path)
    except DStorageError as error:
        named = error
    assert str(path) in str(named)
    return named


def text_of(path):
    pieces = []
    dump(path, pieces.append)
    return b"".join(pieces)


@pytest.mark.parametrize("seed", range(4))
def test_any_single_byte_changed_is_harmless_or_a_clear_error(pool, seed):
    whole = pool.read_bytes()
    used = check(pool).metadata_blocks
    chance = random.Random(seed)
    for _ in range(60):
        at = chance.randrange(used * 4096)
        content = bytearray(whole)
        content[at] ^= 1 << chance.randrange(8)
        pool.write_bytes(content)
        answer = attempt(text_of, pool)
        assert answer == XML or isinstance(answer, DStorageError)
        report = attempt(check, pool)
        assert isinstance(report, DStorageError) or not report.sound, f"byte {at} changed unnoticed"


@pytest.mark.parametrize("seed", range(4))
def test_changes_under_a_right_checksum_never_hang_or_crash(pool, seed):
    """The same, by somebody who mends the checksums: the answer may differ, but there is one."""
    whole = pool.read_bytes()
    used = check(pool).metadata_blocks
    chance = random.Random(seed)
    nodes = [number for number in range(1, used) if struct.unpack_from("<I", whole, number * 4096 + 4)[0] in (1, 2)]
    for _ in range(40):
        number = chance.choice([0, *nodes])
        at = chance.choice([chance.randrange(4, 400), chance.randrange(4, 4096)])
        data = chance.choice([bytes([chance.randrange(256)]), b"\xff" * 8, struct.pack("<Q", chance.randrange(used))])
        pool.write_bytes(whole)
        patch(pool, number, min(at, 4096 - len(data)), data, NODE_SALT if number else SUPERBLOCK_SALT)
        for action in (text_of, check):
            attempt(action, pool)
