"""How a learned attack was fitted, epoch by epoch."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from jaxmeter.report.figures.style import (
    INK,
    MEMBER,
    MUTED,
    NONMEMBER,
    RULE,
    set_legend,
    set_title,
    sheet,
)
from jaxmeter.report.result import AuditResult


def history_figure(report: AuditResult) -> Figure:
    """Loss and select-part AUC by epoch for every attack that was fitted, and the epoch kept."""
    fitted = [row for row in report.rows if row.history]
    figure, axes = sheet(max(1, len(fitted)), 2, height=2.1 * max(1, len(fitted)) + 0.5)
    if not fitted:
        for ax in axes:
            ax.set_axis_off()
        axes[0].text(0, 0.5, "No attack was fitted.", color=MUTED)
        return figure
    for i, row in enumerate(fitted):
        losses, aucs = axes[2 * i : 2 * i + 2]
        epochs = [epoch.epoch for epoch in row.history]
        dot: dict[str, Any] = {"marker": "o", "ms": 3} if len(epochs) <= 12 else {}
        losses.plot(epochs, [e.loss for e in row.history], color=NONMEMBER, lw=1.5, **dot)
        losses.plot(epochs, [e.select_loss for e in row.history], color=MEMBER, lw=1.5, **dot)
        aucs.plot(epochs, [e.select_auc for e in row.history], color=MEMBER, lw=1.5, **dot)
        aucs.axhline(0.5, color=MUTED, lw=1, ls=(0, (2, 2)))
        set_title(losses, row.name)
        set_title(aucs, "" if row.best_epoch is None else f"kept: epoch {row.best_epoch}")
        for ax, name in ((losses, "Loss (nats)"), (aucs, "AUC")):
            if row.best_epoch is not None:
                ax.axvline(row.best_epoch, color=INK, lw=1, ls=(0, (4, 2)))
            ax.set_ylabel(name)
            ax.grid(True, axis="y", color=RULE, lw=0.6, alpha=0.7)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if i == len(fitted) - 1:
                ax.set_xlabel("Epoch")
    set_legend(
        figure,
        [
            Line2D([], [], color=NONMEMBER, lw=1.5),
            Line2D([], [], color=MEMBER, lw=1.5),
            Line2D([], [], color=INK, lw=1, ls=(0, (4, 2))),
        ],
        ["fit part", "select part", "epoch kept"],
        loc="outside upper left",
        ncols=3,
    )
    return figure
