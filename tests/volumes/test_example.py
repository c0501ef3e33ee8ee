"""The example about forking a simulation does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "fork_simulation.py"


def test_a_simulation_is_forked_without_copying():
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), "--megabytes", "4", "--steps", "5"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "no block copied: True" in done.stdout
    assert "both are what they would have been without the fork" in done.stdout
