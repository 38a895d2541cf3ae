"""The commands of a study that show what its finished runs found."""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxmeter.experiment.store.store import StoreWarning, opened
from jaxmeter.terminal import console, one_line

# A function's own imports: they bring in matplotlib and pyarrow, which a sweep does not need.

_LOG = console(stderr=True)
_MOST_LINES = 200  # printed: a second a thousand, and nobody reads more


def commands(study: str, default: Path) -> dict[str, Callable[..., Any]]:
    """`table`, `plot`, `index` and `events` of a study, for a command line.

    Each returns 1 if a run of the store is damaged, having shown the others; else 0.
    """

    def table(
        store: Path = default,
        by: tuple[str, ...] | None = None,
        metrics: tuple[str, ...] | None = None,
        out: Path | None = None,
        shared: bool = False,
    ) -> int:
        """Print configurations side by side, with mean and spread over seeds.

        Writes the tidy table, results.parquet, and this one as table.md, table.csv and table.tex.

        Args:
          store: Folder, or URL, that keeps what was computed.
          by: Columns that tell configurations apart; by default what varies, without the seed.
          metrics: Columns to compare, e.g. auc tpr_at_0.01 epsilon seconds.
          out: Folder to write to; by default studies/STUDY in the store,
            for one at a URL jaxmeter-studies/STUDY here.
          shared: Let others use new files, as the umask has it; else they are yours alone.
        """
        from jaxmeter.experiment.results import finished
        from jaxmeter.experiment.results.study import tidy, write_table
        from jaxmeter.experiment.results.tables import compared

        with said() as damaged:
            opened_store = opened(store, shared=shared)
            place = finished.results_folder(opened_store, study) if out is None else out
            tidied = tidy(opened_store, study)
            comparison = compared(tidied, by=by, metrics=metrics)
            wide = None if sys.stdout.isatty() else 200
            shown = dataclasses.replace(comparison, lines=comparison.lines[:_MOST_LINES])
            console(width=wide).print(shown.rich())
            if len(shown.lines) < len(comparison.lines):
                more = f"{len(comparison.lines) - _MOST_LINES:,} more configurations are in table.*"
                _LOG.print(more)
            content = finished.parquet(tidied)
            finished.replaced(place / "results.parquet", content, shared=shared)
            write_table(comparison, place, shared=shared)
            _LOG.print(f"written to {place}", soft_wrap=True)
        return int(bool(damaged))

    def plot(
        store: Path = default,
        by: tuple[str, ...] | None = None,
        metrics: tuple[str, ...] | None = None,
        attacks: tuple[str, ...] | None = None,
        out: Path | None = None,
        shared: bool = False,
    ) -> int:
        """Draw ROC curves, and metrics against what was swept, as PNG and SVG.

        Args:
          store: Folder, or URL, that keeps what was computed.
          by: Columns that tell configurations apart; by default what varies, without the seed.
          metrics: Columns to draw, e.g. auc tpr_at_0.01.
          attacks: Names of attacks to draw.
          out: Folder to write to; by default studies/STUDY/figures in the store,
            for one at a URL jaxmeter-studies/STUDY/figures here.
          shared: Let others use new files, as the umask has it; else they are yours alone.
        """
        from jaxmeter.experiment.results import study as results

        with said() as damaged:
            place = opened(store, shared=shared)
            for path in results.plot(
                place, study, out=out, by=by, metrics=metrics, attacks=attacks
            ):
                print(one_line(path))
        return int(bool(damaged))

    def index(
        store: Path = default, reports: bool = True, out: Path | None = None, shared: bool = False
    ) -> int:
        """Write the study as HTML: an index, and a report for every run.

        Args:
          store: Folder, or URL, that keeps what was computed.
          reports: Write the runs' reports, where they are missing or out of date.
          out: Folder to write to; by default studies/STUDY in the store,
            for one at a URL jaxmeter-studies/STUDY here.
          shared: Let others use new files, as the umask has it; else they are yours alone.
        """
        from jaxmeter.experiment.results import study as results

        with said() as damaged:
            place = opened(store, shared=shared)
            print(one_line(results.index(place, study, out=out, reports=reports)))
        return int(bool(damaged))

    def events(store: Path = default, out: Path | None = None, shared: bool = False) -> int:
        """Write TensorBoard event files of all fits; prints the folder for `--logdir`.

        Args:
          store: Folder, or URL, that keeps what was computed.
          out: Folder to write to; by default studies/STUDY/events in the store,
            for one at a URL jaxmeter-studies/STUDY/events here.
          shared: Let others use new files, as the umask has it; else they are yours alone.
        """
        from jaxmeter.experiment.results import finished
        from jaxmeter.experiment.results.study import write_events

        with said() as damaged:
            written = write_events(opened(store, shared=shared), study, out)
            place = finished.results_folder(store, study, "events") if out is None else out
            print(one_line(place) if written else "no attack of this study was fitted")
        return int(bool(damaged))

    return {"table": table, "plot": plot, "index": index, "events": events}


@contextmanager
def said() -> Iterator[list[str]]:
    """Says what is damaged on stderr, at the end; the list is filled then."""
    damaged: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StoreWarning)
        yield damaged
    for warning in caught:
        if issubclass(warning.category, StoreWarning):
            damaged.append(one_line(warning.message))
            _LOG.print(damaged[-1], style="yellow", soft_wrap=True)
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
