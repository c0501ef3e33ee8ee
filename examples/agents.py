"""An epidemic among agents that do not fit into memory; kill it at any time, start it again, and it goes on.

The agents are a paged array of structures, changed in place band by band. A commit every few steps makes the agents and the number of
the step durable together. A run that was killed goes on from the last commit, and ends with the same numbers as one that was
not: chance depends on nothing but the step and the band.

    python examples/agents.py world [--agents 2000000] [--steps 100] [--budget 16M]

Needs numpy: pip install 'dstorage[array]'
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

import dstorage.blocking
from dstorage import PagedArray

AGENT = np.dtype([("x", "f4"), ("y", "f4"), ("days", "u1")])
"""Place in the unit square; days since the infection, 0 for those who never had it."""
CELLS = 64
"""Who is infected is counted in so many by so many cells; that is all an agent sees of the others."""
RECOVERED_AFTER = 14
CHECKPOINT_STEPS = 10

Agents = npt.NDArray[np.void]
Counts = npt.NDArray[np.int64]


def cells(agents: Agents) -> npt.NDArray[np.intp]:
    """Number of the cell each agent is in."""
    column, row = ((agents[axis] * CELLS).astype(np.intp) % CELLS for axis in ("x", "y"))
    return row * CELLS + column


def count(agents: Agents) -> Counts:
    """Infected agents per cell."""
    ill = (agents["days"] > 0) & (agents["days"] < RECOVERED_AFTER)
    return np.bincount(cells(agents[ill]), minlength=CELLS * CELLS)


def move(agents: Agents, infected: Counts, chance: np.random.Generator) -> None:
    """One step of some agents: they walk, fall ill where others are, and get well."""
    for axis in ("x", "y"):
        agents[axis] = (agents[axis] + chance.normal(0, 0.01, len(agents))) % 1.0
    risk = 1 - 0.98 ** infected[cells(agents)]
    falls_ill = (agents["days"] == 0) & (chance.random(len(agents)) < risk)
    agents["days"] += (agents["days"] > 0) & (agents["days"] < RECOVERED_AFTER)
    agents["days"][falls_ill] = 1


def settle(store: dstorage.blocking.Store, number: int) -> None:
    """Scatter the agents, infect the first ten, and make all of it durable with one commit."""
    agents = PagedArray.create(store, "agents", number, AGENT)
    infected = np.zeros(CELLS * CELLS, np.int64)
    for band in agents.bands():
        chance = np.random.default_rng([0, *band.place])
        with agents.edit(band.slices, discard=True) as part:
            part["x"], part["y"] = chance.random((2, len(part)))
            if band.place == (0,):
                part["days"][:10] = 1
            infected += count(part)
    PagedArray.create(store, "step", (), "i8")
    PagedArray.create(store, "infected", CELLS * CELLS, "i8")[:] = infected
    store.commit()


def main() -> None:
    """Read the command line; begin, or go on where the last run was ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--agents", type=int, default=2_000_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--budget", default="16M")
    arguments = parser.parse_args()
    # commit_interval=None: a commit in the middle of a step would be one to which no run can go back.
    with dstorage.blocking.open(arguments.store, budget=arguments.budget, commit_interval=None) as store:
        if "agents" not in PagedArray.names(store):
            settle(store, arguments.agents)
        agents, step, infected = (PagedArray.open(store, name) for name in ("agents", "step", "infected"))
        if step[()]:
            print(f"going on after step {step[()]}", flush=True)
        for number in range(int(step[()]) + 1, arguments.steps + 1):
            before, after = infected[:], np.zeros(CELLS * CELLS, np.int64)
            for band in agents.bands():
                with agents.edit(band.slices) as part:
                    move(part, before, np.random.default_rng([number, *band.place]))
                    after += count(part)
            infected[:] = after
            step[()] = number
            if number % CHECKPOINT_STEPS == 0 or number == arguments.steps:
                store.commit()
                print(f"step {number}: {after.sum()} infected", flush=True)
        had_it = sum(int(np.count_nonzero(band.data["days"])) for band in agents.bands())
        print(f"{had_it} of {agents.size} agents had it")


if __name__ == "__main__":
    main()
