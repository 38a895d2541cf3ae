"""The stage "pool": models are trained on all records, each on half of them, and kept."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.data.records import Records
from jaxmeter.disk import create
from jaxmeter.experiment.stages import examination
from jaxmeter.experiment.stages.pool_draws import (
    membership,
    of_stranger,
    pool_key,
    stranger_key,
)
from jaxmeter.progress import Progress
from jaxmeter.shadow import training
from jaxmeter.shadow.architecture import Architecture
from jaxmeter.shadow.recipe import RecipeConfig
from jaxmeter.target import Target

if TYPE_CHECKING:  # Only for annotations: a stage follows from the fields that it is given.
    from jaxmeter.experiment.config import Stranger

Shown = Callable[[int, int], None] | None


def train(
    folder: Path,
    *,
    architecture: Architecture,
    recipe: RecipeConfig,
    models: int,
    records: Records,
    seed: int,
    progress: Shown = None,
) -> None:
    """Writes what `trained` reads: all models of a pool.

    Raises:
      ValueError: if a model diverged: each is a target or a reference of some run.
    """
    was_member = membership(records.x, models, seed)
    _train(folder, pool_key(seed), architecture, recipe, records, was_member, progress)


def train_stranger(
    folder: Path,
    *,
    architecture: Architecture,
    stranger: "Stranger",
    index: int,
    records: Records,
    seed: int,
    progress: Shown = None,
) -> None:
    """Writes what `trained` reads: a target from elsewhere, and a model of all other records.

    Raises:
      ValueError: if a model diverged.
    """
    was_member, key = of_stranger(records.x, stranger, index, seed), stranger_key(seed, index)
    _train(folder, key, architecture, stranger.recipe, records, was_member, progress)


def _train(
    folder: Path,
    key: jax.Array,
    architecture: Architecture,
    recipe: RecipeConfig,
    records: Records,
    was_member: NDArray[np.bool_],
    progress: Shown,
) -> None:
    def show(now: Progress) -> None:
        if progress:
            epochs = now.of_models * now.of_epochs
            progress(round(now.fraction * epochs), epochs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of models that diverged: an error here
        models, _, finite = training.train_all(
            key, architecture, records.x, records.y, was_member, recipe.recipe(), progress=show
        )
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {finite.size} models diverged (first: model "
            f"{np.flatnonzero(~finite)[0]}): a loss or variables are not finite. Lower the "
            "learning rate of the recipe."
        )
    for i, leaf in enumerate(jax.tree.leaves((models.params, models.state))):
        with create(folder / f"{i:03d}.npy") as file:
            np.save(file, leaf)


def trained(folder: Path, architecture: Architecture) -> Target:
    """The models, stacked and memory-mapped."""
    one = architecture.target
    leaves, tree = jax.tree.flatten((one.params, one.state))
    arrays = [
        np.load(folder / f"{i:03d}.npy", mmap_mode="r", allow_pickle=False)
        for i in range(len(leaves))
    ]
    params, state = jax.tree.unflatten(tree, arrays)
    return one.replace(params=params, state=state)  # type: ignore[attr-defined]


def examine(
    architecture: Callable[[], Architecture], folder: Path, *, shape: tuple[int, ...], origin: str
) -> None:
    """Writes what `examination.examined` reads, of any model of the pool."""
    examination.describe(folder, architecture().target.for_inputs(shape).spec, origin, [])
