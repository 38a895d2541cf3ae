"""ROC curves of all attacks."""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxmeter.report import findings
from jaxmeter.report.figures.style import DASHES, MUTED, PALETTE, RULE, set_legend, set_rates, sheet
from jaxmeter.report.result import AuditResult
from jaxmeter.report.wording import shortened


def roc_figure(report: AuditResult) -> Figure:
    """ROC curves on log-log axes, as steps: the TPR at each FPR without interpolation.

    The best attack has its pointwise 95% Clopper-Pearson band. FPRs that the non-members cannot
    resolve are shaded.
    """
    legend_rows = math.ceil((len(report.rows) + 1) / 2)
    figure, (ax,) = sheet(1, 1, height=4.7 + 0.2 * legend_rows)
    result, top = report.rows[0].result, findings.best(report)
    smallest = result.resolvable_fpr
    left = 10 ** (math.log10(smallest) - 0.35)
    bottom = min(left, 0.6 / result.n_members)
    # Every FPR that can occur at the low end, where the steps are wide; some of the others.
    steps = np.concatenate([np.arange(1, 100), np.geomspace(100, result.n_nonmembers, 100)])
    grid = np.unique(steps.round()[steps <= result.n_nonmembers]) / result.n_nonmembers
    low, high = np.array([top.result.tpr_interval(fpr) for fpr in grid]).T
    handles, styles = [], _styles(report)
    for row in report.rows:
        roc, style = row.result.roc(), styles[row.name]
        (line,) = ax.plot(
            roc.fpr,
            roc.tpr,
            drawstyle="steps-post",
            lw=2.2 if row is top else 1.4,
            zorder=4 if row is top else 3,
            solid_joinstyle="round",
            **style,
        )
        handles.append(line)
        if row is top:
            ax.fill_between(grid, low, high, step="post", color=style["color"], alpha=0.18, lw=0)
    ax.axvspan(left, smallest, color=MUTED, alpha=0.14, lw=0)
    ax.plot([left, 1], [left, 1], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=2)
    set_rates(ax, left, bottom)
    ax.set_xlabel("False positive rate: non-members called members")
    ax.set_ylabel("True positive rate: members found")
    ax.text(
        math.sqrt(left * smallest),
        0.9,
        f"below 1 of {result.n_nonmembers:,} non-members",
        rotation=90,
        ha="center",
        va="top",
        color=MUTED,
        size=8,
    )
    labels = [f"{shortened(row.name, 26)} ({row.result.auc:.3f})" for row in report.rows]
    order = sorted(range(len(labels)), key=lambda i: -report.rows[i].result.auc)
    chance = Line2D([], [], color=MUTED, lw=1, ls=(0, (2, 2)))
    shown = [handles[i] for i in order], [labels[i] for i in order]
    set_legend(
        figure,
        [*shown[0], chance],
        [*shown[1], "chance (0.500)"],
        title="Attack (AUC)",
        loc="outside lower left",
        ncols=2,
    )
    ax.grid(True, color=RULE, lw=0.6, alpha=0.7)
    return figure


def _styles(report: AuditResult) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each attack: the best in the first colour, blind baselines in grey."""
    top = findings.best(report)
    others = [row for row in report.rows if row is not top and not findings.is_blind(row)]
    styles: dict[str, dict[str, Any]] = {
        row.name: {"color": MUTED, "ls": "-"} for row in report.rows if findings.is_blind(row)
    }
    for i, row in enumerate(others, start=1):
        dashes = DASHES[i // len(PALETTE) % len(DASHES)]
        styles[row.name] = {"color": PALETTE[i % len(PALETTE)], "ls": dashes}
    styles[top.name] = {"color": PALETTE[0], "ls": "-"}
    return styles
