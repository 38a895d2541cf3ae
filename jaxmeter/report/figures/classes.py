"""Risk by class: AUCs, and the scores of each."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from jaxmeter.report import findings
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
from jaxmeter.report.result import AuditResult

_LABELLED_CLASSES = 30


def class_figure(report: AuditResult) -> Figure:
    """The best attack's AUC within each class, with DeLong's 95% intervals.

    Up to 30 classes by name; of more, every class in order of its AUC and the extremes by name.
    Classes with fewer than 10 held-out members or non-members are left out.
    """
    top = findings.best(report)
    risks = [risk for risk in findings.class_risk(report, top) if risk.auc is not None]
    aucs = np.array([risk.auc for risk in risks], float)
    bounds = np.array([risk.interval for risk in risks], float).reshape(-1, 2)
    few = len(risks) <= _LABELLED_CLASSES
    figure, (ax,) = sheet(1, 1, height=0.27 * len(risks) + 1.3 if few else 4.0)
    order = np.argsort(aucs, kind="stable")
    places = np.arange(len(order))
    if not len(risks):
        ax.set_axis_off()
        ax.text(0.5, 0.5, "Too few held-out records in every class.", ha="center", color=MUTED)
        return figure
    span, dots = (ax.hlines, ax.plot) if few else (ax.vlines, ax.plot)
    span(places, *bounds[order].T, color=NONMEMBER, lw=2 if few else 1, alpha=0.45)
    xy = (aucs[order], places) if few else (places, aucs[order])
    dots(*xy, "o", color=NONMEMBER, ms=5 if few else 3, label="classes")
    value, chance = (ax.axvline, ax.axvline) if few else (ax.axhline, ax.axhline)
    chance(0.5, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    value(top.result.auc, color=MEMBER, lw=1.2, zorder=1)
    low, high = min(0.45, bounds.min() - (0.02 if few else 0.06)), max(0.55, bounds.max() + 0.02)
    name = "AUC within the class"
    if few:
        ax.set_yticks(places, [f"{risks[i].label}" for i in order])
        for place, i in enumerate(order):
            text = f"{risks[i].n_members}+{risks[i].n_nonmembers}"
            ax.text(1.01, place, text, transform=ax.get_yaxis_transform(), va="center", size=8,
                    color=MUTED)  # fmt: skip
        ax.text(1.01, -0.01, "records", transform=ax.transAxes, va="top", size=8, color=MUTED)
        ax.set_xlim(max(0, low), min(1, high))
        ax.set_ylim(-0.7, len(risks) - 0.3)
        ax.set_xlabel(name)
        ax.set_ylabel("Class")
        ax.tick_params(axis="y", length=0)
        ax.grid(True, axis="x", color=RULE, lw=0.6, alpha=0.7)
    else:
        names = [f"{risks[i].label}" for i in order]
        ax.text(0.01, 0.02, f"lowest: {', '.join(names[:3])}", transform=ax.transAxes, size=8.5,
                color=MUTED)  # fmt: skip
        ax.text(1, 0.02, f"highest: {', '.join(names[:-4:-1])}", transform=ax.transAxes, size=8.5,
                color=MUTED, ha="right")  # fmt: skip
        ax.set_ylim(max(0, low), min(1, high))
        ax.set_xlabel(f"{len(risks)} classes, in order of their AUC")
        ax.set_ylabel(name)
        ax.set_xticks([])
        ax.grid(True, axis="y", color=RULE, lw=0.6, alpha=0.7)
    set_legend(
        figure,
        [
            Line2D([], [], color=NONMEMBER, marker="o", ms=4, lw=2, alpha=0.8),
            Line2D([], [], color=MEMBER, lw=1.2),
            Line2D([], [], color=MUTED, lw=1, ls=(0, (2, 2))),
        ],
        ["class, 95% interval", "all held-out records", "chance"],
        loc="outside upper left",
        ncols=3,
    )
    return figure


_PANELS = 12


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
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    for ax, label in zip(axes, shown, strict=False):
        mine = y == label
        bars(ax, np.clip(scores[mine], edges[0], edges[-1]), is_member[mine], edges)
        inside = int(is_member[mine].sum())
        set_title(ax, f"class {label} ({inside}+{int(mine.sum()) - inside})")
        ax.yaxis.set_major_locator(MaxNLocator(3))
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[::columns]:
        ax.set_ylabel("Share")
    for ax in axes[max(0, len(shown) - columns) : len(shown)]:
        ax.set_xlabel("Score")
    set_kinds(figure, is_member)
    return figure
