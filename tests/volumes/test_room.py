"""What `has_room` promises: the changes it was asked about, and the commit behind them, never run out of metadata blocks."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dstorage.volumes.check import check
from dstorage.volumes.errors import PoolFullError
from dstorage.volumes.metadata import ThinMetadata

BLOCK = 65536
DEVICES = 2**24

Action = tuple[str, int, int]
"""What, how many times, and on how many blocks."""

actions = st.one_of(
    st.tuples(st.just("create"), st.integers(1, 300), st.just(0)),
    st.tuples(st.just("snapshot"), st.integers(1, 2000), st.just(0)),
    st.tuples(st.sampled_from(["map", "scatter"]), st.integers(1, 200), st.sampled_from([1, 7, 256])),
    st.tuples(st.just("unmap"), st.integers(1, 50), st.sampled_from([1, 300, 2**20])),
    st.tuples(st.sampled_from(["commit", "hold", "let go"]), st.just(1), st.just(0)),
)


class Pool:
    """Changes metadata as a pool does: each change asks first, and where there is no room, commits and asks once more."""

    def __init__(self, path, metadata_blocks, data_blocks, seed, at_once):
        self.random = random.Random(seed)
        self.metadata = ThinMetadata.create(
            path, metadata_bytes=metadata_blocks * 4096, block_bytes=BLOCK, nr_data_blocks=data_blocks
        )
        self.ids = []
        self.new = iter(self.random.sample(range(DEVICES), 25_000))

        self.allocated = []
        """Blocks of writes under way: each was promised room beside those before it, and is mapped when there are `at_once`."""
        self.at_once = at_once

    def room(self, *, in_reserve=False):
        if not self.metadata.has_room(len(self.allocated) + 1, in_reserve=in_reserve):
            self.finish()
            self.metadata.commit()
            return self.metadata.has_room(1, in_reserve=in_reserve)
        return True

    def finish(self):
        for id, places in self.allocated:
            first = self.random.randrange(2**20)
            self.metadata.map(id, dict(enumerate(places, first)))
        self.allocated.clear()

    def act(self, what, times, blocks):
        if what in ("commit", "hold", "let go"):
            # As a pool does it: when nothing is half done.
            self.finish()
        for _ in range(times):
            if what in ("commit", "let go"):
                if what == "let go" and self.metadata.held_root:
                    self.metadata.release_snapshot()
                self.metadata.commit()
            elif not self.room(in_reserve=what == "unmap"):
                return
            elif what == "hold":
                self.metadata.commit()
                if not self.metadata.held_root:
                    self.metadata.take_snapshot()
                    self.metadata.commit()
            else:
                self.change(what, blocks)

    def change(self, what, blocks):
        if what == "create" or not self.ids:
            self.ids.append(next(self.new))
            self.metadata.create_device(self.ids[-1])
        elif what == "snapshot":
            # All of one device, so that a node has thousands of owners.
            self.ids.append(next(self.new))
            self.metadata.create_snapshot(self.ids[-1], self.ids[0])
        elif what == "unmap":
            id = self.random.choice(self.ids)
            mapped = next(self.metadata.mappings(id, self.random.randrange(2**20)), (0, 0))[0]
            self.metadata.unmap(id, mapped, mapped + blocks)
        else:
            id = self.ids[0] if what == "map" else self.random.choice(self.ids)
            try:
                places = self.metadata.allocate(blocks)
            except PoolFullError as error:
                assert error.kind == "data"  # noqa: PT017  # the other kind is what must not be
                self.finish()
                self.metadata.commit()
                return
            self.allocated.append((id, places))
            if len(self.allocated) == self.at_once:
                self.finish()


@given(
    metadata_blocks=st.integers(120, 1200),
    data_blocks=st.sampled_from([5000, 100_000, 600_000]),
    history=st.lists(actions, min_size=3, max_size=12),
    seed=st.integers(0, 2**32),
    at_once=st.sampled_from([1, 8]),
)
# Many devices that share all they have, then a change to each, wherever in the tree of devices it is.
@example(
    metadata_blocks=300,
    data_blocks=20_000,
    history=[("create", 1, 0), ("map", 1, 256), *[("snapshot", 2000, 0), ("commit", 1, 0)] * 6, ("scatter", 200, 1)],
    seed=0,
    at_once=1,
)
@settings(max_examples=20, deadline=None, print_blob=True)
def test_a_change_that_was_promised_room_never_runs_out(metadata_blocks, data_blocks, history, seed, at_once):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metadata"
        pool = Pool(path, metadata_blocks, data_blocks, seed, at_once)
        with pool.metadata:
            for action in history:
                pool.act(*action)
            pool.finish()
            pool.metadata.commit()
        assert check(path).sound
