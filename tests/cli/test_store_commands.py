"""The command line as a user of a shell sees it: output, errors, exit codes, and what is left in the store."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer.main
from dstorage_controllers.disk import DiskController
from dstorage_controllers.lan import LanController

import dstorage
from dstorage.cli import app, main

COMMAND = [sys.executable, "-c", "from dstorage.cli import main; main()"]


class Shell:
    """Runs `dstorage` in a directory of its own, with a store `store` in it; in this process, as starting one takes longer
    than most commands.
    """

    def __init__(self, directory: Path, monkeypatch, capture) -> None:
        self.directory = directory
        self._monkeypatch = monkeypatch
        self._capture = capture
        monkeypatch.chdir(directory)

    def __call__(self, *arguments: str, input: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        self._monkeypatch.setattr(sys, "argv", ["dstorage", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input)))
        with pytest.raises(SystemExit) as ended:
            main()
        done = subprocess.CompletedProcess(arguments, ended.value.code or 0, *self._capture.readouterr())
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    def json(self, *arguments: str, input: bytes = b"", code: int = 0):
        return json.loads(self(*arguments, "--json", input=input, code=code).stdout)

    def refused(self, *arguments: str, input: bytes = b"") -> str:
        """What a command says that fails; it prints no result."""
        done = self(*arguments, input=input, code=1)
        assert done.stdout == b""
        message = done.stderr.decode()
        assert message.startswith("dstorage: ")
        assert message.count("\n") == 1
        return message.removeprefix("dstorage: ").strip()


class Processes(Shell):
    """A process per command, for tests that have an event loop running, or a store open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *arguments: str, input: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run([*COMMAND, *arguments], cwd=self.directory, input=input, capture_output=True, timeout=60)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done


@pytest.fixture
def bare(tmp_path, monkeypatch, capsysbinary):
    """A shell in an empty directory."""
    return Shell(tmp_path, monkeypatch, capsysbinary)


@pytest.fixture
def shell(bare):
    bare("init", "store")
    return bare


def test_what_is_put_is_got_byte_for_byte(shell):
    big = os.urandom(3_000_000)
    (shell.directory / "big").write_bytes(big)
    (shell.directory / "empty").touch()
    stored = shell.json("put", "store", "big", "empty", "-", "--chunk", "1M", input=b"from a pipe")
    assert [entry["file"] for entry in stored] == ["big", "empty", "-"]
    ids = [[str(id) for id in entry["ids"]] for entry in stored]
    assert [len(one) for one in ids] == [3, 1, 1]
    assert shell("get", "store", *ids[0]).stdout == big
    assert shell("get", "store", *ids[1]).stdout == b""
    shell("get", "store", *ids[0], *ids[2], "-o", "copy")
    assert (shell.directory / "copy").read_bytes() == big + b"from a pipe"
    assert shell.json("stat", "store")["chunks"] == 5
    assert shell.json("stat", "store", ids[2][0])["size"] == 11
    assert [row["size"] for row in shell.json("ls", "store")] == [2**20, 2**20, 3_000_000 - 2**21, 0, 11]


def test_larger_chunks_than_the_budget_takes_are_made_smaller(shell):
    (shell.directory / "file").write_bytes(bytes(range(256)) * 40)
    (entry,) = shell.json("put", "store", "file", "--budget", "8K")
    assert len(entry["ids"]) == 5
    assert shell("get", "store", *map(str, entry["ids"]), "--budget", "8K").stdout == bytes(range(256)) * 40
    assert "no room for a chunk" in shell.refused("put", "store", "file", "--budget", "3")
    assert shell.json("stat", "store")["chunks"] == 5


@pytest.mark.parametrize("bad", ["missing", "folder"])
def test_a_put_that_fails_stores_nothing(shell, bad):
    (shell.directory / "good").write_bytes(b"x" * 100_000)
    (shell.directory / "folder").mkdir()
    assert bad in shell.refused("put", "store", "good", bad)
    assert shell.json("ls", "store") == []
    assert shell.json("controllers", "store")[0]["used"] == 0


def test_a_get_that_fails_leaves_the_file_as_it_was(shell):
    shell("put", "store", "-", input=b"hello")
    (shell.directory / "out").write_bytes(b"before")
    assert "unknown id" in shell.refused("get", "store", "1", "99", "-o", "out")
    segment = next(shell.directory.glob("store/disk/*.seg"))
    segment.write_bytes(segment.read_bytes().replace(b"hello", b"hellO"))
    assert "is lost" in shell.refused("get", "store", "1", "-o", "out")
    assert (shell.directory / "out").read_bytes() == b"before"
    assert sorted(path.name for path in shell.directory.iterdir()) == ["out", "store"]
    assert "nowhere/out" in shell.refused("get", "store", "1", "-o", "nowhere/out")


def test_damage_is_listed_and_dropped_only_when_told_to(shell):
    shell("put", "store", "-", input=b"hello")
    shell("put", "store", "-", input=b"world")
    assert shell.json("check", "store")["sound"]
    segment = next(shell.directory.glob("store/disk/*.seg"))
    segment.write_bytes(segment.read_bytes().replace(b"hello", b"hellO"))
    report = shell.json("check", "store", code=1)
    assert [problem["id"] for problem in report["problems"]] == [1]
    assert report["repaired"] == []
    assert len(shell.json("ls", "store")) == 2
    assert shell.json("check", "store", "--repair")["repaired"] == [1]
    assert [row["id"] for row in shell.json("ls", "store")] == [2]
    assert shell.json("check", "store")["sound"]
    assert shell("get", "store", "2").stdout == b"world"


async def test_chunks_move_between_controllers_and_keep_their_ids(tmp_path):
    drives = [
        DiskController("one", path=tmp_path / "one"),
        DiskController("two", path=tmp_path / "two", rank=40),
    ]
    async with dstorage.open(tmp_path / "store", budget="1M", controllers=drives) as store:
        ids = [str((await store.create(bytes([n]) * 5000)).release() or n + 1) for n in range(5)]
    shell = Processes(tmp_path)
    assert {row["controller"] for row in shell.json("ls", "store")} == {"one"}
    assert shell.json("migrate", "store", *ids[:3], "--to", "two") == {"moved": 3, "to": "two"}
    assert [row["controller"] for row in shell.json("ls", "store")] == ["two"] * 3 + ["one"] * 2
    assert shell("get", "store", *ids).stdout == b"".join(bytes([n]) * 5000 for n in range(5))
    assert "there are: 'one', 'two'" in shell.refused("migrate", "store", ids[0], "--to", "three")
    assert [row["name"] for row in shell.json("controllers", "store")] == ["one", "two"]
    assert b"two" in shell("controllers", "store").stdout


async def test_a_controller_is_drained_and_taken_away(tmp_path):
    drives = [DiskController("one", path=tmp_path / "one"), DiskController("two", path=tmp_path / "two", rank=40)]
    async with dstorage.open(tmp_path / "store", budget="1M", controllers=drives) as store:
        ids = [str((await store.create(bytes([n]) * 5000)).release() or n + 1) for n in range(5)]
    shell = Processes(tmp_path)
    assert shell.json("drain", "store", "one") == {"controller": "one", "moved": 5, "removed": False, "draining": True}
    assert {row["controller"] for row in shell.json("ls", "store")} == {"two"}
    assert [row["draining"] for row in shell.json("controllers", "store")] == [True, False]
    assert b"takes chunks again" in shell("drain", "store", "one", "--cancel").stdout
    assert "exclude" in shell.refused("drain", "store", "one", "--cancel", "--remove")
    assert b"declared removed" in shell("drain", "store", "one", "--remove").stdout
    assert shell("get", "store", *ids).stdout == b"".join(bytes([n]) * 5000 for n in range(5))
    assert shell.json("check", "store")["sound"]


async def test_a_controller_that_is_away_is_told_in_one_line_without_code(tmp_path):
    away = LanController("far", "redis://127.0.0.1:1", timeout=1)
    with pytest.warns(RuntimeWarning, match="starts without its server"):
        async with dstorage.open(tmp_path / "store", budget="1M", controllers=[DiskController("near"), away]):
            pass
    told = Processes(tmp_path)("controllers", "store").stderr.decode().splitlines()
    assert len(told) == 1
    assert told[0].startswith("dstorage: controller 'far' starts without its server")


def test_compacting_says_what_it_gave_back(shell):
    shell("put", "store", "-", input=bytes(10_000))
    assert shell.json("compact", "store").keys() == {"rewritten", "used_before", "used_after"}
    assert b"rewritten" in shell("compact", "store").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["init", "store"], "already"),
        (["init", "file"], "no directory"),
        (["ls", "nowhere"], "no store at"),
        (["ls", "file"], "no store at"),
        (["stat", "store", "7"], "unknown id"),
        (["put", "store", "file", "--controller", "tape"], "no controller 'tape'"),
        (["put", "store", "file", "--chunk", "lots"], "'lots' is no size"),
        (["demo", "nowhere"], "does not exist"),
        (["demo", "file", "--store", "store"], "already"),
    ],
    ids=" ".join,
)
def test_errors_are_one_sentence_and_exit_code_1(shell, arguments, says):
    (shell.directory / "file").write_bytes(b"x")
    assert says in shell.refused(*arguments)


@pytest.mark.parametrize(
    "arguments", [[], ["get", "store"], ["get", "store", "0"], ["sing"], ["migrate", "store", "1"]]
)
def test_wrong_calls_are_exit_code_2(shell, arguments):
    assert b"Usage" in (done := shell(*arguments, code=2)).stderr + done.stdout


def test_it_tells_its_version(shell):
    assert shell("--version").stdout.decode() == f"dstorage {dstorage.__version__}\n"


async def test_reading_commands_work_beside_the_writer_and_writing_ones_name_it(tmp_path):
    shell = Processes(tmp_path)
    async with dstorage.open(tmp_path / "store", budget="1M", commit_interval=None) as store:
        with await store.create(b"hello"):
            await store.commit()
        (await store.create(b"not committed")).release()
        assert shell("get", "store", "1").stdout == b"hello"
        assert [row["id"] for row in shell.json("ls", "store")] == [1]
        assert shell.json("check", "store")["sound"]
        assert str(os.getpid()) in shell.refused("put", "store", "-", input=b"x")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_put_stores_nothing(shell):
    child = subprocess.Popen(
        [*COMMAND, "put", "store", "-", "--chunk", "1K", "--json"],
        cwd=shell.directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    child.stdin.write(bytes(100_000))
    child.stdin.flush()
    # The lock file names the process once the store is open, and so once signals find it at work.
    while str(child.pid) not in (shell.directory / "store" / "lock").read_text():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode not in (0, 1), (out, err)
    assert out == b""
    assert b"Traceback" not in err, err.decode()
    assert shell.json("ls", "store") == []
    assert shell.json("check", "store")["sound"]


def test_a_reader_that_goes_away_is_no_error(shell):
    shell("put", "store", "-", "--chunk", "1K", input=bytes(4_000_000))
    done = subprocess.run(
        f'"{sys.executable}" -c "from dstorage.cli import main; main()" ls store | head -n 1',
        shell=True,
        cwd=shell.directory,
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == b"1\t1024\tdisk\n"
    assert done.stderr == b""


def test_the_demonstration_verifies_what_it_stored(tmp_path, bare):
    source = tmp_path / "data"
    source.mkdir()
    for number in range(40):
        (source / str(number)).write_bytes(os.urandom(500_000))
    shell = bare
    figures = shell.json("demo", "data", "--budget", "4M", "--store", "kept")
    assert figures["verified"]
    assert (figures["files"], figures["bytes"]) == (40, 20_000_000)
    assert figures["peak_chunk_memory"] <= figures["budget"] == 4 * 2**20
    assert figures["evictions"] > 0
    assert figures["edits"] > 0
    assert shell.json("check", "kept")["sound"]
    assert "4.8 times less" in shell("demo", "data", "--budget", "4M").stdout.decode()


def test_people_get_tables_and_sentences(shell):
    assert shell("put", "store", "-", input=bytes(5000)).stdout == b"1\t-\n"
    about = shell("stat", "store").stdout.decode()
    assert re.search(r"^chunks +1 *$", about, re.MULTILINE)
    assert re.search(r"^bytes +5,000 *$", about, re.MULTILINE)
    assert re.search(r"^controller +disk *$", shell("stat", "store", "1").stdout.decode(), re.MULTILINE)
    assert re.search(
        r"^ +0 +disk +disk .* OK", shell("controllers", "store").stdout.decode(), re.MULTILINE | re.IGNORECASE
    )
    assert shell("check", "store").stdout.decode().endswith("1 chunks, 5,000 bytes, 0 problems\n")
    assert shell("init", "another").stdout == b"another: a new store with controller disk\n"
    assert shell.json("init", "third") == {"store": "third", "controllers": ["disk"]}


def test_damage_is_told_to_people_with_what_was_done(shell):
    shell("put", "store", "-", input=b"hello")
    segment = next(shell.directory.glob("store/disk/*.seg"))
    segment.write_bytes(segment.read_bytes().replace(b"hello", b"hellO"))
    found = shell("check", "store", code=1).stdout.decode()
    assert "chunk 1 on disk" in found
    assert found.endswith("1 problems\n")
    assert "(dropped)" in shell("check", "store", "--repair").stdout.decode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_a_get_into_a_pipe_writes_the_pipe(shell):
    shell("put", "store", "-", input=b"hello")
    os.mkfifo(shell.directory / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((shell.directory / "pipe").read_bytes()))
    reader.start()
    shell("get", "store", "1", "-o", "pipe")
    reader.join(30)
    assert read == [b"hello"]
    assert not (shell.directory / "pipe").is_file()


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_every_command_explains_itself(bare, command):
    assert b"Usage" in bare(command, "--help").stdout
