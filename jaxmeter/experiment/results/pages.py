"""A study as static HTML: an index with its tables and figures, and a report for every run.

No page needs the network or a server. The index has one short script, which sorts tables and is
allowed by its hash; without it everything is still there. Its words are in `templates/study.html`.
"""

import base64
import hashlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from markupsafe import Markup

from jaxmeter.experiment.results.finished import DamagedRun, Finished, Unfinished, replaced
from jaxmeter.experiment.results.reports import report
from jaxmeter.experiment.results.tables import Comparison, cell_text, value_text
from jaxmeter.experiment.results.tidy_table import of_role, varying
from jaxmeter.experiment.store.files import MALFORMED, read
from jaxmeter.experiment.store.fingerprint import code_version, content_of, digest
from jaxmeter.experiment.store.store import StoreWarning
from jaxmeter.report import folder as report_folder
from jaxmeter.report.columns import AUC
from jaxmeter.report.markup import CSS, TEMPLATES, figure, rendered
from jaxmeter.report.wording import plural

_TEMPLATES = Path(__file__).parent / "templates"
_CSS = CSS + (_TEMPLATES / "study.css").read_text("utf-8")
_JS = (_TEMPLATES / "study.js").read_text("utf-8")
_MARK = "jaxmeter-inputs"
_READ = ("config.json", "results.json", "scores.npz", "cost.json")
_DRAWN_BY = ("jaxmeter.experiment.results.reports", "jaxmeter.report.folder")
_MOST_VALUES = 12


def index_page(
    study: str,
    table: pa.Table,
    comparison: Comparison,
    figures: Mapping[str, tuple[str, str]],
    unfinished: Sequence[Unfinished],
    reports: Mapping[str, str],
) -> str:
    """The index of a study.

    Args:
      study: its name.
      table: its tidy table, one row or more.
      comparison: configurations side by side.
      figures: (description, SVG file) by a name of letters, digits and hyphens.
      unfinished: runs without results.
      reports: run -> address of its report's page, for runs that have one.
    """
    runs = list(dict.fromkeys(table["run"].to_pylist()))
    attacks = list(dict.fromkeys(table["attack"].to_pylist()))
    counted = f"{plural(len(runs), 'finished run')}, {plural(len(attacks), 'attack')}"
    counts = {
        s: sum(run.state == s for run in unfinished) for s in ("failed", "running", "damaged")
    }
    counted += "".join(f", {count} {state}" for state, count in counts.items() if count)
    other = len(unfinished) - sum(counts.values())
    counted += f", {other} in another state" if other else ""
    drawn = {name: svg for name, (_, svg) in figures.items()}
    return rendered(
        "study.html",
        _TEMPLATES,
        css=Markup(_CSS),
        script=Markup(_JS),
        allowed=base64.b64encode(hashlib.sha256(_JS.encode()).digest()).decode(),
        study=study,
        counted=counted,
        axes=[(name, _values(table[name].to_pylist())) for name in varying(table)],
        same=[
            (name, value_text(table[name][0].as_py()))
            for name in of_role(table, "config")
            if len(table[name].unique()) == 1
        ],
        comparison=_comparison(comparison),
        caption=comparison.caption,
        figures=[(figure(name, drawn, text), text) for name, (text, _) in figures.items()],
        runs=_runs(table, reports),
        unfinished=SortableTable(
            ["run", "state", "why"],
            3,
            [[SortableCell.of(text) for text in run] for run in unfinished],
        ),
    )


def write_reports(
    runs: Sequence[Finished],
    out: str | PathLike[str],
    progress: Callable[[str, int, int], None] | None = None,
    *,
    shared: bool = False,
) -> dict[str, Path]:
    """Writes `out/<run>.html` for every run: the page that `Report.save` would have written.

    A page is made from the run's files, and carries their hash; where it has the hash of the files
    as they are, it is left alone. Takes a second or two a page.

    Returns:
      The pages by run. A run of which a file is damaged has none, and is named in a
      `StoreWarning`.

    Raises:
      OSError: if `out` may not be written.
    """
    pages = {}
    for i, run in enumerate(runs):
        if progress:
            progress("reports", i, len(runs))
        path = Path(out) / f"{run.name}.html"
        try:
            mark = _mark(run)
            if not _has(path, mark):
                written = _html(run)
                tag = f'<meta name="{_MARK}" content="{mark}">\n<title>'
                content = written.replace("<title>", tag, 1).encode("utf-8")
                replaced(path, content, shared=shared)
            pages[run.name] = path
        except DamagedRun as damage:
            path.unlink(missing_ok=True)
            warnings.warn(f"{run.name} has no report: {damage}", StoreWarning, stacklevel=2)
    if progress:
        progress("reports", len(runs), len(runs))
    return pages


def _html(run: Finished) -> str:
    """The page of a run's report; what its files hold may be anything."""
    opened = report(run)
    try:
        return report_folder.html(opened, opened.facts()).decode("utf-8")
    except (*MALFORMED, ValueError) as error:
        raise DamagedRun(f"there is no report to be made of its files: {error!r}") from error


def _mark(run: Finished) -> str:
    """The hash of what a report is made from: the run's files and this package."""
    digest = hashlib.sha256(_package().encode())
    for name in _READ:
        try:
            digest.update(hashlib.sha256(read(run.folder / name)).digest())
        except OSError as error:
            raise DamagedRun(f"{name} cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def _package() -> str:
    """What draws reports: the code by what it does, templates and style sheets by their bytes."""
    return digest([code_version(*_DRAWN_BY), content_of(TEMPLATES)])


def _has(path: Path, mark: str) -> bool:
    try:
        with path.open("rb") as file:
            return f'name="{_MARK}" content="{mark}"'.encode() in file.read(4096)
    except OSError:
        return False


# --- Tables.


class SortableCell(NamedTuple):
    """A cell of a table that can be sorted: what it shows, and the value that it is sorted by."""

    shown: str
    value: Any
    is_text: bool = False
    is_name: bool = False
    link: str | None = None

    @classmethod
    def of(cls, value: Any) -> "SortableCell":
        """A value of a config field, or a text."""
        return cls(value_text(value), value, is_text=True)


class SortableTable(NamedTuple):
    """A table: its headings, how many columns are text, from the left, and its rows."""

    heads: Sequence[str]
    texts: int
    rows: Sequence[Sequence[SortableCell]]


def _values(values: Sequence[Any]) -> str:
    texts = list(dict.fromkeys(map(value_text, values)))
    more = f", … ({len(texts)} values)" if len(texts) > _MOST_VALUES else ""
    return ", ".join(texts[:_MOST_VALUES]) + more


def _comparison(comparison: Comparison) -> SortableTable:
    rows = []
    for line in comparison.lines:
        cells = [*map(SortableCell.of, line.values), SortableCell(str(line.runs), line.runs)]
        cells += [
            SortableCell(cell_text(metric, cell), cell.mean)
            for metric, cell in zip(comparison.metrics, line.cells, strict=True)
        ]
        rows.append(cells)
    return SortableTable(comparison.heads, len(comparison.by), rows)


def _runs(table: pa.Table, reports: Mapping[str, str]) -> SortableTable:
    """Each run with its best attack, of those that query the target if there are any."""
    axes = varying(table)
    names = dict.fromkeys(("run", "attack", "access", "auc", "seconds", *axes))
    best: dict[str, tuple[tuple[bool, float], dict[str, Any]]] = {}
    for row in table.select(list(names)).to_pylist():
        rank = (row["access"] != "blind", row["auc"])
        if row["run"] not in best or rank > best[row["run"]][0]:
            best[row["run"]] = rank, row
    rows = []
    for run, (_, row) in best.items():
        seconds = row["seconds"]
        rows.append(
            [
                SortableCell(run, run, is_text=True, is_name=True, link=reports.get(run)),
                *(SortableCell.of(row[axis]) for axis in axes),
                SortableCell.of(row["attack"]),
                SortableCell(AUC.format.text(row["auc"]), row["auc"]),
                SortableCell("–" if seconds is None else f"{seconds:.1f}", seconds),
            ]
        )
    heads = ["run", *axes, "best attack", f"its {AUC.heading}", "seconds"]
    return SortableTable(heads, len(axes) + 2, rows)


def slug(name: str) -> str:
    """A name for files and for a page's elements: letters, digits and hyphens.

    >>> slug("target.learning_rate")
    'target-learning-rate'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"
