"""All benchmarks by one command: each in a process of its own, one after the other; figures kept as JSON, pictures made from them.

    python benchmarks/run.py [--size tiny|full] [--only NAME]... [--results FOLDER]

`pip install 'dstorage[bench]'` brings the peers; what is not installed is left out and said so. The full size takes about an hour on two
cores and up to 20 GiB of disk, and wants the machine for itself. Servers (redis-server, redis-benchmark) take part where
they are installed. A benchmark that fails does not stop the others; the exit code then is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

from charts import draw

FOLDER = Path(__file__).parent

FULL: dict[str, list[list[str]]] = {
    "hot_path": [[]],
    "page_in": [[]],
    "larger_than_memory": [["--size", "64k"], ["--size", "1m"], ["--size", "4k"]],
    "miss_ratio": [[]],
    "scale": [[]],
    "producer": [[]],
    "blocking": [[]],
    "cache": [[]],
    "heat": [[]],
    "dask_spill": [[]],
    "persistent_data": [[]],
    "lan": [[]],
    "internet": [[]],
    "serve": [[]],
}
"""Benchmark -> the arguments of each of its runs in full size."""


def main() -> int:
    """Run, keep, draw; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--only", action="append", choices=sorted(FULL), metavar="NAME")
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    drawing = importlib.util.find_spec("matplotlib") is not None
    if not drawing:
        print("matplotlib is not installed: figures are kept, `benchmarks/charts.py` draws them later", flush=True)
    failed = []
    for name in options.only or FULL:
        for arguments in FULL[name] if options.size == "full" else [["--size", "tiny"]]:
            kept = options.results / ("-".join([name, *arguments[1:]]) + ".json")
            print(f"\n== {name} {' '.join(arguments)}", flush=True)
            begin = time.monotonic()
            done = subprocess.run([sys.executable, FOLDER / f"{name}.py", *arguments, "--json", kept])
            if done.returncode:
                failed.append(name)
                continue
            pictures = draw(kept, options.results) if drawing else []
            print(f"\n{time.monotonic() - begin:.0f} s; {', '.join(map(str, [kept, *pictures]))}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
