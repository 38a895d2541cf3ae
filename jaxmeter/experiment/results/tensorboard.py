"""TensorBoard event files of the fits of finished runs."""

import datetime
import warnings
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from jaxmeter import disk
from jaxmeter.experiment.results.finished import DamagedRun, Finished, document
from jaxmeter.experiment.results.tidy_table import number
from jaxmeter.experiment.store.files import MALFORMED
from jaxmeter.experiment.store.store import StoreWarning

# A fit's history entry -> the tag in TensorBoard, where what is before the slash is one panel.
TAGS = {"loss": "loss/fit", "select_loss": "loss/select", "select_auc": "auc/select"}


def write_events(
    runs: Sequence[Finished], out: str | PathLike[str], *, shared: bool = False
) -> list[Path]:
    """Writes one event file for every fit: `out/<run>/<attack's key>/`.

    The scalars are `loss/fit` and `loss/select` (nats) and `auc/select`, one step an epoch. An
    earlier call's files of the same runs are replaced, so no curve is there twice. New files are
    their owner's alone, or as the umask has it if they are `shared`.

    Returns:
      The folders written, in the order of runs and attacks; none for attacks without a fit. A run
      whose `results.json` is damaged has none, and is named in a `StoreWarning`.

    Raises:
      OSError: if `out` may not be written.
    """
    place = Path(out)
    written = []
    for run in runs:
        try:
            fits = list(_fits(run))
        except DamagedRun as damage:
            warnings.warn(f"{run.name} has no event files: {damage}", StoreWarning, stacklevel=3)
            continue
        if not fits:
            continue
        folder = place / run.name
        with disk.folder(folder, shared=shared) as temporary:
            for key, scalars in fits:
                _write(disk.below(temporary, key), scalars, _started(run))
        written += [folder / key for key, _ in fits]
    return written


# Tag, value, epoch.
Scalars = list[tuple[str, float, int]]


def _fits(run: Finished) -> Iterator[tuple[str, Scalars]]:
    try:
        for row in document(run, "results.json")["attacks"]:
            if row.get("history"):
                if not disk.is_plain(row["key"]):
                    raise DamagedRun(f"results.json has an attack with the key {row['key']!r}")
                yield row["key"], list(_scalars(row["history"]))
    except DamagedRun:
        raise
    except (*MALFORMED, ValueError) as error:
        raise DamagedRun(f"results.json holds something else than a run's: {error!r}") from error


def _scalars(history: list[dict[str, Any]]) -> Iterator[tuple[str, float, int]]:
    for entry in history:
        for name, tag in TAGS.items():
            value = number(entry.get(name))
            if value is not None:
                yield tag, value, int(entry["epoch"])


def _write(folder: Path, scalars: Scalars, started: float) -> None:
    with SummaryWriter(str(folder)) as writer:
        for tag, value, epoch in scalars:
            writer.add_scalar(tag, value, epoch, walltime=started)


def _started(run: Finished) -> float:
    """When the run began, so that the same run gives the same scalars."""
    try:
        return datetime.datetime.fromisoformat(run.cost["started"]).timestamp()
    except (*MALFORMED, OSError, ValueError):
        return 0.0
