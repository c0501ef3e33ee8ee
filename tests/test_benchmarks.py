"""Every benchmark is one that the one command runs."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "benchmarks"
PARTS = {"cgroup", "charts", "environment", "policies", "run"}
"""Modules that benchmarks share."""


def test_the_one_command_runs_them_all():
    tree = ast.parse((FOLDER / "run.py").read_text())
    (runs,) = [
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FULL"
    ]
    assert set(map(ast.literal_eval, runs.keys)) == {path.stem for path in FOLDER.glob("*.py")} - PARTS
