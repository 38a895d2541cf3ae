"""The figure of a layer map, in the style of `figures`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxmeter.metrics import Interval
from jaxmeter.report.figures.style import INK, MUTED, PALETTE, RULE, set_legend, sheet
from jaxmeter.report.result import LayerRanking, LayerSignal
from jaxmeter.report.wording import plural, shortened

MARKERS = {"activation": "o", "gradient": "s", "gradient norm": "D"}
_COLOURS: dict[str, str] = dict(zip(MARKERS, PALETTE, strict=False))
_NAMED_LAYERS = 24  # of more, layers are points across


class _Mark(NamedTuple):
    """A signal of a layer on the figure."""

    row: LayerSignal
    place: float  # along the layers: each signal has its own within its layer's
    interval: Interval
    filled: bool  # it cannot be told from the best


def layer_figure(found: LayerRanking) -> Figure:
    """Every signal's AUC with its 95% interval, layer by layer in the model's order.

    Up to 24 layers one under the other by name; more from left to right. Filled marks are those
    that cannot be told from the best (`LayerRanking.candidates`). The black box is a line.
    """
    marks = _marks(found)
    upright = len(found.layers) <= _NAMED_LAYERS
    deepest = max(1, *(sum(m.row.layer == name for m in marks) for name in found.layers))
    height = (0.15 + 0.13 * deepest) * len(found.layers) + 1.6 if upright else 4.6
    figure, (ax,) = sheet(1, 1, height=max(2.2, height))
    for mark in marks:
        _draw(ax, mark, upright)
    value = ax.axvline if upright else ax.axhline
    value(0.5, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    if found.output is not None:
        value(found.output.auc, color=INK, lw=1, ls=(0, (4, 2)), zorder=1)
    by = f", calibrated by {plural(found.models, 'reference model')}" if found.models else ""
    (_named if upright else _numbered)(ax, found.layers, by, _limits(found, marks))
    set_legend(figure, *_legend(found, marks), loc="outside upper left", ncols=3)
    return figure


# --- What is shown.


def _kinds(found: LayerRanking) -> list[str]:
    return [kind for kind in MARKERS if any(row.signal == kind for row in found.rows)]


def _marks(found: LayerRanking) -> list[_Mark]:
    """Every signal, by kind."""
    kinds, candidates = _kinds(found), {id(row) for row in found.candidates}
    rows = sorted(found.rows, key=lambda row: (kinds.index(row.signal), row.variable or ""))
    places: dict[int, float] = {}
    for i, name in enumerate(found.layers):
        mine = [row for row in rows if row.layer == name]
        for row, shift in zip(mine, np.linspace(-0.5, 0.5, len(mine) + 2)[1:-1], strict=True):
            places[id(row)] = i + float(shift)
    return [
        _Mark(row, places[id(row)], row.result.auc_interval(), id(row) in candidates)
        for row in rows
    ]


def _limits(found: LayerRanking, marks: Sequence[_Mark]) -> tuple[float, float]:
    """Of the AUC's axis: all intervals and the black box, with some room."""
    shown = [bound for mark in marks for bound in mark.interval]
    shown += [] if found.output is None else [found.output.auc]
    return max(0.0, min(0.45, min(shown) - 0.02)), min(1.02, max(0.55, max(shown) + 0.02))


# --- How it is drawn.


def _draw(ax: Axes, mark: _Mark, upright: bool) -> None:
    colour = _COLOURS[mark.row.signal]
    span = ([mark.interval.low, mark.interval.high], [mark.place, mark.place])
    dot = ([mark.row.result.auc], [mark.place])
    ax.plot(*(span if upright else span[::-1]), color=colour, lw=2 if upright else 1,
            alpha=0.45, solid_capstyle="butt")  # fmt: skip
    ax.plot(
        *(dot if upright else dot[::-1]),
        MARKERS[mark.row.signal],
        color=colour,
        mfc=colour if mark.filled else "none",
        ms=5 if upright else 3.5,
        mew=1.2,
    )


def _legend(found: LayerRanking, marks: Sequence[_Mark]) -> tuple[list[Line2D], list[str]]:
    labels: list[str] = _kinds(found)
    handles = [
        Line2D([], [], color=_COLOURS[kind], marker=MARKERS[kind], ms=4.5, lw=2) for kind in labels
    ]
    if found.output is not None:
        handles.append(Line2D([], [], color=INK, lw=1, ls=(0, (4, 2))))
        labels.append("black box: log-odds")
    handles.append(Line2D([], [], color=MUTED, lw=1, ls=(0, (2, 2))))
    labels.append("chance")
    if not all(mark.filled for mark in marks):
        for face, label in ((MUTED, "may be the best"), ("none", "is not the best")):
            handles.append(Line2D([], [], ls="", marker="o", ms=5, mfc=face, mec=MUTED))
            labels.append(label)
    return handles, labels


def _named(ax: Axes, names: Sequence[str], by: str, limits: tuple[float, float]) -> None:
    """Axes with the layers one under the other."""
    ax.set_yticks(range(len(names)), [shortened(name, 28) for name in names], parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)  # the input on top
    ax.set_xlim(*limits)
    ax.set_xlabel(f"AUC of one signal{by}, with its 95% interval")
    ax.tick_params(axis="y", length=0)
    for border in range(1, len(names)):
        ax.axhline(border - 0.5, color=RULE, lw=0.6)
    ax.grid(True, axis="x", color=RULE, lw=0.6, alpha=0.7)


def _numbered(ax: Axes, names: Sequence[str], by: str, limits: tuple[float, float]) -> None:
    """Axes with the layers from left to right, a few of them named."""
    ticks = np.unique(np.linspace(0, len(names) - 1, 4).round().astype(int))
    ax.set_xticks(ticks, [shortened(names[i], 14) for i in ticks], parse_math=False)
    ax.set_xlim(-1, len(names))
    ax.set_ylim(*limits)
    ax.set_xlabel(f"{len(names)} layers, from input to output{by}")
    ax.set_ylabel("AUC of one signal")
    ax.grid(True, axis="y", color=RULE, lw=0.6, alpha=0.7)
