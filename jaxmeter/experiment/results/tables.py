"""Configurations side by side: mean and spread over seeds, each number formatted once."""

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text
from tabulate import DataRow, Line, TableFormat, tabulate

from jaxmeter.experiment.results.finished import listed
from jaxmeter.experiment.results.tidy_table import DRAWN, of_role, varying
from jaxmeter.report import columns
from jaxmeter.report.columns import RATE
from jaxmeter.report.wording import clean

# tabulate's own would escape the formulas that figures are.
_BOOKTABS = TableFormat(
    lineabove=lambda widths, sides: (
        rf"\begin{{tabular}}{{{''.join(side[0] for side in sides)}}}" + "\n\\toprule"
    ),
    linebelowheader=Line(r"\midrule", "", "", ""),
    linebetweenrows=None,
    linebelow=Line("\\bottomrule\n\\end{tabular}", "", "", ""),
    headerrow=DataRow("", " & ", r" \\"),
    datarow=DataRow("", " & ", r" \\"),
    padding=0,
    with_header_hide=None,
)
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
        rows = [[_markdown(t) for t in self._texts(line, _plain)] for line in self.lines]
        return f"{self._tabulated(map(_markdown, self.heads), rows, 'pipe')}\n\n{self.caption}\n"

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
        texts = len(self.by)
        rows = [
            [_latex(text) if i < texts else text for i, text in enumerate(self._texts(line, _math))]
            for line in self.lines
        ]
        tabular = self._tabulated(map(_latex, self.heads), rows, _BOOKTABS)
        return f"% {self.caption}\n{tabular}\n"

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

    def _tabulated(
        self, heads: Iterable[str], rows: Sequence[Sequence[str]], form: str | TableFormat
    ) -> str:
        """Text as it is, and numbers to the right."""
        sides = ["left"] * len(self.by) + ["right"] * (1 + len(self.metrics))
        return tabulate(rows, [*heads], form, colalign=sides, disable_numparse=True)

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
        wanted |= dict.fromkeys(n for n in columns.named(metric).names if n in table.column_names)
    values_of = {name: table[name].to_pylist() for name in wanted}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, values in enumerate(zip(*(values_of[n] for n in by), strict=True) if by else
                               [()] * len(table)):  # fmt: skip
        groups.setdefault(values, []).append(i)
    lines = [
        TableRow(values, len(rows), tuple(_cell(values_of, metric, rows) for metric in metrics))
        for values, rows in groups.items()
    ]
    return Comparison(by=by, metrics=metrics, lines=tuple(lines))


def default_axes(table: pa.Table) -> list[str]:
    """The config fields that vary, but those whose values are draws of the same; the attack."""
    return [*(name for name in varying(table) if name not in DRAWN), "attack"]


def default_metrics(table: pa.Table) -> list[str]:
    """AUC, TPR at each FPR, accuracy, and what else is `compared`, if some run has a figure."""
    known = (n for n in of_role(table, "metric") if table[n].null_count < len(table))
    found = [column for column in map(columns.named, known) if column.compared is not None]
    return [column.name for column in sorted(found, key=lambda column: column.compared or 0)]


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
    return columns.named(metric).format.digits is RATE.digits


def heading(metric: str) -> str:
    """A metric's name for reading.

    >>> heading("tpr_at_0.01"), heading("auc")
    ('TPR at 1% FPR (%)', 'AUC')
    """
    return columns.named(metric).metric


def value_text(value: Any) -> str:
    """A value of a config field, for reading."""
    return "–" if value is None else clean(value)


def cell_text(metric: str, cell: Cell) -> str:
    """A cell for reading: "0.712 ± 0.013", or with the interval of a single run."""
    return _plain(metric, cell)


def _cell(values_of: dict[str, list[Any]], metric: str, rows: list[int]) -> Cell:
    values = [float(v) for i in rows if (v := values_of[metric][i]) is not None]
    if not values:
        return Cell(0, len(rows), None, None, None, None)
    finite = all(map(math.isfinite, values))
    mean = statistics.fmean(values) if finite else sum(values) / len(values)
    if len(values) > 1:
        std = statistics.stdev(values) if finite else math.nan
        return Cell(len(values), len(rows), mean, std, None, None)
    low, high = (
        next((v for i in rows if (v := values_of[name][i]) is not None), None)
        if name in values_of
        else None
        for name in (f"{metric}_low", f"{metric}_high")
    )
    return Cell(1, len(rows), mean, None, low, high)


# --- Numbers as text.


def _parts(metric: str, cell: Cell) -> tuple[str, str, tuple[str, str] | None, str]:
    """Mean, spread, interval, and how many of the runs have the figure if not all."""
    assert cell.mean is not None
    digits = columns.named(metric).format.digits
    spread = "" if cell.std is None else digits(cell.std)
    interval = None
    if cell.low is not None and cell.high is not None:
        interval = digits(cell.low), digits(cell.high)
    some = f"({cell.n} of {cell.runs})" if cell.n < cell.runs else ""
    return digits(cell.mean), spread, interval, some


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
