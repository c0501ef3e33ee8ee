"""Every benchmark is one that the one command runs; and what they have in common holds."""

from __future__ import annotations

import ast
import importlib
import json
import sqlite3
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
PARTS = {"cgroup", "charts", "environment", "policies", "run"}
"""Modules that benchmarks share."""


@pytest.fixture
def load(monkeypatch):
    """Imports a script of the folder as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def tiny(name, tmp_path, *arguments):
    """Run a benchmark in its smallest size: what it printed, and what it kept."""
    kept = tmp_path / f"{name}.json"
    command = [sys.executable, FOLDER / f"{name}.py", "--size", "tiny", "--json", kept, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(kept.read_text())


def test_the_one_command_runs_them_all():
    tree = ast.parse((FOLDER / "run.py").read_text())
    (runs,) = [
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FULL"
    ]
    assert set(map(ast.literal_eval, runs.keys)) == {path.stem for path in FOLDER.glob("*.py")} - PARTS


def test_contenders_larger_than_memory_take_turns(load, monkeypatch, capsys):
    benchmark = load("larger_than_memory")
    turns = []

    def measure(name, setting):
        turns.append(name)
        if name == "sqlite3" and len(turns) > 3:
            raise RuntimeError("sqlite3 ended with exit code -9")
        return {"ops_per_s": len(turns), "peak_rss_mib": 1, "allowed_mib": 2, "write_amplification": 3}

    monkeypatch.setattr(benchmark, "measure", measure)
    names = ["dstorage", "sqlite3", "lmdb"]
    monkeypatch.setattr(sys, "argv", ["larger_than_memory.py", *(word for name in names for word in ("--only", name))])
    benchmark.main()
    # One that died has no further turn.
    assert turns == ["dstorage", "sqlite3", "lmdb", "dstorage", "sqlite3", "lmdb", "dstorage", "lmdb"]
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[0].split()[:4] == ["dstorage", "4", "1", "7"]
    assert table[1].split(maxsplit=1) == ["sqlite3", "sqlite3 ended with exit code -9"]
    assert table[2].split()[:4] == ["lmdb", "6", "3", "8"]


def test_who_is_larger_than_memory_can_be_chosen(tmp_path):
    pytest.importorskip("zict")
    names = ["dstorage, 8 tasks", "zict over LMDB"]
    printed, kept = tiny("larger_than_memory", tmp_path, *(word for name in names for word in ("--only", name)))
    assert list(kept["runs"]) == names
    assert [line for line in printed.splitlines() if line.startswith("zict over LMDB")]


def test_a_contender_that_does_not_exist_is_refused_at_once(tmp_path):
    command = [sys.executable, FOLDER / "larger_than_memory.py", "--size", "tiny", "--only", "lmbd"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "invalid choice: 'lmbd'" in done.stderr
    assert "lmdb" in done.stderr


def test_what_figures_depend_on_is_named(load):
    environment = load("environment").describe()
    for package in ("xxhash", "zstandard", "lmdb"):
        assert f"{package} {version(package)}" in environment["line"]
    assert f"sqlite {sqlite3.sqlite_version}" in environment["line"]
    assert environment["processor"]
    assert environment["processor"] in environment["line"]


def test_the_processor_is_called_as_the_system_calls_it(load, monkeypatch):
    environment = load("environment")
    monkeypatch.setattr(environment.Path, "read_text", lambda path: "processor\t: 0\nmodel name\t: Z80 at 4 MHz\n")
    assert environment.processor() == "Z80 at 4 MHz"

    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(environment.Path, "read_text", absent)
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    monkeypatch.setattr(environment.platform, "machine", lambda: "z80")
    assert environment.processor() == "z80"


def test_a_chart_shows_all_versions(tmp_path):
    pytest.importorskip("matplotlib")
    versions = [f"package-{number} 1.{number}" for number in range(40)]
    kept = tmp_path / "kept.json"
    chart = {"title": "Speed", "unit": "m/s", "groups": {"": {"dstorage": [1, 2]}}}
    kept.write_text(json.dumps({"environment": {"line": ", ".join(versions)}, "charts": [chart]}))
    subprocess.run([sys.executable, FOLDER / "charts.py", kept, "--to", tmp_path], check=True, timeout=60)
    (picture,) = tmp_path.glob("*.svg")
    # Letters are drawn as shapes; what they say stands beside them.
    drawn = picture.read_text()
    assert [one for one in ", ".join(versions).split() if one not in drawn] == []
