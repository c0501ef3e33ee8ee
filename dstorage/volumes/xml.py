"""The thin tools' XML: read as a stream of items, written byte for byte as thin_dump 0.9.0 prints it.

Memory is bounded whatever comes in: items are yielded as they are parsed, one tag may not be longer than `MAX_TAG_BYTES`, and
document types, and with them all entities, are refused.

Source: thin-provisioning-tools 0.9.0, `xml_format.cc`; observed output of thin_dump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO
from xml.parsers import expat

from dstorage.volumes.errors import XmlError
from dstorage.volumes.records import (
    MAX_DATA_BLOCK,
    MAX_DEVICE_ID,
    MAX_TIME,
    MAX_VIRTUAL_BLOCK,
    DeviceDetails,
    Run,
)

PIECE_BYTES = 64 * 1024
MAX_TAG_BYTES = 64 * 1024
"""Input without the end of a tag; the longest proper one has some 200 bytes. Comments and blanks count as well."""

U32 = 2**32 - 1
U64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class PoolItem:
    """The pool's own tag, first of all items.

    Attributes:
        data_block_size: In sectors of 512 bytes.
    """

    time: int
    transaction: int
    data_block_size: int
    nr_data_blocks: int
    flags: int = 0
    version: int = 2
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class DeviceItem:
    """A device's tag; its runs follow."""

    id: int
    details: DeviceDetails


Item = PoolItem | DeviceItem | Run

_Attributes = dict[str, str]
_POOL = {
    "uuid": None,
    "time": U32,
    "transaction": U64,
    "flags": U32,
    "version": U32,
    "data_block_size": U32,
    "nr_data_blocks": MAX_DATA_BLOCK + 1,
    "metadata_snap": U64,
}
_DEVICE = {
    "dev_id": MAX_DEVICE_ID,
    "mapped_blocks": U64,
    "transaction": U64,
    "creation_time": U32,
    "snap_time": U32,
}
_SINGLE = {"origin_block": MAX_VIRTUAL_BLOCK, "data_block": MAX_DATA_BLOCK, "time": MAX_TIME}
_RANGE = {"origin_begin": MAX_VIRTUAL_BLOCK, "data_begin": MAX_DATA_BLOCK, "length": U64, "time": MAX_TIME}
_TAGS = {"superblock": _POOL, "device": _DEVICE, "single_mapping": _SINGLE, "range_mapping": _RANGE}
_PARENTS = {"superblock": None, "device": "superblock", "single_mapping": "device", "range_mapping": "device"}
_OPTIONAL = {"flags": 0, "version": 1, "metadata_snap": 0}
"""With what thin_restore takes when they are absent."""


def parse(source: BinaryIO, advance: Callable[[int], None] | None = None) -> Iterator[Item]:
    """The items of an XML text, in its order.

    Args:
        source: Read in pieces, to its end.
        advance: Called with the number of bytes of each piece read.

    Raises:
        XmlError: The text is no XML, has another structure, or a value out of its range.
    """
    reader = _Reader()
    while piece := source.read(PIECE_BYTES):
        yield from reader.feed(piece)
        if advance is not None:
            advance(len(piece))
    yield from reader.finish()


class _Reader:
    def __init__(self) -> None:
        self._items: list[Item] = []
        self._open: list[str] = []
        self._seen_pool = False
        self._silent = 0
        parser = self._parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = self._doctype

    def feed(self, piece: bytes) -> list[Item]:
        self._silent += len(piece)
        self._parse(piece, final=False)
        if self._silent > MAX_TAG_BYTES + PIECE_BYTES:
            raise self._error(f"no tag ends within {MAX_TAG_BYTES} bytes")
        return self._take()

    def finish(self) -> list[Item]:
        self._parse(b"", final=True)
        return self._take()

    def _take(self) -> list[Item]:
        items, self._items = self._items, []
        return items

    def _parse(self, piece: bytes, *, final: bool) -> None:
        try:
            self._parser.Parse(piece, final)
        except expat.ExpatError as error:
            raise XmlError(f"not well-formed XML: {expat.ErrorString(error.code)}", line=error.lineno) from error

    def _error(self, message: str) -> XmlError:
        return XmlError(message, line=self._parser.CurrentLineNumber)

    def _doctype(self, *_: object) -> None:
        raise self._error("a document type or entity, which thin_dump never writes and which could stand for anything")

    def _text(self, text: str) -> None:
        if not text.isspace():
            raise self._error(f"text {text[:20]!r} between the tags")

    def _end(self, _tag: str) -> None:
        self._silent = 0
        self._open.pop()

    def _start(self, tag: str, attributes: _Attributes) -> None:
        self._silent = 0
        ranges = _TAGS.get(tag)
        parent = self._open[-1] if self._open else None
        if ranges is None:
            raise self._error(f"unknown tag {tag[:40]!r}; known are {', '.join(_TAGS)}")
        if parent != _PARENTS[tag]:
            where = f"inside of {parent}" if parent else "outside of everything"
            raise self._error(
                f"{tag} {where}; it belongs {'inside of ' + (_PARENTS[tag] or '') if _PARENTS[tag] else 'outermost'}"
            )
        self._open.append(tag)
        if unknown := sorted(set(attributes) - set(ranges)):
            raise self._error(f"{tag} has an unknown attribute {unknown[0][:40]!r}")
        values = {name: self._number(tag, name, attributes, most) for name, most in ranges.items() if most is not None}
        if tag == "superblock":
            if "uuid" not in attributes:
                raise self._error("superblock has no attribute uuid")
            values.pop("metadata_snap")
            self._items.append(PoolItem(**values, uuid=attributes["uuid"][:64]))
        elif tag == "device":
            details = DeviceDetails(
                values["mapped_blocks"], values["transaction"], values["creation_time"], values["snap_time"]
            )
            self._items.append(DeviceItem(values["dev_id"], details))
        elif tag == "single_mapping":
            self._items.append(Run(values["origin_block"], values["data_block"], 1, values["time"]))
        else:
            run = Run(values["origin_begin"], values["data_begin"], values["length"], values["time"])
            if not run.length:
                raise self._error("range_mapping of length 0")
            if run.virtual + run.length - 1 > MAX_VIRTUAL_BLOCK or run.data + run.length - 1 > MAX_DATA_BLOCK:
                raise self._error("range_mapping reaches beyond the last possible block")
            self._items.append(run)

    def _number(self, tag: str, name: str, attributes: _Attributes, most: int) -> int:
        text = attributes.get(name)
        if text is None:
            if name in _OPTIONAL:
                return _OPTIONAL[name]
            raise self._error(f"{tag} has no attribute {name}")
        # int() would take signs, blanks, underscores, other scripts' digits, and time quadratic in the length.
        if not (text.isascii() and text.isdigit() and len(text) <= 20) or int(text) > most:
            raise self._error(f"{tag} has {name}={text[:40]!r}: a number from 0 to {most} is wanted")
        return int(text)


class Writer:
    """Writes items as thin_dump does.

    Args:
        write: Takes pieces of text as bytes; called once per some hundred lines.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._lines: list[str] = []
        self._in_device = False

    def pool(self, item: PoolItem) -> None:
        """Open the pool; the uuid prints empty, as thin_dump has it."""
        self._line(
            f'<superblock uuid="" time="{item.time}" transaction="{item.transaction}" flags="{item.flags}" '
            f'version="{item.version}" data_block_size="{item.data_block_size}" nr_data_blocks="{item.nr_data_blocks}">'
        )

    def device(self, item: DeviceItem) -> None:
        """Open a device and close the one before."""
        self._close_device()
        self._in_device = True
        details = item.details
        self._line(
            f'  <device dev_id="{item.id}" mapped_blocks="{details.mapped_blocks}" '
            f'transaction="{details.transaction_id}" creation_time="{details.creation_time}" '
            f'snap_time="{details.snapshotted_time}">'
        )

    def run(self, run: Run) -> None:
        """One run of the open device."""
        virtual, data, length, time = run
        if length == 1:
            self._line(f'    <single_mapping origin_block="{virtual}" data_block="{data}" time="{time}"/>')
        else:
            self._line(
                f'    <range_mapping origin_begin="{virtual}" data_begin="{data}" length="{length}" time="{time}"/>'
            )

    def finish(self) -> None:
        """Close what is open and hand over the last piece."""
        self._close_device()
        self._line("</superblock>")
        self._flush()

    def _close_device(self) -> None:
        if self._in_device:
            self._line("  </device>")
            self._in_device = False

    def _line(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) >= 512:
            self._flush()

    def _flush(self) -> None:
        self._write(("\n".join(self._lines) + "\n").encode("ascii"))
        self._lines.clear()
