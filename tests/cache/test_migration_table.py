"""The table for those who come from diskcache or zict leaves out no call of theirs."""

from __future__ import annotations

import collections.abc
import inspect
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "come-from-diskcache.md"
INHERITED = set(dir(collections.abc.MutableMapping)) | set(dir(collections.abc.MutableSequence))


def words(part: str) -> set[str]:
    return set(re.findall(r"\w+", part))


def calls(kind: type) -> set[str]:
    """Public names that a class has of its own."""
    return {name for name in dir(kind) if not name.startswith("_") and name not in INHERITED}


def test_every_call_of_diskcache_is_in_the_table():
    diskcache = pytest.importorskip("diskcache", reason="pip install dstorage[bench]")
    known = words(PAGE.read_text().partition("## diskcache")[2].partition("## zict")[0])
    assert set(diskcache.__all__) <= known
    for kind in (diskcache.Cache, diskcache.FanoutCache, diskcache.Index, diskcache.Deque):
        assert calls(kind) <= known, kind.__name__


def test_every_call_of_zict_is_in_the_table():
    zict = pytest.importorskip("zict", reason="pip install dstorage[bench]")
    known = words(PAGE.read_text().partition("## zict")[2])
    kinds = {name: kind for name, kind in vars(zict).items() if inspect.isclass(kind)}
    assert set(kinds) <= known
    for name, kind in kinds.items():
        if name != "InsertionSortedSet":
            assert calls(kind) - set(dir(dict)) <= known, name
