"""zstd where it pays, for controllers.

It is tried on a small sample first and kept only when it saves a sixteenth, so what does not shrink costs a probe to write
and nothing to read. A frame is checked before it is believed: its content size must be the chunk's before anything is
allocated.
"""

from __future__ import annotations

import threading

import zstandard

from dstorage.controller import Buffer
from dstorage.errors import CorruptData

MAX_LEVEL = 22
DEFAULT_LEVEL = 3
"""What `compress=True` means: zstd's own default."""

SAMPLE_BYTES = 4096
PROBE_FROM = 4 * SAMPLE_BYTES
"""Smaller chunks are simply compressed: the sample would be a fair part of them."""
MIN_SAVING = 16
"""Compressed bytes are kept when they save at least 1/16: less is not worth decompressing for."""
SMALLEST = 64
"""Chunks below it are not compressed: a frame's header alone has a dozen bytes."""


class Compression:
    """Compresses and expands chunks; safe to use from several threads.

    Args:
        level: zstd level, 0 for none.
    """

    def __init__(self, level: int) -> None:
        self._level = level
        self._local = threading.local()

    def shrink(self, data: memoryview) -> Buffer | None:
        """The bytes to keep of a chunk, or None where compression does not pay."""
        if self._level == 0 or len(data) < SMALLEST:
            return None
        compressor = self._compressor()
        if len(data) >= PROBE_FROM:
            middle = len(data) // 2
            sample = compressor.compress(data[middle : middle + SAMPLE_BYTES])
            if not _pays(len(sample), SAMPLE_BYTES):
                return None
        packed = compressor.compress(data)
        return packed if _pays(len(packed), len(data)) else None

    def expand(self, id: int, size: int, packed: Buffer) -> bytes:
        """The `size` bytes of a chunk that was shrunk.

        Raises:
            CorruptData: They are not what `shrink` gave for a chunk of this size.
        """
        try:
            if zstandard.get_frame_parameters(packed).content_size == size:
                data = self._decompressor().decompress(packed, max_output_size=size)
                if len(data) == size:
                    return data
        except zstandard.ZstdError as error:
            raise CorruptData(f"chunk {id} cannot be decompressed: {error}", id=id) from error
        raise CorruptData(f"chunk {id} does not decompress to its {size} bytes", id=id)

    def _compressor(self) -> zstandard.ZstdCompressor:
        found: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if found is None:
            found = self._local.compressor = zstandard.ZstdCompressor(level=self._level)
        return found

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        found: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if found is None:
            found = self._local.decompressor = zstandard.ZstdDecompressor()
        return found


def _pays(packed: int, plain: int) -> bool:
    return packed <= plain - max(1, plain // MIN_SAVING)
