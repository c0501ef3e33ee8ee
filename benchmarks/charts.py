"""Figures kept as JSON, and pictures made from them.

Every benchmark keeps what it measured by `keep`: the environment, its own figures, and *charts*. A chart compares contenders in
groups: ``{group: {contender: [one figure per run]}}``. Groups that are all numbers (a count of threads, of chunks) become lines, others
bars; drawn is the median, with the least and the greatest run as a whisker.

    python benchmarks/charts.py RESULT.json... [--to FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OURS = "dstorage"
"""Contenders whose name begins so are drawn in our colour."""
LINE = 150
"""Characters of the smallest print that a picture is wide."""


@dataclass(frozen=True)
class Chart:
    """One comparison.

    Attributes:
        title: What was measured, and which direction is better.
        unit: Of the figures.
        groups: Group -> contender -> one figure per run.
        logarithmic: Whether figures differ by orders of magnitude.
    """

    title: str
    unit: str
    groups: Mapping[str, Mapping[str, Sequence[float]]]
    logarithmic: bool = False


def keep(path: Path | None, environment: Mapping[str, object], charts: Sequence[Chart], **figures: object) -> None:
    """Write everything as JSON, if a path is given."""
    if path is not None:
        kept = {"environment": environment, "charts": [asdict(chart) for chart in charts], **figures}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")


def draw(result: Path, folder: Path) -> list[Path]:
    """A picture (SVG) for each chart of a kept result; returns their paths."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    kept = json.loads(result.read_text())
    drawn = []
    for number, fields in enumerate(kept["charts"]):
        chart = Chart(**fields)
        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        contenders = list(dict.fromkeys(name for group in chart.groups.values() for name in group))
        if len(chart.groups) > 1 and all(group.replace(".", "").isdigit() for group in chart.groups):
            _lines(axes, chart, contenders)
        else:
            _bars(axes, chart, contenders)
        axes.set_title(chart.title)
        axes.set_ylabel(chart.unit)
        if chart.logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
        figure.supxlabel(textwrap.fill(kept["environment"]["line"], LINE), fontsize="xx-small")
        path = folder / f"{result.stem}-{number + 1}.svg"
        figure.savefig(path)
        plt.close(figure)
        drawn.append(path)
    return drawn


def _lines(axes: Any, chart: Chart, contenders: Sequence[str]) -> None:
    for name in contenders:
        points = [(float(group), runs[name]) for group, runs in chart.groups.items() if name in runs]
        middles = [statistics.median(runs) for _, runs in points]
        axes.errorbar(
            [x for x, _ in points], middles, yerr=_whiskers([runs for _, runs in points], middles), label=name,
            marker="o", capsize=3, linewidth=2.5 if name.startswith(OURS) else 1.2,
        )  # fmt: skip
    places = [float(group) for group in chart.groups]
    if max(places) > 50 * min(places) > 0:
        axes.set_xscale("log")


def _bars(axes: Any, chart: Chart, contenders: Sequence[str]) -> None:
    width = 0.8 / len(contenders)
    for number, name in enumerate(contenders):
        places, runs = [], []
        for place, group in enumerate(chart.groups.values()):
            if name in group:
                places.append(place + (number - (len(contenders) - 1) / 2) * width)
                runs.append(group[name])
        middles = [statistics.median(one) for one in runs]
        hatch = "//" if name.startswith(OURS) else None
        bars = axes.bar(places, middles, width, yerr=_whiskers(runs, middles), label=name, capsize=2, hatch=hatch)
        axes.bar_label(
            bars, labels=[f"{middle:.3g}" for middle in middles], fontsize="xx-small", rotation=90, padding=2
        )
    axes.set_xticks(range(len(chart.groups)), list(chart.groups))


def _whiskers(runs: Sequence[Sequence[float]], middles: Sequence[float]) -> list[list[float]]:
    below = [middle - min(one) for one, middle in zip(runs, middles, strict=True)]
    above = [max(one) - middle for one, middle in zip(runs, middles, strict=True)]
    return [below, above]


def main() -> None:
    """Draw the charts of kept results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--to", type=Path, default=Path())
    parser.add_argument("--size", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for result in options.results:
        for path in draw(result, options.to):
            print(path)


if __name__ == "__main__":
    main()
