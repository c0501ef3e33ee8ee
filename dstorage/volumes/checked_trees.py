"""Trees of metadata that may be damaged, walked as far as they are whole, each block once."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

from dstorage.volumes.errors import DamagedMetadataError
from dstorage.volumes.reader import MAX_DEPTH, MetadataReader, Node
from dstorage.volumes.report import CheckReport, Severity


class Summary(NamedTuple):
    """What a walked subtree holds; depth 1 is a leaf, 0 that it is damaged somewhere."""

    entries: int
    first: int
    last: int
    depth: int


_DAMAGED = Summary(0, 0, 0, 0)
_ON_THE_WAY = 255

Visit = Callable[[Node], None]


class CheckedTrees:
    """Walks trees, each block once: what is shared is remembered, what is a cycle is found.

    Args:
        reader: The metadata.
        report: Where problems go.
        advance: Called with the number of blocks examined, now and then.

    Attributes:
        references: How often each block was referred to.
    """

    def __init__(self, reader: MetadataReader, report: CheckReport, advance: Callable[[int], None]) -> None:
        blocks = reader.nr_blocks
        self.references = array("Q", [0]) * blocks
        self._entries = array("Q", [0]) * blocks
        self._first = array("Q", [0]) * blocks
        self._last = array("Q", [0]) * blocks
        self._depth = bytearray(blocks)
        self._purpose = bytearray(blocks)
        self._kinds: list[str] = [""]
        self._reader = reader
        self._report = report
        self._advance = advance

    def problem(self, number: int, message: str) -> None:
        """Something is damaged, so that not all could be walked."""
        self._report.complete = False
        self._report.add(Severity.DAMAGE, number, message)

    def claim(self, number: int, kind: str) -> bool:
        """One more reference to a block; whether this is the first one.

        Raises:
            DamagedMetadataError: It is outside of the file, or in use for something else.
        """
        if not 0 <= number < len(self.references):
            raise self._reader.damaged(kind, number, f"outside of the file, which has {len(self.references)} blocks")
        self.references[number] += 1
        purpose = self._kinds.index(kind) if kind in self._kinds else len(self._kinds)
        if purpose == len(self._kinds):
            self._kinds.append(kind)
        before, self._purpose[number] = self._purpose[number], self._purpose[number] or purpose
        if before and before != purpose:
            raise self._reader.damaged(kind, number, f"it is in use as {self._kinds[before]} as well")
        if not before:
            self._advance(1)
        return not before

    def walk(self, root: int, value_size: int, kind: str, visit: Visit) -> Summary:
        """Walk a tree; `visit` gets each leaf that was not seen before, in ascending order of keys."""
        return self._subtree(root, value_size, kind, visit, 0)

    def _subtree(self, number: int, value_size: int, kind: str, visit: Visit, level: int) -> Summary:
        try:
            if not self.claim(number, kind):
                if self._depth[number] == _ON_THE_WAY:
                    raise self._reader.damaged(kind, number, "the tree contains itself")
                return Summary(self._entries[number], self._first[number], self._last[number], self._depth[number])
            if level > MAX_DEPTH:
                raise self._reader.damaged(kind, number, f"the tree has more than {MAX_DEPTH} levels")
            node = self._reader.node(number, value_size, kind, root=level == 0)
            if level and len(node.keys) < node.max_entries // 3:
                self._report.add(
                    Severity.DAMAGE,
                    number,
                    f"{kind} in block {number}: {len(node.keys)} of {node.max_entries} entries are less than a third",
                )
        except DamagedMetadataError as error:
            self.problem(error.block, str(error))
            return _DAMAGED
        if node.leaf:
            visit(node)
            keys = node.keys
            summary = Summary(len(keys), keys[0] if keys else 0, keys[-1] if keys else 0, 1)
        else:
            self._depth[number] = _ON_THE_WAY
            summary = self._children(node, value_size, kind, visit, level)
        self._entries[number], self._first[number], self._last[number], self._depth[number] = summary
        return summary

    def _children(self, node: Node, value_size: int, kind: str, visit: Visit, level: int) -> Summary:
        entries, last, depth, whole = 0, -1, 0, True
        first = node.keys[0]
        for at, (key, child) in enumerate(zip(node.keys, node.values, strict=True)):
            assert isinstance(child, int)
            found = self._subtree(child, value_size, kind, visit, level + 1)
            entries = min(entries + found.entries, 2**64 - 1)
            if not found.depth:
                whole = False
                continue
            if at == 0:
                first = found.first
            if found.first < key or found.first <= last:
                self.problem(child, f"{kind} in block {child}: its keys begin before its place in the tree")
                whole = False
            if depth and found.depth != depth:
                self.problem(child, f"{kind} in block {child}: not all leaves are at the same depth")
                whole = False
            last, depth = max(last, found.last), found.depth
        return Summary(entries, first, max(last, 0), depth + 1 if whole and depth < MAX_DEPTH else 0)
