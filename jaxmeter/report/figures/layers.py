"""The figure of a layer map, in the style of `figures`."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxmeter.report.figures.style import INK, MUTED, PALETTE, RULE, set_legend, sheet
from jaxmeter.report.result import LayerRanking
from jaxmeter.report.wording import plural, shortened

MARKERS = {"activation": "o", "gradient": "s", "gradient norm": "D"}
_NAMED_LAYERS = 24  # of more, layers are points across


def layer_figure(found: LayerRanking) -> Figure:
    """Every signal's AUC with its 95% interval, layer by layer in the model's order.

    Up to 24 layers one under the other by name; more from left to right. Filled marks are those
    that cannot be told from the best (`LayerRanking.candidates`). The black box is a line.
    """
    names, candidates = list(found.layers), {id(row) for row in found.candidates}
    colours = dict(zip(MARKERS, PALETTE, strict=False))
    kinds = [kind for kind in MARKERS if any(row.signal == kind for row in found.rows)]
    upright = len(names) <= _NAMED_LAYERS
    # Every signal of a layer has its own place within the layer's.
    rows = sorted(found.rows, key=lambda row: (kinds.index(row.signal), row.variable or ""))
    at: dict[int, float] = {}
    deepest = 1
    for i, name in enumerate(names):
        mine = [row for row in rows if row.layer == name]
        deepest = max(deepest, len(mine))
        for row, shift in zip(mine, np.linspace(-0.5, 0.5, len(mine) + 2)[1:-1], strict=True):
            at[id(row)] = i + float(shift)
    height = (0.15 + 0.13 * deepest) * len(names) + 1.6 if upright else 4.6
    figure, (ax,) = sheet(1, 1, height=max(2.2, height))
    bounds = np.array([row.result.auc_interval() for row in rows])
    for row, (low, high) in zip(rows, bounds, strict=True):
        colour, place = colours[row.signal], at[id(row)]
        span = ([low, high], [place, place])
        dot = ([row.result.auc], [place])
        filled = id(row) in candidates
        ax.plot(*(span if upright else span[::-1]), color=colour, lw=2 if upright else 1,
                alpha=0.45, solid_capstyle="butt")  # fmt: skip
        ax.plot(
            *(dot if upright else dot[::-1]),
            MARKERS[row.signal],
            color=colour,
            mfc=colour if filled else "none",
            ms=5 if upright else 3.5,
            mew=1.2,
        )
    value = ax.axvline if upright else ax.axhline
    value(0.5, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    handles = [
        Line2D([], [], color=colours[kind], marker=MARKERS[kind], ms=4.5, lw=2) for kind in kinds
    ]
    labels: list[str] = list(kinds)
    low, high = float(bounds.min()), float(bounds.max())
    if found.output is not None:
        value(found.output.auc, color=INK, lw=1, ls=(0, (4, 2)), zorder=1)
        handles.append(Line2D([], [], color=INK, lw=1, ls=(0, (4, 2))))
        labels.append("black box: log-odds")
        low, high = min(low, found.output.auc), max(high, found.output.auc)
    handles.append(Line2D([], [], color=MUTED, lw=1, ls=(0, (2, 2))))
    labels.append("chance")
    if len(found.candidates) < len(rows):
        for face, label in ((MUTED, "may be the best"), ("none", "is not the best")):
            handles.append(Line2D([], [], ls="", marker="o", ms=5, mfc=face, mec=MUTED))
            labels.append(label)
    limits = max(0.0, min(0.45, low - 0.02)), min(1.02, max(0.55, high + 0.02))
    by = f", calibrated by {plural(found.models, 'reference model')}" if found.models else ""
    if upright:
        shown = [shortened(name, 28) for name in names]
        ax.set_yticks(range(len(names)), shown, parse_math=False)
        ax.set_ylim(len(names) - 0.4, -0.6)  # the input on top
        ax.set_xlim(*limits)
        ax.set_xlabel(f"AUC of one signal{by}, with its 95% interval")
        ax.tick_params(axis="y", length=0)
        for border in range(1, len(names)):
            ax.axhline(border - 0.5, color=RULE, lw=0.6)
        ax.grid(True, axis="x", color=RULE, lw=0.6, alpha=0.7)
    else:
        ticks = np.unique(np.linspace(0, len(names) - 1, 4).round().astype(int))
        ax.set_xticks(ticks, [shortened(names[i], 14) for i in ticks], parse_math=False)
        ax.set_xlim(-1, len(names))
        ax.set_ylim(*limits)
        ax.set_xlabel(f"{len(names)} layers, from input to output{by}")
        ax.set_ylabel("AUC of one signal")
        ax.grid(True, axis="y", color=RULE, lw=0.6, alpha=0.7)
    set_legend(figure, handles, labels, loc="outside upper left", ncols=3)
    return figure
