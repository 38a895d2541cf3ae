"""An audit's figures: pure functions from a `Report` to a matplotlib `Figure`.

Drawn with matplotlib's object interface only, so nothing is left in pyplot's global state. Colours
are Okabe and Ito's, told apart by colour-blind readers; line styles differ too.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from jaxmeter import findings as find

if TYPE_CHECKING:  # `report` imports this module; only the types are needed the other way.
    from jaxmeter.report import Report, Row

INK, MUTED, RULE = "#1f2328", "#656d76", "#d0d7de"
MEMBER, NONMEMBER = "#d55e00", "#0072b2"
PALETTE = (NONMEMBER, MEMBER, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
_WIDTH = 5.8  # inches: small enough that text is still legible at the width of a phone
_BINS, _LABELLED_CLASSES = 40, 30


def roc_figure(report: "Report") -> Figure:
    """ROC curves on log-log axes, as steps: the TPR at each FPR without interpolation.

    The best attack has its pointwise 95% Clopper-Pearson band. FPRs that the non-members cannot
    resolve are shaded.
    """
    legend_rows = math.ceil((len(report.rows) + 1) / 2)
    figure, (ax,) = sheet(1, 1, height=4.7 + 0.2 * legend_rows)
    result, top = report.rows[0].result, find.best(report)
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
    labels = [f"{find.shortened(row.name, 26)} ({row.result.auc:.3f})" for row in report.rows]
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


def histogram_figure(report: "Report") -> Figure:
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
    if any(_finite(row.result.threshold) for row in report.rows):
        handles.append(Line2D([], [], color=INK, lw=1, ls=(0, (4, 2))))
        labels.append("threshold (select part)")
    set_legend(figure, handles, labels, loc="outside upper left", ncols=3)
    return figure


def class_figure(report: "Report") -> Figure:
    """The best attack's AUC within each class, with DeLong's 95% intervals.

    Up to 30 classes by name; of more, every class in order of its AUC and the extremes by name.
    Classes with fewer than 10 held-out members or non-members are left out.
    """
    top = find.best(report)
    risks = [risk for risk in find.class_risk(report, top) if risk.auc is not None]
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


def exposed_figure(report: "Report", n: int = 16) -> Figure:
    """Pictures of the records the best attack is most sure of, with the truth under each.

    Raises:
      ValueError: if the records are not images `[h, w]`, `[h, w, 1]` or `[h, w, 3]`.
    """
    if not is_images(report.held.x):
        raise ValueError(
            f"records have shape {report.held.x.shape[1:]}, which is no picture; see "
            "`findings.exposed` for the same records as numbers."
        )
    records = find.exposed(report, find.best(report), n)
    columns = min(4, len(records))
    rows = math.ceil(len(records) / columns)
    figure, axes = sheet(rows, columns, height=1.85 * rows)
    pictures = _displayable(report.held.x, [record.row for record in records])
    for rank, (ax, record, picture) in enumerate(zip(axes, records, pictures, strict=False), 1):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        colour = MEMBER if record.is_member else NONMEMBER
        for spine in ax.spines.values():
            spine.set(visible=True, color=colour, linewidth=2.5)
        ax.set(xticks=[], yticks=[])
        truth = "member" if record.is_member else "false alarm"
        ax.set_title(f"{rank}. {truth}", size=9, color=colour, weight="bold", pad=4)
        ax.set_xlabel(f"class {record.label}, record {record.record}", size=8, color=MUTED)
    for ax in axes[len(records) :]:
        ax.set_visible(False)
    return figure


def history_figure(report: "Report") -> Figure:
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


def is_images(x: NDArray) -> bool:
    """Whether records `[n, ...]` can be shown: `[h, w]`, `[h, w, 1]` or `[h, w, 3]`."""
    shape = x.shape[1:]
    return len(shape) in (2, 3) and min(shape[:2]) >= 4 and (len(shape) == 2 or shape[2] in (1, 3))


def _displayable(x: NDArray, rows: Sequence[int]) -> NDArray:
    """Pictures in [0, 1]: bytes and unit floats as they are, others stretched over all records."""
    if x.dtype == np.uint8 or (x.min() >= 0 and 1 < x.max() <= 255 and x.max() > 128):
        low, high = 0.0, 255.0
    elif x.min() >= 0 and x.max() <= 1:
        low, high = 0.0, 1.0
    else:
        low, high = float(x.min()), float(x.max())
    pictures = (x[list(rows)].astype(np.float64) - low) / ((high - low) or 1.0)
    pictures = pictures.clip(0, 1)
    return pictures[..., 0] if pictures.ndim == 4 and pictures.shape[-1] == 1 else pictures


def _histogram(ax: Axes, row: "Row") -> None:
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


def _styles(report: "Report") -> dict[str, dict[str, Any]]:
    """Colour and dashes of each attack: the best in the first colour, blind baselines in grey."""
    top = find.best(report)
    others = [row for row in report.rows if row is not top and not find.is_blind(row)]
    styles: dict[str, dict[str, Any]] = {
        row.name: {"color": MUTED, "ls": "-"} for row in report.rows if find.is_blind(row)
    }
    for i, row in enumerate(others, start=1):
        dashes = DASHES[i // len(PALETTE) % len(DASHES)]
        styles[row.name] = {"color": PALETTE[i % len(PALETTE)], "ls": dashes}
    styles[top.name] = {"color": PALETTE[0], "ls": "-"}
    return styles


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
    title = ax.set_title(find.shortened(name, width), loc="left", size=9.5, color=INK)
    title.set_parse_math(False)


def _finite(value: float | None) -> bool:
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
