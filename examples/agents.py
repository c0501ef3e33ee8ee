"""An epidemic among agents that do not fit into memory; kill it at any time, start it again, and it goes on.

The agents are paged arrays of structures: each step reads one, band by band, and writes another; the number of the step comes last
and says which one holds. So whatever a commit finds is the state after one step, also the last commit of a run that was interrupted.
A run that was ended goes on from there, and ends with the same numbers as one that was not: chance depends on nothing but the
step and the band.

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
WORLDS = ("even", "odd")
"""The agents after steps of even numbers, and of odd ones."""

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
    """Scatter the agents and infect the first ten; whoever finds the number of the step finds all of it."""
    for name in {*WORLDS, "infected"} & set(PagedArray.names(store)):
        # An interrupted beginning left it.
        PagedArray.delete(store, name)
    agents, _ = (PagedArray.create(store, world, number, AGENT) for world in WORLDS)
    infected = PagedArray.create(store, "infected", (2, CELLS * CELLS), "i8")
    after = np.zeros(CELLS * CELLS, np.int64)
    for band in agents.bands():
        chance = np.random.default_rng([0, *band.place])
        with agents.edit(band.slices, discard=True) as part:
            part["x"], part["y"] = chance.random((2, len(part)))
            if band.place == (0,):
                part["days"][:10] = 1
            after += count(part)
    infected[0] = after
    PagedArray.create(store, "step", (), "i8")
    store.commit()


def main() -> None:
    """Read the command line; begin, or go on where the last run was ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--agents", type=int, default=2_000_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--budget", default="16M")
    arguments = parser.parse_args()
    # commit_interval=None: checkpoints are made where this program makes them, and when it ends.
    with dstorage.blocking.open(arguments.store, budget=arguments.budget, commit_interval=None) as store:
        if "step" not in PagedArray.names(store):
            settle(store, arguments.agents)
        *worlds, infected, step = (PagedArray.open(store, name) for name in (*WORLDS, "infected", "step"))
        if step[()]:
            print(f"going on after step {step[()]}", flush=True)
        for number in range(int(step[()]) + 1, arguments.steps + 1):
            agents, following = worlds[1 - number % 2], worlds[number % 2]
            before, after = infected[1 - number % 2], np.zeros(CELLS * CELLS, np.int64)
            for band in agents.bands():
                with following.edit(band.slices, discard=True) as part:
                    part[:] = band.data
                    move(part, before, np.random.default_rng([number, *band.place]))
                    after += count(part)
            infected[number % 2] = after
            step[()] = number
            if number % CHECKPOINT_STEPS == 0 or number == arguments.steps:
                store.commit()
                print(f"step {number}: {after.sum()} infected", flush=True)
        agents = worlds[int(step[()]) % 2]
        had_it = sum(int(np.count_nonzero(band.data["days"])) for band in agents.bands())
        print(f"{had_it} of {agents.size} agents had it")


if __name__ == "__main__":
    main()
