"""Histograms of members' and non-members' scores."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from jaxmeter.report.figures.style import (
    INK,
    MEMBER,
    NONMEMBER,
    finite,
    set_legend,
    set_title,
    sheet,
)
from jaxmeter.report.result import AuditResult, Row

_BINS = 40


def histogram_figure(report: AuditResult) -> Figure:
    """Each attack's scores of held-out members and non-members, one panel an attack.

    Shares of each kind's records. The outermost bins also hold everything beyond them. Where one
    bin holds most of the records, the shares are on a log axis.
    """
    columns = min(2, len(report.rows))
    rows = math.ceil(len(report.rows) / columns)
    figure, axes = sheet(rows, columns, height=2.15 * rows + 0.45)
    for ax, row in zip(axes, report.rows, strict=False):
        _histogram(ax, row)
    for ax in axes[len(report.rows) :]:
        ax.set_visible(False)
    for ax in axes[::columns]:
        ax.set_ylabel("Share of records")
    for ax in axes[max(0, len(report.rows) - columns) : len(report.rows)]:
        ax.set_xlabel("Score")
    handles: list[Any] = [
        Patch(facecolor=MEMBER, alpha=0.45, edgecolor=MEMBER),
        Patch(facecolor=NONMEMBER, alpha=0.45, edgecolor=NONMEMBER),
    ]
    labels = ["members", "non-members"]
    if any(finite(row.result.threshold) for row in report.rows):
        handles.append(Line2D([], [], color=INK, lw=1, ls=(0, (4, 2))))
        labels.append("threshold (select part)")
    set_legend(figure, handles, labels, loc="outside upper left", ncols=3)
    return figure


def _histogram(ax: Axes, row: Row) -> None:
    scores, is_member = row.result.scores, row.result.is_member
    finite = scores[np.isfinite(scores)]
    distinct = np.unique(finite)
    if len(distinct) <= 12:  # one bar for each value
        middles = (distinct[1:] + distinct[:-1]) / 2
        pad = np.diff(distinct).min() / 2 if len(distinct) > 1 else 0.5
        centre = distinct if len(distinct) else np.zeros(1)
        edges = np.concatenate([[centre[0] - pad], middles, [centre[-1] + pad]])
    else:
        low, high = np.quantile(finite, [0.005, 0.995])
        if low == high:
            low, high = distinct[0], distinct[-1]
        edges = np.linspace(low, high, _BINS + 1)
    tallest = 0.0
    for kind, colour in ((is_member, MEMBER), (~is_member, NONMEMBER)):
        inside = np.clip(scores[kind], edges[0], edges[-1])
        shares = np.histogram(inside, edges)[0] / kind.sum()
        tallest = max(tallest, shares.max())
        ax.stairs(shares, edges, fill=True, color=colour, alpha=0.35, lw=0)
        ax.stairs(shares, edges, color=colour, lw=1.2, baseline=None)
    if tallest > 0.5 and len(distinct) > 12:
        ax.set_yscale("log")
        ax.set_ylim(0.5 / len(scores), 1.2)
    else:
        ax.set_ylim(0, tallest * 1.08)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(
        FixedLocator(list(distinct)) if len(distinct) <= 4 else MaxNLocator(4)
    )
    threshold = row.result.threshold
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        ax.axvline(threshold, color=INK, lw=1, ls=(0, (4, 2)))
    ax.set_xlim(edges[0], edges[-1])
    set_title(ax, row.name)
