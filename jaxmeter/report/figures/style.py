"""An audit's figures: pure functions from a `Report` to a matplotlib `Figure`.

Drawn with matplotlib's object interface only, so nothing is left in pyplot's global state. Colours
are Okabe and Ito's, told apart by colour-blind readers; line styles differ too.
"""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import NDArray

from jaxmeter.report.wording import shortened

BINS = 20


def bars(ax: Axes, values: NDArray, is_member: NDArray, edges: NDArray) -> None:
    """Histograms of members and of non-members over each other."""
    for kind, colour in ((is_member, MEMBER), (~is_member, NONMEMBER)):
        if not kind.any():
            continue
        shares = np.histogram(values[kind], edges)[0] / kind.sum()
        ax.stairs(shares, edges, fill=True, color=colour, alpha=0.35, lw=0)
        ax.stairs(shares, edges, color=colour, lw=1.2, baseline=None)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    ax.tick_params(labelcolor=INK)


def set_kinds(figure: Figure, is_member: NDArray) -> None:
    """The legend of `bars`, with the numbers of records."""
    members = int(is_member.sum())
    handles = [
        Patch(facecolor=colour, alpha=0.45, edgecolor=colour) for colour in (MEMBER, NONMEMBER)
    ]
    labels = [f"members ({members:,})", f"non-members ({len(is_member) - members:,})"]
    set_legend(figure, handles, labels, loc="outside upper left", ncols=2)


INK, MUTED, RULE = "#1f2328", "#656d76", "#d0d7de"
MEMBER, NONMEMBER = "#d55e00", "#0072b2"
PALETTE = (NONMEMBER, MEMBER, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
_WIDTH = 5.8  # inches: small enough that text is still legible at the width of a phone


def sheet(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of empty axes in the house's style, row by row; height in inches."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = [*figure.subplots(rows, columns, squeeze=False).flat]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(which="both", colors=MUTED, labelcolor=INK, labelsize=9)
        ax.xaxis.label.set(color=INK, size=9.5)
        ax.yaxis.label.set(color=INK, size=9.5)
        ax.patch.set_visible(False)
    return figure, axes


def set_legend(where: Any, handles: list, labels: list[str], **options: Any) -> None:
    """A legend of a figure or of axes, with the options of matplotlib's."""
    legend = where.legend(handles, labels, frameon=False, fontsize=9, labelcolor=INK, **options)
    legend.get_title().set(color=MUTED, size=8.5)
    legend._legend_box.align = "left"
    for text in legend.get_texts():
        text.set_parse_math(False)  # names come from users, and may hold a dollar sign


def set_title(ax: Axes, name: str, width: int = 28) -> None:
    """A name over axes, shortened to a width in letters."""
    title = ax.set_title(shortened(name, width), loc="left", size=9.5, color=INK)
    title.set_parse_math(False)


def finite(value: float | None) -> bool:
    """Whether there is a value that can be drawn."""
    return value is not None and math.isfinite(value)


def set_rates(ax: Axes, left: float, bottom: float) -> None:
    """Both axes of a ROC in logs, from the rates that can be resolved to 1."""
    ax.set_xscale("log", nonpositive="clip")
    ax.set_yscale("log", nonpositive="clip")
    ax.set_xlim(left, 1)
    ax.set_ylim(bottom, 1.05)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([10.0**-k for k in range(8)]))
        axis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g}%"))
        axis.set_minor_formatter(NullFormatter())
