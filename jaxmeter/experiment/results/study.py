"""Reading a store: the tidy table of a study, comparisons, figures, pages, event files.

Everything here reads finished runs, and writes only below `STORE/studies/<study>/` or where it is
told to. For a store at a URL that folder is `jaxmeter-studies/<study>/` below the current one: of
what is shown, nothing goes to the URL. What is written can be removed and made again at any time.
"""

import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jaxmeter.experiment.results import figures as study_figures
from jaxmeter.experiment.results import finished, pages, tables, tensorboard, tidy_table
from jaxmeter.experiment.results import reports as run_reports
from jaxmeter.experiment.results.finished import AnyStore, DamagedRun, Finished, Unfinished
from jaxmeter.experiment.results.tables import Comparison
from jaxmeter.experiment.store.files import MALFORMED
from jaxmeter.experiment.store.store import StoreWarning, opened
from jaxmeter.report.folder import rendered

# What comes of a summary that holds something else than a run's, though it has its hash.
_ODD = (*MALFORMED, ValueError, pa.ArrowException)
_MOST_ATTACKS = 6  # panels of a figure of ROC curves
Held = tuple[Finished, run_reports.Scores]
Progress = Callable[[str, int, int], None]


def tidy(store: AnyStore, study: str | None = None) -> pa.Table:
    """One row a run and attack: every config field, figure with interval, budget and cost.

    Columns: `run`, `study`, the config's fields by dotted name (typed where all runs agree, else
    text), then those of `jaxmeter.report.columns.COLUMNS`, which `docs/stores.md` lists. A figure
    that the held-out records cannot resolve is null. A config field of one of these names has
    "config." before it.

    Args:
      store: the store, its folder or its URL.
      study: its name; None for all studies of the store.

    Returns:
      Rows in the order of study, swept fields, seed, run, and attack as configured.

    Raises:
      FileNotFoundError: if the store holds no runs.
      ValueError: for an unknown study, or if no run has finished. Damaged runs are left out, and
        named in a `StoreWarning`.
    """
    with finished.uncollected():
        return _tabulated(finished.runs(store, study).finished)[0]


def write(
    store: AnyStore, study: str | None = None, out: str | PathLike[str] | None = None
) -> list[Path]:
    """Writes the tidy table of each study as one Parquet file, whole or not at all.

    Args:
      store: the store, its folder or its URL.
      study: its name; None for every study of the store.
      out: the file, for one study; None for `STORE/studies/<study>/results.parquet`.

    Returns:
      The files.

    Raises:
      ValueError: if `out` is given for several studies; and what `tidy` raises.
    """
    store = opened(store)
    found = finished.runs(store, study).finished
    studies = list(dict.fromkeys(run.study for run in found))
    if out is not None and len(studies) > 1:
        raise ValueError(
            f"one file was named for {len(studies)} studies ({', '.join(studies[:5])}), and each "
            "has a table of its own. Name the study, or leave the file's name out."
        )
    written = []
    for each in studies:
        table, _, _ = _tabulated([run for run in found if run.study == each])
        path = (
            finished.results_folder(store, each) / "results.parquet" if out is None else Path(out)
        )
        written.append(finished.replaced(path, finished.parquet(table), shared=store.shared))
    return written


def table(
    store: AnyStore,
    study: str | None = None,
    *,
    by: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
) -> Comparison:
    """Configurations side by side, with mean and spread over seeds; see `compared`."""
    return tables.compared(tidy(store, study), by=by, metrics=metrics)


def write_table(
    comparison: Comparison, out: str | PathLike[str], *, shared: bool = False
) -> list[Path]:
    """Writes a comparison as `out/table.md`, `out/table.csv` and `out/table.tex`.

    New files are their owner's alone, or as the umask has it if they are `shared`.
    """
    texts = {"md": comparison.markdown(), "csv": comparison.csv(), "tex": comparison.latex()}
    return [
        finished.replaced(Path(out) / f"table.{suffix}", text.encode("utf-8"), shared=shared)
        for suffix, text in texts.items()
    ]


def plot(
    store: AnyStore,
    study: str,
    *,
    out: str | PathLike[str] | None = None,
    by: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
) -> list[Path]:
    """Draws ROC families, and each metric against each swept field, as PNG and SVG.

    Args:
      store: the store, its folder or its URL.
      study: its name.
      out: a folder; None for `STORE/studies/<study>/figures`.
      by: columns that tell configurations apart; None as for `table`.
      metrics: for the figures against swept fields; None as for `table`.
      attacks: those drawn; None for the six with the largest mean AUC among the ROC curves, and
        all elsewhere.

    Returns:
      The files written, the same bytes for the same runs.

    Raises:
      ValueError: for an unknown column or attack; and what `tidy` raises. Runs whose `scores.npz`
        is damaged are left out, and named in a `StoreWarning`.
    """
    store = opened(store)
    place = finished.results_folder(store, study, "figures") if out is None else Path(out)
    held, damaged = _held(finished.runs(store, study).finished, study)
    if damaged:
        _warn("the figures", damaged)
    drawn = _drawn(held, by, metrics, attacks)
    written = []
    for name, (_, figure) in drawn.items():
        for suffix in ("png", "svg"):
            content = rendered(figure, suffix, fonttype="path")
            path = place / f"{name}.{suffix}"
            written.append(finished.replaced(path, content, shared=store.shared))
    return written


def index(
    store: AnyStore,
    study: str,
    *,
    out: str | PathLike[str] | None = None,
    reports: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Writes a study's index as static HTML, with a report page for every run.

    The index holds the swept fields, the comparison, figures, and every run with a link to its
    report; it can be moved together with its folder `reports`.

    Args:
      store: the store, its folder or its URL.
      study: its name.
      out: a folder; None for `STORE/studies/<study>`.
      reports: whether to write reports that are missing or out of date, a second or two each.
      progress: called as `progress("reports", done, total)`.

    Returns:
      The file `index.html`.

    Raises:
      ValueError, FileNotFoundError: as `tidy`.
    """
    store = opened(store)
    place = finished.results_folder(store, study) if out is None else Path(out)
    pages_folder = (
        finished.results_folder(store, study, "reports") if out is None else place / "reports"
    )
    found = finished.runs(store, study)
    held, damaged = _held(found.finished, study)
    kept = [run for run, _ in held]
    if reports:
        pages.write_reports(kept, pages_folder, progress, shared=store.shared)
    links = {
        run.name: f"reports/{run.name}.html"
        for run in kept
        if (pages_folder / f"{run.name}.html").exists()
    }
    tidied = tidy_table.tabulated(kept)
    figures = {
        name: (text, rendered(figure, "svg", fonttype="none").decode())
        for name, (text, figure) in _drawn(held, None, None, None).items()
    }
    unfinished = sorted([*found.unfinished, *damaged])
    html = pages.index_page(study, tidied, tables.compared(tidied), figures, unfinished, links)
    content = html.encode("utf-8", "backslashreplace")
    return finished.replaced(place / "index.html", content, shared=store.shared)


def write_events(store: AnyStore, study: str, out: str | PathLike[str] | None = None) -> list[Path]:
    """Writes TensorBoard event files of every fit, by default to `STORE/studies/<study>/events`.

    Look at them with `tensorboard --logdir` and that folder. See `tensorboard.write_events`.
    """
    store = opened(store)
    place = finished.results_folder(store, study, "events") if out is None else Path(out)
    return tensorboard.write_events(
        finished.runs(store, study).finished, place, shared=store.shared
    )


def _tabulated(
    runs: Sequence[Finished],
) -> tuple[pa.Table, Sequence[Finished], list[Unfinished]]:
    """The tidy table, the runs in it, and those that hold something else than a run's figures.

    Runs are looked at one by one only where something is wrong with one of them.
    """
    try:
        return tidy_table.tabulated(runs), runs, []
    except _ODD as error:
        first = error
    kept, damaged = [], []
    for run in runs:
        try:
            tidy_table.tabulated([run])
            kept.append(run)
        except _ODD as error:
            damaged.append(Unfinished(run.name, "damaged", f"summary.json or cost.json: {error!r}"))
    if not kept or not damaged:
        raise first
    _warn("the table", damaged)
    return tidy_table.tabulated(kept), kept, damaged


def _warn(of: str, damaged: Sequence[Unfinished]) -> None:
    listed = "; ".join(f"{run.name}: {run.reason}" for run in damaged[:5])
    warnings.warn(
        f"{len(damaged)} damaged run(s) are left out of {of} ({listed}). Remove their folders and "
        "sweep again.",
        StoreWarning,
        stacklevel=4,
    )


def _held(runs: Sequence[Finished], study: str) -> tuple[list[Held], list[Unfinished]]:
    """Runs with their scores, and those of which a file is damaged."""
    _, runs, damaged = _tabulated(runs)
    held = []
    for run in runs:
        try:
            held.append((run, run_reports.scores(run)))
        except DamagedRun as damage:
            damaged.append(Unfinished(run.name, "damaged", str(damage)))
    if not held:
        raise ValueError(
            f"all {len(damaged)} finished runs of {study!r} are damaged: {damaged[0].reason}"
        )
    return held, damaged


def _drawn(
    held: Sequence[Held],
    by: Sequence[str] | None,
    metrics: Sequence[str] | None,
    attacks: Sequence[str] | None,
) -> dict[str, tuple[str, study_figures.Figure]]:
    """Descriptions and figures by file name."""
    tidied = tidy_table.tabulated([run for run, _ in held])
    names = list(dict.fromkeys(tidied["attack"].to_pylist()))
    for name in attacks or ():
        if name not in names:
            raise ValueError(
                f"no run has an attack {name!r}. Nearest: {finished.listed(names, name)}."
            )
    if attacks is not None:
        tidied = tidied.filter(pc.is_in(tidied["attack"], pa.array(list(attacks))))
    by = tuple(tables.default_axes(tidied) if by is None else by)
    metrics = tuple(tables.default_metrics(tidied) if metrics is None else metrics)
    comparison = tables.compared(tidied, by=by, metrics=metrics)
    panels = _families(held, tidied, by, attacks)
    listing = ", ".join(panels)
    drawn = {"roc": (f"ROC curves: {listing}", study_figures.roc_figure(panels))}
    axes = [name for name in comparison.by if name != "attack"]
    for axis in axes or ["attack"]:
        for metric in metrics:
            if all(line.cells[metrics.index(metric)].mean is None for line in comparison.lines):
                continue
            text = f"{tables.heading(metric)} by {axis}"
            figure = study_figures.metric_figure(tidied, axis, metric, by)
            drawn[f"{pages.slug(metric)}-by-{pages.slug(axis)}"] = (text, figure)
    return drawn


def _families(
    held: Sequence[Held], tidied: pa.Table, by: Sequence[str], attacks: Sequence[str] | None
) -> dict[str, list[study_figures.Family]]:
    """Configurations' results by attack; of one configuration, attacks' results in one panel."""
    axes = [name for name in by if name != "attack"]
    rows = tidied.select(list(dict.fromkeys(["run", "attack", "auc", *axes]))).to_pylist()
    if attacks is None:
        aucs: dict[str, list[float]] = {}
        for row in rows:
            aucs.setdefault(row["attack"], []).append(row["auc"])
        ranked = sorted(aucs, key=lambda name: -sum(aucs[name]) / len(aucs[name]))
        attacks = ranked[:_MOST_ATTACKS] if axes else ranked
    by_name = {run.name: (run, scores) for run, scores in held}
    panels: dict[str, dict[str, list]] = {name: {} for name in attacks} if axes else {"": {}}
    for row in rows:
        if row["attack"] not in attacks:
            continue
        label = ", ".join(_named(name, row[name], axes) for name in axes) or row["attack"]
        run, scores = by_name[row["run"]]
        result = run_reports.attack_result(run, row["attack"], scores)
        panels[row["attack"] if axes else ""].setdefault(label, []).append(result)
    return {
        name: [study_figures.Family(label, results) for label, results in families.items()]
        for name, families in panels.items()
    }


def _named(name: str, value: object, axes: Sequence[str]) -> str:
    """A value that says itself whose it is where numbers would not."""
    last = name.rpartition(".")[2]
    shown = tables.value_text(value)
    return shown if isinstance(value, str) and len(axes) == 1 else f"{last} {shown}"
