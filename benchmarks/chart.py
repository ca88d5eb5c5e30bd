"""The picture: what one call takes, and how many calls a second four threads make. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.conductor import Results
from benchmarks.contenders import Contender

OURS = "#2a6f97"
THEIRS = "#a9a9a9"
_OTHERS = ("floor", "go-go", "grpcio", "python-plugin", "pyvider-rpcplugin")


def draw(path: Path, contenders: Sequence[Contender], results: Results) -> None:
    """Write a PNG.

    :raises ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = [each for each in contenders if each.key != "in-process" and each.key in results.values.get("greet", {})]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, 0.32 * len(shown) + 1.6), sharey=True, layout="constrained"
    )
    _bars(left, shown, results, "greet", 1e6, "one call, µs (median; whiskers: fastest and slowest turn)")
    _bars(right, shown, results, "threads4", 1e-3, "4 threads, thousand calls a second")
    left.set_yticks(range(len(shown)), [each.name for each in shown])
    left.invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(axes, shown: Sequence[Contender], results: Results, metric: str, scale: float, title: str) -> None:  # type: ignore[no-untyped-def]
    for row, contender in enumerate(shown):
        values = [value * scale for value in results.values[metric].get(contender.key, ()) if value is not None]
        if not values:
            continue
        center = statistics.median(values)
        whiskers = [[center - min(values)], [max(values) - center]]
        color = THEIRS if contender.key.startswith(_OTHERS) else OURS
        axes.barh(row, center, color=color, xerr=whiskers, error_kw={"elinewidth": 0.8, "ecolor": "#444444"})
        axes.annotate(f" {center:.0f}", (center, row), va="bottom", fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
