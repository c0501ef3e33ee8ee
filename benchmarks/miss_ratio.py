"""Miss ratios of the default eviction policy beside LRU, ARC, S3-FIFO, W-TinyLFU and Belady, at shares of the footprint.

python benchmarks/miss_ratio.py [--size tiny|full] [--trace FILE]... [--json FILE]

Ours is the policy object of the store behind its real interface. A trace is a CSV of `id,size` per request; it is replayed twice:
by bytes (sizes as they are, a budget in bytes) and by count (every chunk of the same size). The goal: not more than 0.01 above
the better of LRU and ARC, on each.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from charts import Chart, keep
from environment import describe
from policies import Arc, Belady, Cache, Lru, Ours, S3Fifo, WTinyLfu

SHARES = (0.01, 0.05, 0.10, 0.20, 0.40)
GOAL = 0.01
SEED = 1
TRACES = (Path(__file__).resolve().parents[2] / "shared" / "traces" / "cloudphysics.csv",)
"""Looked for beside the repository; not part of it."""

Request = tuple[int, int]


def _zipf_ranks(chunks: int, exponent: float, requests: int, rng: random.Random) -> list[int]:
    weights = [1 / rank**exponent for rank in range(1, chunks + 1)]
    return rng.choices(range(chunks), weights, k=requests)


def zipf(chunks: int, requests: int) -> list[Request]:
    """Independent requests, the n-th popular chunk with weight 1/n."""
    return [(rank, 1) for rank in _zipf_ranks(chunks, 1.0, requests, random.Random(SEED))]


def shifting_zipf(chunks: int, requests: int) -> list[Request]:
    """The same, but what is popular moves on: by a hundredth of all chunks each hundredth of the time."""
    ranks = _zipf_ranks(chunks, 1.2, requests, random.Random(SEED))
    step, span = max(1, chunks // 100), max(1, requests // 100)
    return [((rank + number // span * step) % chunks, 1) for number, rank in enumerate(ranks)]


def stencil(chunks: int, requests: int) -> list[Request]:
    """A simulation over slabs: each step needs a slab and its two neighbours; sweep after sweep, in the same direction."""
    return [((number // 3 + number % 3) % chunks, 1) for number in range(requests)]


def stencil_2d(chunks: int, requests: int) -> list[Request]:
    """The same over a plane of blocks, five-point: neighbours in the row soon, those above and below a row later."""
    width = int(chunks**0.5)
    cells = width * width
    return [((number // 5 + (0, -1, 1, -width, width)[number % 5]) % cells, 1) for number in range(requests)]


def scan(chunks: int, requests: int) -> list[Request]:
    """A hot set of a twentieth, half of all requests; a scan that touches each of the others once goes through it, over and over."""
    rng = random.Random(SEED)
    hot = chunks // 20
    scanned = 0
    found = []
    for _ in range(requests):
        if rng.random() < 0.5:
            found.append((rng.randrange(hot), 1))
        else:
            found.append((hot + scanned % (chunks - hot), 1))
            scanned += 1
    return found


GENERATED: dict[str, Callable[[int, int], list[Request]]] = {
    "zipf": zipf,
    "shifting zipf": shifting_zipf,
    "stencil": stencil,
    "stencil 2-D": stencil_2d,
    "scan through a hot set": scan,
}


def read_trace(path: Path, most: int) -> list[Request]:
    """At most `most` requests of a trace."""
    requests = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            requests.append((int(row["id"]), int(row["size"])))
            if len(requests) == most:
                break
    return requests


def workloads(paths: list[Path], size: str) -> Iterator[tuple[str, list[Request]]]:
    """Name and requests of each."""
    chunks, requests = (200, 4000) if size == "tiny" else (10_000, 200_000)
    for path in paths:
        if not path.exists():
            print(f"{path} is not there: this trace is left out (give its place by --trace)")
            continue
        trace = read_trace(path, requests)
        yield f"{path.stem}, by bytes", trace
        yield f"{path.stem}, by count", [(id, 1) for id, _ in trace]
    for name, generate in GENERATED.items():
        yield name, generate(chunks, requests)


def miss_ratio(cache: Cache, requests: list[Request]) -> float:
    """Share of the requests that were no hits."""
    access = cache.access
    return sum(not access(id, size) for id, size in requests) / len(requests)


def compare(requests: list[Request], capacity: int) -> dict[str, float]:
    """Miss ratio of each policy."""
    ids = [id for id, _ in requests]
    caches: dict[str, Cache] = {
        "dstorage": Ours(capacity),
        "LRU": Lru(capacity),
        "ARC": Arc(capacity),
        "S3-FIFO": S3Fifo(capacity),
        "W-TinyLFU": WTinyLfu(capacity),
        "Belady": Belady(capacity, ids),
    }
    return {name: miss_ratio(cache, requests) for name, cache in caches.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--trace", type=Path, action="append", help="CSV of id,size; may be given again")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    environment = describe()
    print(environment["line"])
    results: list[dict[str, Any]] = []
    for name, requests in workloads(arguments.trace or list(TRACES), arguments.size):
        footprint = sum(dict(requests).values())
        print(f"\n{name}: {len(requests):,} requests, {len(dict(requests)):,} chunks, footprint {footprint:,}")
        for share in SHARES:
            capacity = max(1, int(footprint * share))
            ratios = compare(requests, capacity)
            above = ratios["dstorage"] - min(ratios["LRU"], ratios["ARC"])
            if share == SHARES[0]:
                print(f"{'of footprint':>14}" + "".join(f"{policy:>11}" for policy in ratios) + f"{'ours above':>13}")
            print(
                f"{share:14.0%}"
                + "".join(f"{ratio:11.3f}" for ratio in ratios.values())
                + f"{above:+13.4f}{'' if above <= GOAL else '  MISSED'}",
                flush=True,
            )
            results.append(
                {"workload": name, "share": share, "capacity": capacity, "miss_ratio": ratios, "above": above}
            )
    missed = [r for r in results if r["above"] > GOAL]
    print(
        f"\nat most {GOAL} above the better of LRU and ARC in {len(results) - len(missed)} of {len(results)} comparisons"
    )
    charts = [
        Chart(
            f"Miss ratio, memory for {share:.0%} of the footprint (lower is better)",
            "share of requests",
            {
                r["workload"]: {name: [ratio] for name, ratio in r["miss_ratio"].items()}
                for r in results
                if r["share"] == share
            },
        )
        for share in SHARES
    ]
    keep(arguments.json, environment, charts, results=results)


if __name__ == "__main__":
    main()
