"""A progress bar for what takes longer than a second, on standard error, and only on a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_S = 1.0


class Meter:
    """Counts steps; draws nothing during the first second, for most commands are over by then.

    Args:
        label: What is being done.
        total: Steps in all, or None when unknown.
        unit: "items" or "bytes".
    """

    def __init__(self, label: str, total: int | None, *, unit: str = "items") -> None:
        count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            count,
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total)
        self._shown_from = time.monotonic() + PATIENCE_S
        self._shown = False
        self._terminal = self._progress.console.is_terminal

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self._progress.advance(self._task, steps)
        if not self._shown and self._terminal and time.monotonic() >= self._shown_from:
            self._shown = True
            self._progress.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._shown:
            self._progress.stop()
