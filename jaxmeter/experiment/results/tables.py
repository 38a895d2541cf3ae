"""Configurations side by side: mean and spread over seeds, each number formatted once."""

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from jaxmeter.experiment.results.finished import listed
from jaxmeter.experiment.results.tidy_table import DRAWN, OVER_TARGETS, of_role, varying
from jaxmeter.report.wording import clean, rate_name

_LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--"},
    **{character: f"\\{character}" for character in "&%$#_{}"},
    # At the start of a row these would be arguments of the rule or line break before it.
    **{character: f"{{{character}}}" for character in "[]*"},
}
# What GitHub's Markdown reads as markup: also of links without brackets, formulas and emoji.
_MARKDOWN = re.compile(r"[\\|*_`<>\[\]!&~$:@]|(?<=www)\.", re.IGNORECASE)
_FIGURES = re.compile(r"[-\d\s.,±%\[\]]*")  # our own: no markup comes of them
# What spreadsheets read as the start of a formula, in the full width of Asian scripts too.
_FORMULA = tuple("=+-@＝＋－＠")


class Cell(NamedTuple):
    """A metric of one configuration.

    Attributes:
      n: runs that have the figure.
      runs: runs of the configuration.
      mean: over those runs; None if there is none.
      std: their standard deviation (n - 1 in the denominator); None for one run.
      low: lower end of the 95% interval of a single run; None for several, or where it has none.
      high: upper end.
    """

    n: int
    runs: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None


class TableRow(NamedTuple):
    """One configuration: its values of `by`, its runs, and a cell a metric."""

    values: tuple[Any, ...]
    runs: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Configurations by their values of some columns.

    Attributes:
      by: the columns that tell configurations apart.
      metrics: the columns compared.
      lines: configurations in the order of the tidy table.
    """

    by: tuple[str, ...]
    metrics: tuple[str, ...]
    lines: tuple[TableRow, ...]

    def rich(self) -> Table:
        """For a terminal or a notebook."""
        table = Table(box=box.SIMPLE_HEAD, caption=self.caption, caption_justify="left")
        heads = self.heads
        for i, head in enumerate(heads):
            table.add_column(Text(head), justify="left" if i < len(self.by) else "right")
        for line in self.lines:
            table.add_row(*(Text(text) for text in self._texts(line, _plain)))
        return table

    def markdown(self) -> str:
        """A table of GitHub's Markdown, and its caption."""
        heads = [_markdown(head) for head in self.heads]
        rule = ["---"] * len(self.by) + ["---:"] * (len(heads) - len(self.by))
        rows = [[_markdown(t) for t in self._texts(line, _plain)] for line in self.lines]
        lines = [f"| {' | '.join(row)} |" for row in (heads, rule, *rows)]
        return "\n".join([*lines, "", self.caption, ""])

    def csv(self) -> str:
        """Unrounded: for every metric its mean, std, n, and the interval of a single run.

        A text that a spreadsheet would take for a formula has an apostrophe before it.
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        kinds = ("mean", "std", "n", "low", "high")
        figures = [f"{metric}_{kind}" for metric in self.metrics for kind in kinds]
        writer.writerow(map(_csv, [*self.by, "runs", *figures]))
        for line in self.lines:
            figures = [
                "" if (value := getattr(cell, kind)) is None else repr(value)
                for cell in line.cells
                for kind in kinds
            ]
            writer.writerow([*map(_csv, line.values), line.runs, *figures])
        return file.getvalue()

    def latex(self) -> str:
        r"""A `tabular` for the package booktabs."""
        columns = "l" * len(self.by) + "r" * (1 + len(self.metrics))
        heads = " & ".join(map(_latex, self.heads))
        rows = [
            " & ".join(
                text if i >= len(self.by) + 1 else _latex(text)
                for i, text in enumerate(self._texts(line, _math))
            )
            for line in self.lines
        ]
        return "\n".join(
            [
                f"% {self.caption}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                rf"{heads} \\",
                r"\midrule",
                *(rf"{row} \\" for row in rows),
                r"\bottomrule",
                r"\end{tabular}",
                "",
            ]
        )

    @property
    def heads(self) -> list[str]:
        """The columns' headings."""
        return [*(clean(name) for name in self.by), "runs", *(heading(m) for m in self.metrics)]

    @property
    def caption(self) -> str:
        """How to read the cells."""
        said = []
        if any(cell.std is not None for line in self.lines for cell in line.cells):
            said.append("Mean ± standard deviation over a configuration's runs.")
        if any(cell.low is not None for line in self.lines for cell in line.cells):
            said.append("In brackets the 95% interval of a single run.")
        if any(cell.mean is None for line in self.lines for cell in line.cells):
            said.append("–: cannot be resolved with so few records.")
        return " ".join(said)

    def _texts(self, line: TableRow, written: Callable[[str, Cell], str]) -> list[str]:
        cells = [written(m, cell) for m, cell in zip(self.metrics, line.cells, strict=True)]
        return [*map(value_text, line.values), str(line.runs), *cells]


def compared(
    table: pa.Table,
    *,
    by: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
) -> Comparison:
    """Groups a tidy table.

    Args:
      table: from `tidy`.
      by: columns that tell configurations apart; None for those config fields that vary, without
        the seed, and the attack. Runs that differ elsewhere are averaged over.
      metrics: columns of numbers; None for AUC, TPR at each FPR of the reports, and accuracy.

    Raises:
      ValueError: for a column that the table does not have (naming the nearest), or a metric that
        is no number.
    """
    by = tuple(default_axes(table) if by is None else by)
    metrics = tuple(default_metrics(table) if metrics is None else metrics)
    for name in (*by, *metrics):
        check_column(table, name)
    for name in metrics:
        check_numeric(table, name)
    wanted = dict.fromkeys((*by, *metrics))
    for metric in metrics:
        wanted |= dict.fromkeys(n for n in _bounds(metric) if n in table.column_names)
    columns = {name: table[name].to_pylist() for name in wanted}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, values in enumerate(zip(*(columns[n] for n in by), strict=True) if by else
                               [()] * len(table)):  # fmt: skip
        groups.setdefault(values, []).append(i)
    lines = [
        TableRow(values, len(rows), tuple(_cell(columns, metric, rows) for metric in metrics))
        for values, rows in groups.items()
    ]
    return Comparison(by=by, metrics=metrics, lines=tuple(lines))


def default_axes(table: pa.Table) -> list[str]:
    """The config fields that vary, but those whose values are draws of the same; the attack."""
    return [*(name for name in varying(table) if name not in DRAWN), "attack"]


def default_metrics(table: pa.Table) -> list[str]:
    """AUC, TPR at each FPR for which some run has a figure, accuracy."""
    figures = (name for name in of_role(table, "metric") if OVER_TARGETS not in name)
    rates = [name for name in figures if name.startswith("tpr_at_")]
    return ["auc", *(n for n in rates if table[n].null_count < len(table)), "accuracy"]


def check_column(table: pa.Table, name: str) -> None:
    """Raises ValueError for an unknown column, naming the nearest."""
    if name not in table.column_names:
        raise ValueError(
            f"there is no column {name!r}. Nearest: {listed(table.column_names, name)}."
        )


def check_numeric(table: pa.Table, name: str) -> None:
    """Raises ValueError for a column that holds no numbers."""
    kind = table.schema.field(name).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        numbers = [f.name for f in table.schema if pa.types.is_floating(f.type)]
        raise ValueError(
            f"column {name!r} holds {kind}, of which there is no mean. Choose a column of numbers: "
            f"{listed(numbers, name)}."
        )


def is_rate(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric.startswith("tpr_at_") or metric.endswith("accuracy")


def heading(metric: str) -> str:
    """A metric's name for reading.

    >>> heading("tpr_at_0.01"), heading("auc")
    ('TPR at 1% FPR (%)', 'AUC')
    """
    name, over, part = metric.partition(OVER_TARGETS)
    if over:
        return f"{heading(name)}, {part} over reference models"
    if metric.startswith("tpr_at_"):
        return f"TPR at {rate_name(float(metric.removeprefix('tpr_at_')))} FPR (%)"
    known = {
        "auc": "AUC",
        "accuracy": "balanced accuracy (%)",
        "train_accuracy": "train accuracy (%)",
        "test_accuracy": "test accuracy (%)",
        "epsilon": "epsilon, at least",
        "seconds": "seconds",
    }
    return known.get(metric) or clean(metric)


def value_text(value: Any) -> str:
    """A value of a config field, for reading."""
    return "–" if value is None else clean(value)


def cell_text(metric: str, cell: Cell) -> str:
    """A cell for reading: "0.712 ± 0.013", or with the interval of a single run."""
    return _plain(metric, cell)


def _bounds(metric: str) -> tuple[str, str]:
    return f"{metric}_low", f"{metric}_high"


def _cell(columns: dict[str, list[Any]], metric: str, rows: list[int]) -> Cell:
    values = [float(v) for i in rows if (v := columns[metric][i]) is not None]
    if not values:
        return Cell(0, len(rows), None, None, None, None)
    finite = all(map(math.isfinite, values))
    mean = statistics.fmean(values) if finite else sum(values) / len(values)
    if len(values) > 1:
        std = statistics.stdev(values) if finite else math.nan
        return Cell(len(values), len(rows), mean, std, None, None)
    low, high = (
        next((columns[name][i] for i in rows if columns[name][i] is not None), None)
        if name in columns
        else None
        for name in _bounds(metric)
    )
    return Cell(1, len(rows), mean, None, low, high)


# --- Numbers as text: the digits are chosen here and nowhere else.


def _digits(metric: str, value: float) -> str:
    if is_rate(metric):
        return f"{100 * value:.1f}"
    if metric.startswith("auc"):
        return f"{value:.3f}"
    return f"{value:.2f}" if metric == "epsilon" else f"{value:.4g}"


def _parts(metric: str, cell: Cell) -> tuple[str, str, tuple[str, str] | None, str]:
    """Mean, spread, interval, and how many of the runs have the figure if not all."""
    assert cell.mean is not None
    spread = "" if cell.std is None else _digits(metric, cell.std)
    interval = None
    if cell.low is not None and cell.high is not None:
        interval = _digits(metric, cell.low), _digits(metric, cell.high)
    some = f"({cell.n} of {cell.runs})" if cell.n < cell.runs else ""
    return _digits(metric, cell.mean), spread, interval, some


def _plain(metric: str, cell: Cell) -> str:
    if cell.mean is None:
        return "–"
    mean, spread, interval, some = _parts(metric, cell)
    said = [mean, f"± {spread}" if spread else "", f"[{', '.join(interval)}]" if interval else ""]
    return " ".join(filter(None, [*said, some]))


def _math(metric: str, cell: Cell) -> str:
    if cell.mean is None:
        return "--"
    mean, spread, interval, some = _parts(metric, cell)
    said = [mean, rf"\pm {spread}" if spread else "",
            rf"\;[{', '.join(interval)}]" if interval else ""]  # fmt: skip
    return f"${' '.join(filter(None, said))}$" + (f" {some}" if some else "")


def _csv(value: Any) -> str:
    text = "" if value is None else clean(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _markdown(text: str) -> str:
    return text if _FIGURES.fullmatch(text) else _MARKDOWN.sub(r"\\\g<0>", text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
