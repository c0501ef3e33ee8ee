"""The examples run, at small size, and show what they promise."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import dstorage

EXAMPLES = Path(__file__).parent.parent / "examples"


def command(name, *arguments):
    return [sys.executable, "-X", "dev", "-W", "error", EXAMPLES / name, *map(str, arguments)]


def run(name, *arguments, cwd):
    done = subprocess.run(command(name, *arguments), cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_heat_flows_on_a_grid_of_several_times_the_budget(tmp_path):
    out = run("heat.py", "--side", 512, "--sweeps", 5, "--budget", "1M", "--picture", "heat.png", cwd=tmp_path)
    assert "two fields of 2 MiB" in out
    # A frame of 268 x 268 around 244 x 244 at 100 degrees; none of that flows out of the plate in five sweeps.
    assert f"mean {100 * (268**2 - 244**2) / 512**2:.4f}" in out
    assert re.search(r"budget 1 MiB, peak of the process \d+ MiB", out)
    with Image.open(tmp_path / "heat.png") as picture:
        assert picture.size == (512, 512)
        assert picture.getpixel((0, 0)) != picture.getpixel((130, 256))


AGENTS = ["--agents", 30_000, "--steps", 30, "--budget", "256K"]


def test_agents_that_were_killed_go_on_and_come_to_the_same_end(tmp_path):
    expected = run("agents.py", "whole", *AGENTS, cwd=tmp_path).splitlines()
    with subprocess.Popen(
        command("agents.py", "killed", *AGENTS), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().strip() == expected[0]
        process.send_signal(signal.SIGKILL)
    first, *rest = run("agents.py", "killed", *AGENTS, cwd=tmp_path).splitlines()
    done = int(re.fullmatch(r"going on after step (\d+)", first)[1])
    assert done in (10, 20, 30)
    assert rest == expected[done // 10 :]


@pytest.mark.parametrize("calls", [3, 20 * 33 + 7], ids=["at the beginning", "in a step"])
def test_agents_that_were_interrupted_go_on_and_come_to_the_same_end(tmp_path, monkeypatch, capsys, calls):
    """Closing the store commits what an interrupt leaves behind, wherever it came."""
    expected = run("agents.py", "whole", *AGENTS, cwd=tmp_path).splitlines()
    spec = importlib.util.spec_from_file_location("agents", EXAMPLES / "agents.py")
    agents = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(agents)
    count, left = agents.count, iter(range(calls))

    def counted(part):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return count(part)

    monkeypatch.setattr(sys, "argv", ["agents.py", str(tmp_path / "interrupted"), *map(str, AGENTS)])
    monkeypatch.setattr(agents, "count", counted)
    with pytest.raises(KeyboardInterrupt):
        agents.main()
    monkeypatch.setattr(agents, "count", count)
    capsys.readouterr()
    agents.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == expected[-1]
    assert printed[0] == ("going on after step 19" if calls > 100 else expected[0])


def test_callbacks_are_told_every_status(tmp_path):
    out = run("callbacks.py", "--nodes", 40, cwd=tmp_path)
    assert "40 of 40 nodes seen" in out
    for status in ["'RESOLVED': 38", "'LOST': 1", "'DELETED': 1", "'TEMPORARILY_UNAVAILABLE': "]:
        assert status in out, out


def test_a_web_server_resizes_each_picture_once_and_keeps_more_than_its_memory(tmp_path):
    out = run("web_cache.py", "demo", "--pictures", 20, "--requests", 300, "--budget", "1M", cwd=tmp_path)
    served, resized, different = map(
        int, re.search(r"(\d+) pictures served, (\d+) resized \((\d+) different", out).groups()
    )
    assert served == 300
    assert resized == different
    assert "not there: {404}" in out
    assert float(re.search(r"the cache holds ([\d.]+) MiB with a budget of 1M", out)[1]) > 3


async def test_a_name_that_no_picture_can_have_is_not_looked_up(tmp_path):
    spec = importlib.util.spec_from_file_location("web_cache", EXAMPLES / "web_cache.py")
    web_cache = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(web_cache)
    async with dstorage.AsyncCache(tmp_path / "cache", budget="4M", pressure=False) as cache:
        server = web_cache.Server(tmp_path / "pictures", cache)
        (tmp_path / "pictures").mkdir()
        for name in ("..", ".", "a\0b", "../secret", "none.jpg", "lone \udc80"):
            with pytest.raises(KeyError):
                await server.version(name)


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_say_how_they_are_run(example):
    assert f"python examples/{example}" in (EXAMPLES / example).read_text().split('"""')[1]
