"""What a run leaves under `logs/`: nothing of an earlier run is ever overwritten."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboardX import SummaryWriter

from jaxmeter import disk
from jaxmeter.inference.attack import Fitted
from jaxmeter.metrics import AttackResult
from jaxmeter.report.facts import plain
from jaxmeter.report.folder import rendered
from jaxmeter.terminal import one_line


class Places(NamedTuple):
    """Where a run writes.

    Attributes:
      name: the run's own, `model_name` with a number if there is one of that name.
      results: probabilities, records, `results.json` and the report.
      plots: the figures.
      events: TensorBoard's file.
      log: the log file.
    """

    name: str
    results: Path
    plots: Path
    events: Path
    log: Path


def claimed(logs: Path, model_name: str) -> Places:
    """Folders for a new run, made at once so that no other run takes the name.

    Raises:
      ValueError: if the name is empty or no name for a folder.
    """
    if not re.fullmatch(r"[\w][\w .+-]*", model_name):
        raise ValueError(
            f"model_name is {model_name!r}; it names folders under {logs}, so it must be letters, "
            "digits, spaces and . + - _, and start with a letter or digit."
        )
    disk.make_folder(logs / "results")
    number = 1
    while True:
        name = model_name if number == 1 else f"{model_name}-{number}"
        results = logs / "results" / name
        try:
            results.mkdir(0o700)
            break
        except FileExistsError:
            number += 1
    places = Places(
        name, results, logs / "plots" / name, logs / "attack" / "tensorboard" / name,
        logs / "attack" / f"{name}.log",
    )  # fmt: skip
    for folder in (places.plots, places.events):
        disk.make_folder(folder)
    return places


@contextmanager
def logger(places: Places) -> Iterator[logging.Logger]:
    """A logger that writes to the run's file and to the console."""
    log = logging.Logger(f"jaxmeter.meter.{places.name}", logging.INFO)
    text = open(places.log, "a", encoding="utf-8", opener=_private)
    file = logging.StreamHandler(text)
    file.setFormatter(_PrintableFormatter("%(asctime)s %(message)s"))
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(_PrintableFormatter())
    log.addHandler(file)
    log.addHandler(console)
    try:
        yield log
    finally:
        file.close()
        text.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


@contextmanager
def _events(places: Places, **how: Any) -> Iterator[SummaryWriter]:
    """A writer of TensorBoard's file, which writes as the umask has it."""
    with disk.apart(places.events) as room:
        with SummaryWriter(str(room), **how) as writer:
            yield writer
        disk.settle(room)
        for path in room.iterdir():
            path.rename(places.events / path.name)


class _PrintableFormatter(logging.Formatter):
    """Lines that name layers, as files have them."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def write_fit(places: Places, fitted: Fitted) -> None:
    """TensorBoard's scalars of a fit: loss, accuracy and AUC, one step an epoch."""
    history = fitted.history
    tags = {
        "loss/fit": history.loss,
        "loss/select": history.select_loss,
        "accuracy/select": history.select_accuracy,
        "auc/select": history.select_auc,
    }
    with _events(places) as writer:
        for tag, values in tags.items():
            for epoch, value in enumerate(values):
                if np.isfinite(value):
                    writer.add_scalar(tag, float(value), epoch)


def write_test(places: Places, fitted: Fitted, result: AttackResult) -> None:
    """The same of the test, at the epoch that was kept."""
    with _events(places, filename_suffix=".test") as writer:
        writer.add_scalar("accuracy/test", result.accuracy, fitted.best_epoch)
        writer.add_scalar("auc/test", result.auc, fitted.best_epoch)


def write_arrays(places: Places, arrays: dict[str, NDArray]) -> None:
    """Arrays by the names of their files."""
    for name, array in arrays.items():
        with disk.replacing(places.results / f"{name}.npy") as file:
            np.save(file, array, allow_pickle=False)


def write_results(places: Places, facts: dict[str, Any]) -> None:
    """`results.json`."""
    text = json.dumps(plain(facts), indent=1, ensure_ascii=False, allow_nan=False)
    disk.replace(places.results / "results.json", text.encode())


def write_figures(places: Places, figures: dict[str, Figure]) -> list[Path]:
    """Figures as PNG files by name."""
    written = []
    for name, figure in figures.items():
        path = places.plots / f"{name}.png"
        disk.replace(path, rendered(figure, "png", fonttype="path"))
        written.append(path)
    return written


def write_comparison(logs: Path, figure: Figure) -> Path:
    """The figure of several runs, under a name of its own."""
    folder = logs / "plots"
    disk.make_folder(folder)
    content = rendered(figure, "png", fonttype="path")
    number = 1
    while True:
        path = folder / f"comparison{'' if number == 1 else f'-{number}'}.png"
        try:
            disk.write(path, content)
            return path
        except FileExistsError:
            number += 1
