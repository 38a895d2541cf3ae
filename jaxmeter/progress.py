"""How far a training is, how it is shown, and when to look again."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PACE = 2.0  # seconds between two looks


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
      models: finished.
      of_models: in all.
      training: models that are being trained now.
      epochs: done by those.
      of_epochs: of the recipe.
      loss: mean over them of their last epoch's loss; NaN before the first.
      seconds_left: at the pace so far; NaN before that is known.
    """

    models: int
    of_models: int
    training: int
    epochs: int
    of_epochs: int
    loss: float
    seconds_left: float

    @property
    def fraction(self) -> float:
        """The share of the work that is done."""
        return (self.models + self.training * self.epochs / self.of_epochs) / self.of_models


@contextmanager
def bar() -> Iterator[Callable[[Progress], None]]:
    """A bar in the terminal, for as long as the context lasts.

    `with bar() as progress: train(..., progress=progress)`; beside it stand the models, the epoch,
    the loss and the time left.
    """
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("references {task.fields[models]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("epoch {task.fields[epochs]}  loss {task.fields[loss]}  {task.fields[left]}"),
    )
    with Bars(*columns) as bars:
        task = bars.add_task("", total=1.0, models="", epochs="", loss="", left="")

        def show(now: Progress) -> None:
            known = not math.isnan(now.seconds_left)
            minutes, seconds = divmod(round(now.seconds_left) if known else 0, 60)
            bars.update(
                task,
                completed=now.fraction,
                models=f"{now.models}/{now.of_models}",
                epochs=f"{now.epochs}/{now.of_epochs}",
                loss=f"{now.loss:.4g}",
                left=f"{minutes}:{seconds:02d} left" if known else "",
            )

        yield show


class Clock:
    """How many epochs to run before the next look, and what to say then."""

    def __init__(
        self, progress: Callable[[Progress], None] | None, k: int, done: int, epochs: int
    ) -> None:
        """For k models, of which some were done before."""
        self._progress, self._k, self._done, self._epochs = progress, k, done, epochs
        self._next = 1
        self._ran = self._seconds = 0.0  # epochs of a model, but for those that wait for a compiler
        self._is_first = True

    def started(self, models: int) -> None:
        """So many models begin."""
        self._models, self._until = models, 0
        self._since = time.perf_counter()
        self._say(math.nan)

    def epochs(self) -> int:
        """How many to run before the next look."""
        return self._next

    def looked(self, until: int, losses: NDArray) -> None:
        """The models have come to this epoch; `losses` is `[models, epochs]`."""
        spent, ran = time.perf_counter() - self._since, until - self._until
        if not self._is_first:
            self._seconds += spent
            self._ran += ran * self._models
            self._next = max(1, min(4 * self._next, int(_PACE * ran / max(spent, 1e-9))))
        self._is_first = False
        self._until = until
        last = np.maximum((~np.isnan(losses)).sum(axis=1), 1) - 1
        self._say(float(np.mean(losses[np.arange(len(losses)), last])))
        self._since = time.perf_counter()

    def finished(self) -> None:
        """The models are done, and saved if they are to be."""
        self._done += self._models
        self._models = self._until = 0
        self._say(math.nan)

    def _say(self, loss: float) -> None:
        if self._progress is None:
            return
        todo = (self._k - self._done) * self._epochs - self._models * self._until
        left = todo * self._seconds / self._ran if self._ran else math.nan
        self._progress(
            Progress(self._done, self._k, self._models, self._until, self._epochs, loss, left)
        )
