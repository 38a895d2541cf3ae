"""Figures of ML Privacy Meter, corrected: membership probabilities, gradient norms, classes, runs.

Pure functions of arrays to a matplotlib `Figure`, in the style of `figures`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from jaxmeter.figures import (
    INK,
    MEMBER,
    MUTED,
    NONMEMBER,
    RULE,
    set_legend,
    set_title,
    sheet,
)
from jaxmeter.metrics import AttackResult

_BINS = 20
_NORMAL = 1.959964  # two-sided 95% of a normal distribution
_PANELS = 12


def risk_figure(probabilities: NDArray, is_member: NDArray, title: str = "") -> Figure:
    """Histograms of membership probabilities of members and of non-members.

    Args:
      probabilities: in [0, 1], `[n]`.
      is_member: the truth, bool `[n]`; a kind without records gets no bars.
      title: what it is about.
    """
    figure, (ax,) = sheet(1, 1, height=3.4)
    _bars(ax, probabilities, is_member, np.linspace(0, 1, _BINS + 1))
    ax.axvline(0.5, color=MUTED, lw=1, ls=(0, (2, 2)))
    ax.set_xlabel("Membership probability, by the attack")
    ax.set_ylabel("Share of records")
    set_title(ax, title, width=60)
    _kinds(figure, is_member)
    return figure


def class_scores_figure(scores: NDArray, y: NDArray, is_member: NDArray) -> Figure:
    """Histograms of an attack's scores class by class, the first 12 classes in number order.

    Shares are of the class's members and of its non-members. All panels have the same bins; the
    outermost also hold everything beyond them.
    """
    labels = np.unique(y)
    shown = labels[:_PANELS]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = sheet(rows, columns, height=1.75 * rows + 0.6)
    finite = scores[np.isfinite(scores)]
    low, high = np.quantile(finite, [0.005, 0.995]) if finite.size else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for ax, label in zip(axes, shown, strict=False):
        mine = y == label
        _bars(ax, np.clip(scores[mine], edges[0], edges[-1]), is_member[mine], edges)
        inside = int(is_member[mine].sum())
        set_title(ax, f"class {label} ({inside}+{int(mine.sum()) - inside})")
        ax.yaxis.set_major_locator(MaxNLocator(3))
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[::columns]:
        ax.set_ylabel("Share")
    for ax in axes[max(0, len(shown) - columns) : len(shown)]:
        ax.set_xlabel("Score")
    _kinds(figure, is_member)
    return figure


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


class Run(NamedTuple):
    """One attack to compare with others.

    Attributes:
      name: shown beside it.
      result: its scores on test records.
      target_accuracy: the target's, on members and on non-members.
    """

    name: str
    result: AttackResult
    target_accuracy: tuple[float, float]


def comparison_figure(runs: Sequence[Run]) -> Figure:
    """AUC and balanced accuracy of several attacks with 95% intervals, and their targets'."""
    figure, (ax,) = sheet(1, 1, height=0.62 * len(runs) + 1.5)
    places = np.arange(len(runs))[::-1]
    kinds = (
        ("AUC", MEMBER, 0.16, lambda run: (run.result.auc, *run.result.auc_interval())),
        (
            "balanced accuracy",
            NONMEMBER,
            -0.16,
            lambda run: (run.result.accuracy, *run.result.accuracy_interval()),
        ),
    )
    handles = []
    for name, colour, shift, of in kinds:
        value, low, high = np.array([of(run) for run in runs]).T
        ax.hlines(places + shift, low, high, color=colour, lw=2.5, alpha=0.45)
        ax.plot(value, places + shift, "o", color=colour, ms=5)
        handles.append(Line2D([], [], color=colour, marker="o", ms=5, lw=2, label=name, alpha=0.8))
    accuracies = np.array([run.target_accuracy for run in runs])
    for column, marker, name in ((0, ">", "members"), (1, "<", "non-members")):
        ax.plot(accuracies[:, column], places, marker, color=MUTED, ms=5, mfc="none")
        label = f"target's accuracy on {name}"
        handles.append(
            Line2D([], [], color=MUTED, marker=marker, ms=5, ls="", mfc="none", label=label)
        )
    ax.axvline(0.5, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    ax.set_yticks(places, [run.name[:32] for run in runs])
    for text in ax.get_yticklabels():
        text.set_parse_math(False)
    ax.set_ylim(-0.6, len(runs) - 0.4)
    lowest = min(0.45, accuracies.min(), *(run.result.auc_interval().low for run in runs))
    ax.set_xlim(max(0, lowest - 0.03), 1.02)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x", color=RULE, lw=0.6, alpha=0.7)
    labels = [str(handle.get_label()) for handle in handles]
    set_legend(figure, handles, labels, loc="outside upper left", ncols=2)
    return figure


def _bars(ax: Axes, values: NDArray, is_member: NDArray, edges: NDArray) -> None:
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


def _kinds(figure: Figure, is_member: NDArray) -> None:
    members = int(is_member.sum())
    handles = [
        Patch(facecolor=colour, alpha=0.45, edgecolor=colour) for colour in (MEMBER, NONMEMBER)
    ]
    labels = [f"members ({members:,})", f"non-members ({len(is_member) - members:,})"]
    set_legend(figure, handles, labels, loc="outside upper left", ncols=2)
