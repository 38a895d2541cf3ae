"""A study's figures: families of ROC curves, and metrics against what was swept."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import NDArray

from jaxmeter.experiment.results.tables import (
    Cell,
    TableRow,
    check_column,
    compared,
    heading,
    is_rate,
    value_text,
)
from jaxmeter.metrics import AttackResult
from jaxmeter.report.columns import AUC
from jaxmeter.report.figures.style import (
    DASHES,
    MUTED,
    PALETTE,
    RULE,
    set_legend,
    set_rates,
    set_title,
    sheet,
)
from jaxmeter.report.wording import shortened

_MOST_CURVES, _MOST_PANELS = 12, 6


class Family(NamedTuple):
    """The runs of one configuration under one attack, for a curve."""

    label: str
    results: Sequence[AttackResult]  # one a seed


def roc_figure(panels: Mapping[str, Sequence[Family]]) -> Figure:
    """ROC curves on log-log axes, a panel an attack, a curve a configuration.

    Over several seeds the line is the mean TPR at each FPR, and the band goes from the lowest to
    the highest. Curves are steps: nothing is interpolated. FPRs that the non-members cannot
    resolve are not drawn. Of more than 12 configurations, 12 are shown, evenly by their AUC.

    Args:
      panels: families by the panel's title, at least one, each with at least one result.
    """
    shown = {name: _thinned(list(families)) for name, families in panels.items()}
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    labels = list(dict.fromkeys(f.label for families in shown.values() for f in families))
    styles = {label: _style(i) for i, label in enumerate(labels)}
    lines_of_legend = math.ceil((len(labels) + 1) / 2)
    figure, axes = sheet(rows, columns, height=(4.3 if columns == 1 else 3.1) * rows
                        + 0.2 * lines_of_legend + 0.3)  # fmt: skip
    everything = [r for families in shown.values() for f in families for r in f.results]
    left = min(result.resolvable_fpr for result in everything)
    bottom = min(left, 0.6 / max(result.n_members for result in everything))
    for ax, (name, families) in zip(axes, shown.items(), strict=False):
        for family in families:
            _family(ax, family, styles[family.label])
        ax.plot([left, 1], [left, 1], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=2)
        set_rates(ax, left, bottom)
        ax.grid(True, color=RULE, lw=0.6, alpha=0.7)
        set_title(ax, name, 28 if columns == 2 else 60)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[::columns]:
        ax.set_ylabel("True positive rate")
    for ax in axes[max(0, len(shown) - columns) : len(shown)]:
        ax.set_xlabel("False positive rate")
    handles = [Line2D([], [], lw=1.6, **styles[label]) for label in labels]
    chance = Line2D([], [], color=MUTED, lw=1, ls=(0, (2, 2)))
    texts = [_curve_label(label, shown) for label in labels]
    hidden = max(len(f) for f in panels.values()) - max(len(f) for f in shown.values())
    said = "Configuration (AUC)" if len(shown) == 1 else "Configuration"
    if hidden:
        total = max(len(f) for f in panels.values())
        said += f": {total - hidden} of {total}, evenly by AUC"
    set_legend(figure, [*handles, chance], [*texts, "chance"], title=said, loc="outside lower left",
           ncols=2 if max(map(len, texts)) < 40 else 1)  # fmt: skip
    return figure


def metric_figure(
    table: pa.Table, axis: str, metric: str, by: Sequence[str] = ("attack",)
) -> Figure:
    """A metric against a swept field, with the spread over seeds or a single run's interval.

    Numbers make a line (on a log axis, if they span more than a factor of 20), anything else
    points side by side. One colour an attack; where other fields vary too, one panel a combination
    of theirs, at most 6.

    Args:
      table: a tidy table.
      axis: the column across.
      metric: the column up.
      by: the columns that tell configurations apart, besides `axis`; "attack" is told by colour.

    Raises:
      ValueError: for a column that the table lacks, or a metric that is no number.
    """
    shown = _panels(table, axis, metric, by)
    chosen = [list(shown.panels)[i] for i in _evenly(len(shown.panels), _MOST_PANELS)]
    columns = min(2, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    styles = {name: _style(i) for i, name in enumerate(shown.series)}
    figure, axes = sheet(
        rows, columns, height=(3.4 if columns == 1 else 2.5) * rows
        + (0.4 + 0.2 * math.ceil(len(styles) / 2) if shown.has_legend else 0)
    )  # fmt: skip
    place = _places(shown.values)
    for ax, key in zip(axes, chosen, strict=False):
        for i, (name, lines) in enumerate(shown.panels[key].items()):
            _series(ax, lines, place, styles[name], _aside(i, len(shown.panels[key])))
        text = ", ".join(f"{n} {value_text(v)}" for n, v in zip(shown.others, key, strict=True))
        set_title(ax, text, 30 if columns == 2 else 60)
        _axis(ax, shown.values, place)
        if metric == AUC.name:
            ax.axhline(0.5, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
        if is_rate(metric):
            ax.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g}"))
        ax.grid(True, axis="y", color=RULE, lw=0.6, alpha=0.7)
    for ax in axes[len(chosen) :]:
        ax.set_visible(False)
    _same_height(axes[: len(chosen)], rate=is_rate(metric))
    for ax in axes[::columns]:
        ax.set_ylabel(heading(metric))
    for ax in axes[max(0, len(chosen) - columns) : len(chosen)]:
        ax.set_xlabel(axis).set_parse_math(False)
    if shown.has_legend:
        handles = [Line2D([], [], lw=1.6, marker="o", ms=4, **style) for style in styles.values()]
        total = len(shown.panels)
        said = "Attack" + (
            f"; {len(chosen)} of {total} combinations" if total > len(chosen) else ""
        )
        set_legend(figure, handles, [shortened(name, 34) for name in styles], title=said,
               loc="outside lower left", ncols=2)  # fmt: skip
    return figure


class _Panels(NamedTuple):
    """What a figure of a metric shows."""

    others: list[str]  # the columns whose values tell panels apart
    panels: dict[tuple[Any, ...], dict[str, list[TableRow]]]  # by these values: series by attack
    values: list[Any]  # of the axis across
    series: list[str]  # attacks
    has_legend: bool  # not where there is one series, without a name


def _panels(table: pa.Table, axis: str, metric: str, by: Sequence[str]) -> _Panels:
    """A tidy table's rows, compared and dealt into panels and series."""
    check_column(table, axis)
    others = [name for name in by if name not in (axis, "attack")]
    hue = ["attack"] if "attack" in by and axis != "attack" else []
    comparison = compared(table, by=(*others, *hue, axis), metrics=(metric,))
    panels: dict[tuple[Any, ...], dict[str, list[TableRow]]] = {}
    for line in comparison.lines:
        series = value_text(line.values[len(others)]) if hue else ""
        panels.setdefault(line.values[: len(others)], {}).setdefault(series, []).append(line)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    values = list(dict.fromkeys(line.values[-1] for line in comparison.lines))
    return _Panels(others, panels, values, names, bool(hue) and names != [""])


# --- ROC curves.


def _family(ax: Axes, family: Family, style: dict[str, Any]) -> None:
    steps = _grid_of_fprs(max(result.n_nonmembers for result in family.results))
    smallest = max(result.resolvable_fpr for result in family.results)
    steps = steps[steps >= smallest * (1 - 1e-12)]
    tprs = np.array([_tpr_at(result, steps) for result in family.results])
    ax.plot(steps, tprs.mean(axis=0), drawstyle="steps-post", lw=1.6, zorder=3, **style)
    if len(tprs) > 1:
        low, high = tprs.min(axis=0), tprs.max(axis=0)
        ax.fill_between(steps, low, high, step="post", color=style["color"], alpha=0.15, lw=0)


def _grid_of_fprs(n_nonmembers: int) -> NDArray:
    """Every FPR that can occur at the low end, where steps are wide, and some of the others."""
    steps = np.concatenate([np.arange(1, 200), np.geomspace(200, max(n_nonmembers, 200), 300)])
    return np.unique(steps.round()[steps <= n_nonmembers]) / n_nonmembers


def _tpr_at(result: AttackResult, fprs: NDArray) -> NDArray:
    roc = result.roc()
    return roc.tpr[np.searchsorted(roc.fpr, fprs * (1 + 1e-12), side="right") - 1]


def _thinned(families: list[Family]) -> list[Family]:
    order = sorted(range(len(families)), key=lambda i: _auc(families[i]))
    kept = {order[i] for i in _evenly(len(order), _MOST_CURVES)}
    return [family for i, family in enumerate(families) if i in kept]


def _auc(family: Family) -> float:
    return float(np.mean([result.auc for result in family.results]))


def _curve_label(label: str, shown: dict[str, list[Family]]) -> str:
    short = shortened(label, 44)
    if len(shown) > 1:
        return short
    (families,) = shown.values()
    return f"{short} ({_auc(next(f for f in families if f.label == label)):.3f})"


# --- Metrics against an axis.


def _series(
    ax: Axes,
    lines: list[TableRow],
    place: "_Place",
    style: dict[str, Any],
    aside: float,
) -> None:
    seen = [(place(line.values[-1]), line.cells[0]) for line in lines]
    points = [(x, cell) for x, cell in seen if cell.mean is not None]
    if not points:
        return
    points.sort(key=lambda point: point[0])
    numeric = place.numeric
    x = np.array([x for x, _ in points]) + (0 if numeric else aside)
    y = np.array([cell.mean for _, cell in points], float)
    ends = np.array([_ends(cell) for _, cell in points], float)
    joined = style["ls"] if numeric and len(points) > 1 else "none"
    ax.plot(x, y, marker="o", ms=4, lw=1.6, color=style["color"], ls=joined, zorder=3)
    ax.vlines(x, ends[:, 0], ends[:, 1], color=style["color"], lw=1.4, alpha=0.6, zorder=2)
    if numeric and len(points) > 1:
        ax.fill_between(x, ends[:, 0], ends[:, 1], color=style["color"], alpha=0.12, lw=0)


def _ends(cell: Cell) -> tuple[float, float]:
    assert cell.mean is not None
    if cell.std is not None:
        return cell.mean - cell.std, cell.mean + cell.std
    if cell.low is not None and cell.high is not None:
        return cell.low, cell.high
    return cell.mean, cell.mean


def _same_height(axes: Sequence[Axes], rate: bool) -> None:
    """One scale for all panels, so that they compare; rates do not go below 0 or above 1."""
    limits = [ax.get_ylim() for ax in axes]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    if rate:
        low, high = max(low, -0.02 * (high - low)), min(high, 1.02)
    for ax in axes:
        ax.set_ylim(low, high)


class _Place(NamedTuple):
    """Where a value lies on the axis across."""

    numeric: bool
    logarithmic: bool
    order: tuple[Any, ...]

    def __call__(self, value: Any) -> float:
        return float(value) if self.numeric else float(self.order.index(value))


def _places(values: list[Any]) -> _Place:
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
                  for v in values)  # fmt: skip
    wide = numeric and min(values) > 0 and max(values) > 20 * min(values)
    return _Place(numeric, wide, tuple(values))


def _axis(ax: Axes, values: list[Any], place: _Place) -> None:
    if place.logarithmic:
        ax.set_xscale("log")
    if place.numeric and len(values) <= 8:
        ax.xaxis.set_major_locator(FixedLocator(sorted(map(float, values))))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_minor_locator(FixedLocator([]))
    if not place.numeric:
        steep = max(len(value_text(v)) for v in values) * len(values) > 40
        texts = [shortened(value_text(v), 22) for v in values]
        labels = ax.set_xticks(range(len(values)), texts, rotation=30 if steep else 0,
                               ha="right" if steep else "center")  # fmt: skip
        for tick in labels:
            tick.label1.set_parse_math(False)
        ax.set_xlim(-0.6, len(values) - 0.4)


def _aside(i: int, n: int) -> float:
    return 0.0 if n == 1 else 0.5 * (i / (n - 1) - 0.5)


def _style(i: int) -> dict[str, Any]:
    colour = PALETTE[i % len(PALETTE)]
    return {"color": colour, "ls": DASHES[i // len(PALETTE) % len(DASHES)]}


def _evenly(n: int, most: int) -> list[int]:
    """At most `most` of n places, the first and the last among them."""
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})
