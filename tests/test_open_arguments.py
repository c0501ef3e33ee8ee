"""What `dstorage.open` is given: what can never work is refused at once, and nothing is made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from memory_controller import MemoryController

import dstorage
import dstorage.blocking
from dstorage import InvalidArgumentError, TieringRules, TierRule


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dirty_share", [0, 1.1, math.nan, "0.5", None, True]),
        ("commit_interval", [0, -1, math.nan, "5", True, 10**400]),
        ("max_handles", [0, math.nan, math.inf, 2.5, "3", True]),
        ("max_cached", [0, math.nan, math.inf, 2.5, "3", True]),
        ("controllers", [5, ["disk"], MemoryController("m"), {"m": 1}]),
        ("policy", [5, "lru"]),
        ("pressure", [5, 1, "yes", dstorage.paging]),
        ("tiering", [5, 1, {}, TieringRules]),
        ("tiers", [5, ["disk"], {"disk": 5}, {"disk": TierRule}]),
    ],
)
def test_what_can_never_work_is_refused_at_once(tmp_path, name, values):
    for value in values:
        for open_ in (dstorage.open, dstorage.blocking.open):
            with pytest.raises(InvalidArgumentError) as refused:
                open_(tmp_path / "store", **{name: value})
            assert name in str(refused.value) or name == "policy"
    assert not (tmp_path / "store").exists()


async def test_numbers_of_any_kind_and_no_end_are_taken(tmp_path):
    options = {
        "dirty_share": np.float32(0.5),
        "commit_interval": math.inf,
        "max_handles": np.int64(100),
        "max_cached": np.uint8(100),
        "tiering": TieringRules(interval=math.inf, rate=np.int64(10**6)),
    }
    with pytest.raises(InvalidArgumentError, match=r"^path=5: give"):
        dstorage.open(5)
    async with dstorage.open(tmp_path, budget="1M", pressure=False, **options) as store:
        with await store.create(b"x") as handle:
            assert await handle == b"x"
