"""The figures that ML Privacy Meter draws of an attack."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from jaxmeter.metrics import AttackResult
from jaxmeter.report.figures.style import (
    BINS,
    MEMBER,
    MUTED,
    NONMEMBER,
    RULE,
    bars,
    set_kinds,
    set_legend,
    set_title,
    sheet,
)


def risk_figure(probabilities: NDArray, is_member: NDArray, title: str = "") -> Figure:
    """Histograms of membership probabilities of members and of non-members.

    Args:
      probabilities: in [0, 1], `[n]`.
      is_member: the truth, bool `[n]`; a kind without records gets no bars.
      title: what it is about.
    """
    figure, (ax,) = sheet(1, 1, height=3.4)
    bars(ax, probabilities, is_member, np.linspace(0, 1, BINS + 1))
    ax.axvline(0.5, color=MUTED, lw=1, ls=(0, (2, 2)))
    ax.set_xlabel("Membership probability, by the attack")
    ax.set_ylabel("Share of records")
    set_title(ax, title, width=60)
    set_kinds(figure, is_member)
    return figure


class ComparedRun(NamedTuple):
    """One attack to compare with others.

    Attributes:
      name: shown beside it.
      result: its scores on test records.
      target_accuracy: the target's, on members and on non-members.
    """

    name: str
    result: AttackResult
    target_accuracy: tuple[float, float]


def comparison_figure(runs: Sequence[ComparedRun]) -> Figure:
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
