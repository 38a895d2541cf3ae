"""A study as static HTML: an index with its tables and figures, and a report for every run.

No page needs the network or a server. The index has one short script, which sorts tables and is
allowed by its hash; without it everything is still there.
"""

import base64
import hashlib
import html
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa

from jaxmeter.experiment.results.finished import DamagedRun, Finished, Unfinished, replaced
from jaxmeter.experiment.results.reports import report
from jaxmeter.experiment.results.tables import Comparison, cell_text, value_text
from jaxmeter.experiment.results.tidy_table import of_role, varying
from jaxmeter.experiment.store.files import MALFORMED, read
from jaxmeter.experiment.store.store import StoreWarning
from jaxmeter.report import folder as report_folder
from jaxmeter.report.columns import AUC
from jaxmeter.report.markup import CSS, figure
from jaxmeter.report.wording import clean, plural

_HERE = Path(__file__).parent
_CSS = CSS + (_HERE / "study.css").read_text("utf-8")
_JS = (_HERE / "study.js").read_text("utf-8")
_MARK = "jaxmeter-inputs"
_READ = ("config.json", "results.json", "scores.npz", "cost.json")
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
    said = f"{plural(len(runs), 'finished run')}, {plural(len(attacks), 'attack')}"
    counts = {
        s: sum(run.state == s for run in unfinished) for s in ("failed", "running", "damaged")
    }
    said += "".join(f", {count} {state}" for state, count in counts.items() if count)
    other = len(unfinished) - sum(counts.values())
    said += f", {other} in another state" if other else ""
    body = [
        f'<header>\n<p class="kicker">Membership inference study</p>\n<h1>{_text(study)}</h1>\n'
        f'<p class="target">{_text(said)}.</p>\n</header>',
        _section("axes", "What was swept", _axes(table)),
        _section("comparison", "Configurations side by side", _comparison(comparison)),
        *([_section("figures", "Figures", _figures(figures))] if figures else []),
        _section("runs", "Runs", _runs(table, reports)),
    ]
    if unfinished:
        body.append(_section("unfinished", "Runs without results", _unfinished(unfinished)))
    allowed = base64.b64encode(hashlib.sha256(_JS.encode()).digest()).decode()
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'\">\n"
        f"<title>{_text(study)}: membership inference study</title>\n<style>\n{_CSS}</style>\n"
        "</head>\n<body>\n<main>\n" + "\n".join(body) + "\n</main>\n<footer>Written by jaxmeter. "
        "Intervals are 95%. A spread over seeds says how training again changes a figure; an "
        "interval says how other records would.</footer>\n"
        f"<script>{_JS}</script>\n</body>\n</html>\n"
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
    """The code that draws reports, by the hash of its files."""
    place = _HERE.parents[1]
    room = place / "report"
    beside = (place / "metrics.py", place / "terminal.py", place / "attacks/interface.py")
    files = [*room.rglob("*.py"), *room.rglob("*.css"), *beside, _HERE / "reports.py"]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _has(path: Path, mark: str) -> bool:
    try:
        with path.open("rb") as file:
            return f'name="{_MARK}" content="{mark}"'.encode() in file.read(4096)
    except OSError:
        return False


# --- Sections.


def _axes(table: pa.Table) -> str:
    rows = []
    for name in varying(table):
        values = list(dict.fromkeys(map(value_text, table[name].to_pylist())))
        shown = ", ".join(values[:_MOST_VALUES])
        more = f", … ({len(values)} values)" if len(values) > _MOST_VALUES else ""
        rows.append(f"<dt>{_text(name)}</dt><dd>{_text(shown + more)}</dd>")
    fixed = [name for name in of_role(table, "config") if len(table[name].unique()) == 1]
    same = "".join(
        f"<dt>{_text(n)}</dt><dd>{_text(value_text(table[n][0].as_py()))}</dd>\n" for n in fixed
    )
    swept = "<dl>\n" + "\n".join(rows) + "\n</dl>" if rows else _p("Nothing: all runs are alike.")
    return (
        f"{swept}<details><summary>What is the same in all runs</summary><dl>{same}</dl></details>"
    )


def _comparison(comparison: Comparison) -> str:
    n = len(comparison.by)
    rows = []
    for line in comparison.lines:
        cells = [_td(value_text(v), v, text=True) for v in line.values]
        cells.append(_td(str(line.runs), line.runs))
        cells += [
            _td(cell_text(metric, cell), cell.mean)
            for metric, cell in zip(comparison.metrics, line.cells, strict=True)
        ]
        rows.append(cells)
    return _table(comparison.heads, n, rows) + _p(comparison.caption)


def _runs(table: pa.Table, reports: Mapping[str, str]) -> str:
    axes = varying(table)
    columns = {name: table[name].to_pylist() for name in ("run", "attack", "access", "auc", *axes)}
    columns["seconds"] = table["seconds"].to_pylist()
    best: dict[str, int] = {}
    for i, run in enumerate(columns["run"]):
        rank = (columns["access"][i] != "blind", columns["auc"][i])
        if run not in best or rank > (
            columns["access"][best[run]] != "blind",
            columns["auc"][best[run]],
        ):
            best[run] = i
    rows = []
    for run, i in best.items():
        name = _text(run)
        if run in reports:
            name = f'<a href="{html.escape(reports[run])}">{name}</a>'
        seconds = columns["seconds"][i]
        rows.append(
            [
                f'<td class="text" data-value="{_text(run)}"><code>{name}</code></td>',
                *(_td(value_text(columns[a][i]), columns[a][i], text=True) for a in axes),
                _td(columns["attack"][i], columns["attack"][i], text=True),
                _td(AUC.format.text(columns["auc"][i]), columns["auc"][i]),
                _td("–" if seconds is None else f"{seconds:.1f}", seconds),
            ]
        )
    heads = ["run", *axes, "best attack", f"its {AUC.heading}", "seconds"]
    note = "The best attack is the one with the largest AUC in that run: a little too high for it."
    return _table(heads, len(axes) + 2, rows) + _p(note)


def _unfinished(runs: Sequence[Unfinished]) -> str:
    rows = [
        [_td(run.name, run.name, text=True), _td(run.state, run.state, text=True),
         _td(run.reason, run.reason, text=True)]
        for run in runs
    ]  # fmt: skip
    return _table(["run", "state", "why"], 3, rows)


def _figures(figures: Mapping[str, tuple[str, str]]) -> str:
    drawn = {name: svg for name, (_, svg) in figures.items()}
    shown = [
        f"<div>{figure(name, drawn, text)}{_p(text)}</div>" for name, (text, _) in figures.items()
    ]
    return f'<div class="figures">{"".join(shown)}</div>'


# --- Pieces.


def _table(heads: Sequence[str], texts: int, rows: Sequence[Sequence[str]]) -> str:
    head = "".join(
        f'<th scope="col"{" class=text" if i < texts else ""}>{_text(name)}</th>'
        for i, name in enumerate(heads)
    )
    lines = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<div class="scroll"><table class="sheet">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _td(shown: str, value: Any, text: bool = False) -> str:
    kind = ' class="text"' if text else ""
    sortable = "" if value is None else _text(value)
    return f'<td{kind} data-value="{sortable}">{_text(shown)}</td>'


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}">\n<h2>{_text(title)}</h2>\n{content}\n</section>'


def _p(text: str) -> str:
    return f'<p class="caption">{_text(text)}</p>' if text else ""


def _text(text: Any) -> str:
    return html.escape(clean(text))


def slug(name: str) -> str:
    """A name for files and for a page's elements: letters, digits and hyphens.

    >>> slug("target.learning_rate")
    'target-learning-rate'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"
