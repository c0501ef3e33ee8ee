"""`dstorage volume` as a user of a shell sees it, beside the thin tools."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dstorage.cli import main

sys.path.insert(0, str(Path(__file__).parent.parent / "volumes"))
from thin_tools import random_xml, require_tools, thin_check, thin_dump, thin_restore


@pytest.fixture(autouse=True, scope="module")
def _tools():
    require_tools()


class Shell:
    """Runs `dstorage volume` in a directory of its own; in this process, as starting one takes longer than all it does."""

    def __init__(self, monkeypatch, capture):
        self.monkeypatch = monkeypatch
        self.capture = capture

    def __call__(self, *arguments, input=b"", code=0):
        self.monkeypatch.setattr(sys, "argv", ["dstorage", "volume", *map(str, arguments)])
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input)))
        with pytest.raises(SystemExit) as ended:
            main()
        output, self.errors = self.capture.readouterr()
        assert (ended.value.code or 0) == code, (output, self.errors)
        return output

    def json(self, *arguments, input=b"", code=0):
        return json.loads(self(*arguments, "--json", input=input, code=code))

    def refused(self, *arguments):
        assert self(*arguments, code=1) == b""
        message = self.errors.decode()
        assert message.startswith("dstorage: ")
        assert message.count("\n") == 1
        return message


@pytest.fixture
def shell(tmp_path, monkeypatch, capsysbinary):
    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capsysbinary)


def test_a_pool_from_the_first_byte_to_the_last_snapshot(shell, tmp_path):
    shell("create", "meta", "data", "--size", "10M", "--id", 1)
    thin_check(tmp_path / "meta")
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    assert shell.json("write", "meta", "data", 1, "file", "--offset", "1M") == {
        "id": 1,
        "offset": 2**20,
        "bytes": 300_000,
    }
    assert shell.json("snapshot", "meta", 1, 2) == {"id": 2, "origin": 1, "mapped_blocks": 5}
    shell("write", "meta", "data", 1, "--offset", "1M", input=b"changed")
    assert shell("read", "meta", "data", 2, "--offset", "1M", "--length", "300000") == content
    assert shell("read", "meta", "data", 1, "--offset", "1M", "--length", "10") == b"changed" + content[7:10]
    whole = shell("read", "meta", "data", 2)
    assert whole == bytes(2**20) + content + bytes(5 * 65536 - 300_000)
    listed = shell.json("ls", "meta")
    assert [row["id"] for row in listed["volumes"]] == [1, 2]
    assert (listed["data_blocks"], listed["used_data_blocks"], listed["free_data_blocks"]) == (160, 6, 160 - 6)
    assert listed["metadata_blocks"] == 4096
    assert 10 < listed["used_metadata_blocks"] < 40
    assert b"\n6 of 160 data blocks of 65,536 bytes used, 154 free; " in shell("ls", "meta")
    assert shell("ls", "meta").startswith(b"1\t327680\t0\t1\n2\t")
    assert b"sound" in shell("check", "meta")
    assert shell("dump", "meta") == thin_dump(tmp_path / "meta")
    shell("rm", "meta", 1, 2)
    assert shell.json("ls", "meta")["free_data_blocks"] == 160
    thin_check(tmp_path / "meta")


def test_dump_and_restore_are_those_of_the_tools(shell, tmp_path):
    xml = random_xml(7, 5, 200)
    (tmp_path / "pool.xml").write_bytes(xml)
    shell("restore", "pool.xml", "ours")
    thin_check(tmp_path / "ours")
    thin_restore(xml, tmp_path / "theirs")
    assert shell("dump", "ours") == shell("dump", "theirs") == thin_dump(tmp_path / "ours") == xml
    shell("dump", "ours", "-o", "out.xml")
    assert (tmp_path / "out.xml").read_bytes() == xml
    assert shell.json("restore", "-", "third", input=xml)["devices"] == 5
    assert "holds" in shell.refused("restore", "pool.xml", "ours")
    shell("restore", "pool.xml", "ours", "--force")


def test_nothing_is_written_over_what_is_read(shell, tmp_path):
    shell("create", "meta", "data", "--size", "10M", "--id", 1)
    shell("write", "meta", "data", 1, input=b"kept")
    os.link(tmp_path / "meta", tmp_path / "other-name")
    before = (tmp_path / "meta").read_bytes()
    assert "very file" in shell.refused("dump", "meta", "-o", "meta")
    assert "very file" in shell.refused("dump", "meta", "-o", "other-name")
    for output in ("meta", "data"):
        assert "very file" in shell.refused("read", "meta", "data", 1, "-o", output)
    assert (tmp_path / "meta").read_bytes() == before
    assert shell("read", "meta", "data", 1, "--length", 4) == b"kept"


def test_offsets_are_exact_and_shares_of_memory_are_none(shell):
    shell("create", "meta", "data", "--size", "10M", "--id", 1)
    place = 2**53 + 1
    shell("write", "meta", "data", 1, "--offset", place, input=b"here")
    assert shell("read", "meta", "data", 1, "--offset", place, "--length", 4) == b"here"
    for offset in ("10%", "0.5", "-1", "0x10", "9" * 5000):
        shell.refused("write", "meta", "data", 1, "--offset", offset)
    shell.refused("create", "meta2", "data2", "--size", "10%")


def test_a_pool_that_cannot_be_made_leaves_nothing(shell, tmp_path):
    assert "--size" in shell.refused("create", "meta", "data")
    shell.refused("create", "meta", "data", "--size", "1G", "--block", "3K")
    shell.refused("create", "meta", "data", "--size", "1G", "--metadata-size", "100G")
    shell.refused("create", "no-directory/meta", "data", "--size", "1G")
    assert list(tmp_path.iterdir()) == []


def test_other_kinds_of_files_are_named(shell, tmp_path):
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("directory", "pipe"):
        for command in ("ls", "check", "dump"):
            assert name in shell.refused(command, name)


def test_damage_is_an_exit_code(shell, tmp_path):
    shell("create", "meta", "data", "--size", "10M", "--id", 1)
    with (tmp_path / "meta").open("r+b") as file:
        file.seek(3 * 4096 + 100)
        file.write(b"!")
    assert b"damaged" in shell("check", "meta", code=1)
    assert shell.json("check", "meta", code=1)["sound"] is False


def test_mistakes_are_one_line_and_change_nothing(shell, tmp_path):
    assert "not there" in shell.refused("ls", "meta") + shell.refused("snapshot", "meta", 1, 2)
    shell("create", "meta", "data", "--size", "10M")
    before = (tmp_path / "meta").read_bytes()
    assert "there already" in shell.refused("create", "meta", "data")
    assert "has no device 5" in shell.refused("rm", "meta", 5)
    assert "has no device 5" in shell.refused("snapshot", "meta", 5, 6)
    assert "has no device 5" in shell.refused("read", "meta", "data", 5)
    assert "has no device 5" in shell.refused("write", "meta", "data", 5)
    shell("create", "meta", "data", "--id", 2**24, code=2)
    assert (tmp_path / "meta").read_bytes() == before
    shell("create", "meta", "data", "--id", 1)
    shell("create", "meta", "data", "--id", 2)
    # All or none.
    assert "has no device 5" in shell.refused("rm", "meta", 1, 5)
    assert [row["id"] for row in shell.json("ls", "meta")["volumes"]] == [1, 2]


def test_without_its_packages_the_command_says_what_to_install(tmp_path):
    script = (
        "import sys; sys.modules['google_crc32c'] = None; sys.argv[1:] = ['volume', 'ls', 'meta'];"
        "from dstorage.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"pip install 'dstorage[persistent]'" in done.stderr


def test_what_was_never_written_is_a_hole_in_the_file_that_is_read_to(shell, tmp_path):
    shell("create", "meta", "data", "--size", "10M", "--id", 1)
    shell("write", "meta", "data", 1, "--offset", "1G", input=b"far away")
    shell("write", "meta", "data", 1, "--offset", "100000", input=b"near")
    (tmp_path / "file").write_bytes(b"something else")
    shell("read", "meta", "data", 1, "-o", "file")
    found = (tmp_path / "file").stat()
    assert found.st_size == 2**30 + 65536
    assert found.st_blocks * 512 < 2**20
    with (tmp_path / "file").open("rb") as file:
        assert file.read(100_004) == bytes(100_000) + b"near"
        file.seek(2**30)
        assert file.read() == b"far away" + bytes(65528)
    # A part that begins and ends within holes.
    shell("read", "meta", "data", 1, "-o", "part", "--offset", "99999", "--length", "200000")
    part = (tmp_path / "part").read_bytes()
    assert part == b"\0near" + bytes(200_000 - 5)
    assert part == shell("read", "meta", "data", 1, "--offset", "99999", "--length", "200000")
    shell("read", "meta", "data", 1, "-o", "none", "--offset", "2G", "--length", "3M")
    assert (tmp_path / "none").stat().st_size == 3 * 2**20
    assert (tmp_path / "none").stat().st_blocks == 0
    shell("read", "meta", "data", 1, "-o", "/dev/null", "--length", "200000")
    shell("read", "meta", "data", 1, "-o", "behind", "--offset", "2G")
    assert (tmp_path / "behind").stat().st_size == 0
