"""Norms of gradients by label, of members and of non-members."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from jaxmeter.report.figures.style import (
    MEMBER,
    NONMEMBER,
    RULE,
    set_legend,
    sheet,
)

_NORMAL = 1.959964  # two-sided 95% of a normal distribution


class Norms(NamedTuple):
    """Gradient norms of one label's members or non-members.

    Attributes:
      label: the class.
      n: records.
      mean: their geometric mean; NaN of no records or where all are 0.
      low: of its 95% interval (normal, in logs); NaN of fewer than two.
      high: likewise.
    """

    label: int
    n: int
    mean: float
    low: float
    high: float


def norms_by_label(norms: NDArray, y: NDArray, of: NDArray) -> list[Norms]:
    """Geometric means of norms `[n]` by label, of the records in the mask `of`.

    Norms of one class spread over orders of magnitude, so that an arithmetic mean is that of the
    few largest.

    >>> norms = norms_by_label(np.array([1.0, 100.0, 5.0]), np.array([0, 0, 1]), np.ones(3, bool))
    >>> round(norms[0].mean, 6)
    10.0
    """
    found = []
    for label in np.unique(y):
        mine = np.asarray(norms, np.float64)[(y == label) & of]
        logs = np.log(mine[mine > 0])
        mean = float(logs.mean()) if logs.size else math.nan
        half = (
            _NORMAL * float(logs.std(ddof=1)) / math.sqrt(logs.size) if logs.size > 1 else math.nan
        )
        found.append(
            Norms(int(label), mine.size, *(float(np.exp(mean + d)) for d in (0.0, -half, half)))
        )
    return found


def gradient_norm_figure(norms: NDArray, y: NDArray, is_member: NDArray) -> Figure:
    """The gradient norm's geometric mean by label, of members and of non-members, 95% intervals.

    Args:
      norms: of the loss's gradient by all variables, `[n]`.
      y: labels `[n]`.
      is_member: the truth, bool `[n]`.
    """
    figure, (ax,) = sheet(1, 1, height=3.8)
    n_labels = len(np.unique(y))
    size, width = (5, 2.0) if n_labels <= 30 else (2.5, 0.9)
    for kind, colour, shift in ((is_member, MEMBER, -0.15), (~is_member, NONMEMBER, 0.15)):
        found = norms_by_label(norms, y, kind)
        at = np.arange(n_labels) + shift
        ax.vlines(
            at, [f.low for f in found], [f.high for f in found], color=colour, lw=width, alpha=0.45
        )
        ax.plot(at, [f.mean for f in found], "o", color=colour, ms=size)
    ax.set_yscale("log")
    labels = np.unique(y)
    step = max(1, math.ceil(n_labels / 20))
    ax.set_xticks(np.arange(n_labels)[::step], [str(label) for label in labels[::step]])
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("Label")
    ax.set_ylabel("Gradient norm, geometric mean")
    ax.grid(True, axis="y", color=RULE, lw=0.6, alpha=0.7)
    handles = [
        Line2D([], [], color=c, marker="o", ms=4, lw=2, alpha=0.8) for c in (MEMBER, NONMEMBER)
    ]
    labelled = ["members, 95% interval", "non-members"]
    set_legend(figure, handles, labelled, loc="outside upper left", ncols=2)
    return figure
