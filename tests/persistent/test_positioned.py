"""Files at given places, with and without the system's positioned calls; and what is no file."""

from __future__ import annotations

import os
import sys

import pytest

from dstorage.persistent import BlockFile, positioned


@pytest.fixture(params=["as here", "without positioned calls"])
def file(request, tmp_path, monkeypatch):
    if request.param != "as here":
        for name in ("pread", "pwrite", "preadv", "fdatasync", "posix_fadvise"):
            monkeypatch.delattr(os, name, raising=False)
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    with_blocks = BlockFile(path)
    yield with_blocks
    with_blocks.close()


def test_bytes_are_where_they_were_written(file):
    file.pwrite(b"b" * 4096, 4096)
    file.pwrite(memoryview(b"end\r\n\x1a"), 9994)
    file.sync()
    file.will_need(4096, 0)
    assert file.pread(4098, 4095) == b"\0" + b"b" * 4096 + b"\0"
    # Ends of lines and of text are bytes like any other.
    assert file.pread(100, 9994) == b"end\r\n\x1a"
    assert file.pread(1, 20_000) == b""
    file.truncate(12_000)
    assert file.size == 12_000


def test_what_the_system_does_in_parts_is_done_whole(tmp_path, monkeypatch):
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 3), offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, memoryview(data)[:3], offset))
    fd = positioned.open_file(tmp_path / "file", create=True)
    positioned.pwrite(fd, b"0123456789", 5)
    assert positioned.pread(fd, 20, 4) == b"\0" + b"0123456789"
    assert positioned.size_of(fd) == 15
    os.close(fd)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes in the file system there")
def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="neither a file nor a block device") as caught:
            BlockFile(path, read_only=True)
        assert caught.value.filename == str(path)
    with pytest.raises(IsADirectoryError) as directory:
        BlockFile(tmp_path, read_only=True)
    assert directory.value.filename == str(tmp_path)
