"""TensorBoard event files of the fits of finished runs."""

import datetime
import secrets
import shutil
import warnings
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from jaxmeter.experiment.columns import number
from jaxmeter.experiment.finished import DamagedRun, Finished, StoreWarning, document

# A fit's history entry -> the tag in TensorBoard, where what is before the slash is one panel.
TAGS = {"loss": "loss/fit", "select_loss": "loss/select", "select_auc": "auc/select"}


def write_events(runs: Sequence[Finished], out: str | PathLike[str]) -> list[Path]:
    """Writes one event file for every fit: `out/<run>/<attack's key>/`.

    The scalars are `loss/fit` and `loss/select` (nats) and `auc/select`, one step an epoch. An
    earlier call's files of the same runs are replaced, so no curve is there twice.

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
        temporary = place / f".{run.name}.{secrets.token_hex(4)}.tmp"
        temporary.mkdir(parents=True)
        try:
            for key, history in fits:
                _write(temporary / key, history, _started(run))
            folder = place / run.name
            _swap(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        written += [folder / key for key, _ in fits]
    return written


def _fits(run: Finished) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for row in document(run, "results.json")["attacks"]:
        if row.get("history"):
            yield row["key"], row["history"]


def _write(folder: Path, history: list[dict[str, Any]], started: float) -> None:
    with SummaryWriter(str(folder)) as writer:
        for entry in history:
            for name, tag in TAGS.items():
                value = number(entry.get(name))
                if value is not None:
                    writer.add_scalar(tag, value, entry["epoch"], walltime=started)


def _started(run: Finished) -> float:
    """When the run began, so that the same run gives the same scalars."""
    try:
        return datetime.datetime.fromisoformat(run.cost["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


def _swap(temporary: Path, folder: Path) -> None:
    if folder.exists():
        old = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.old"
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(folder)
