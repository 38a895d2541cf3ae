"""The stages of a pool: models are trained on all records, and one of them is the target."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.auditing.references import epochs_shown
from jaxmeter.data.records import Records, content_ids
from jaxmeter.disk import create
from jaxmeter.experiment.stages import data as data_stage
from jaxmeter.experiment.stages import examination
from jaxmeter.experiment.stages import references as references_stage
from jaxmeter.experiment.stages.notes import recording_warnings
from jaxmeter.experiment.stages.signals import FOLDER
from jaxmeter.shadow import extraction, training
from jaxmeter.shadow.architecture import Architecture
from jaxmeter.shadow.membership import balanced_membership
from jaxmeter.shadow.recipe import RecipeConfig
from jaxmeter.signals.spec import ResolvedSpec
from jaxmeter.target import Target

if TYPE_CHECKING:  # Only for annotations: what a stage follows from is what it is given of it.
    from jaxmeter.experiment.config import Pool, Stranger

_SMALLEST = 2  # members, and non-members, without which no part can be measured


def deal(
    folder: Path,
    *,
    data: Any,
    seed: int,
    contents: tuple[str, ...],
    fractions: tuple[float, float, float],
    pool: "Pool",
) -> None:
    """Writes what `data.dealt` reads: the target's membership, and parts that are all targets'.

    Raises:
      ValueError: if a part is too small to measure anything on it.
    """
    records, notes = data_stage.drawn(data, seed, contents)
    if pool.stranger is None:
        is_member = membership(records.x, pool.models, seed)[pool.index]
    else:
        is_member = of_stranger(records.x, pool.stranger, pool.index, seed)[0]
    parts = parts_of(records.x, fractions, seed)
    for share, part in zip(fractions, parts, strict=True):
        n_in = int(is_member[part].sum())
        if share and min(n_in, part.size - n_in) < _SMALLEST:
            raise ValueError(
                f"a part of {share:.0%} of the {len(is_member)} records has {n_in} members of the "
                f"target and {part.size - n_in} others; at least {_SMALLEST} of each are needed to "
                "measure anything, and hundreds to measure it well. Give more records or larger "
                "fractions."
            )
    data_stage.write_splits(folder, records._replace(is_member=is_member), parts, notes)


def membership(x: NDArray, models: int, seed: int) -> NDArray[np.bool_]:
    """Which model of a pool is trained on which record, bool `[k, n]`; equal records go together.

    Raises:
      ValueError: if all records are equal.
    """
    content = _content_of(x)
    n = int(content.max(initial=-1)) + 1
    if n < 2:
        raise ValueError(f"the data has {n} different records; a pool is trained on halves of it.")
    return balanced_membership(_keys(seed)[0], models, n)[:, content]


def of_stranger(x: NDArray, stranger: "Stranger", index: int, seed: int) -> NDArray[np.bool_]:
    """What a stranger is trained on, and below it the rest, bool `[2, n]`.

    Raises:
      ValueError: if one of them is empty.
    """
    content = _content_of(x)
    n = int(content.max(initial=-1)) + 1
    members = n // 2 if stranger.members is None else stranger.members
    if not 0 < members < n:
        raise ValueError(
            f"target.stranger.members is {members} of {n} different records; it takes 1 to {n - 1},"
            " so that the target was trained on some and not on others."
        )
    rank = np.random.default_rng((seed, index)).permutation(n)
    return np.stack([rank < members, rank >= members])[:, content]


def parts_of(
    x: NDArray, fractions: tuple[float, float, float], seed: int
) -> tuple[NDArray, NDArray, NDArray]:
    """Indices of the fit, select and held-out part, which share no content.

    By chance alone, whoever was trained on what: so all targets are measured on the same records.
    """
    content = _content_of(x)
    n = int(content.max(initial=-1)) + 1
    order = np.random.default_rng(seed).permutation(n)
    ends = [int(round(share, 9) * n) for share in np.cumsum(fractions)]
    part = np.empty(n, int)
    part[order] = np.searchsorted(ends, np.arange(n), side="right")
    return tuple(np.flatnonzero(part[content] == i) for i in range(3))  # type: ignore[return-value]


def train(
    folder: Path,
    *,
    architecture: Architecture,
    recipe: RecipeConfig,
    records: Records,
    was_member: NDArray[np.bool_],
    key: jax.Array,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes what `models` reads.

    Raises:
      ValueError: if a model diverged: each is a target or a reference of some run.
    """
    shown = epochs_shown(progress and (lambda _, done, total: progress(done, total)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of models that diverged: an error here
        models, _, finite = training.train_all(
            key, architecture, records.x, records.y, was_member, recipe.recipe(), progress=shown
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


def models(folder: Path, architecture: Architecture) -> Target:
    """The trained models, stacked and memory-mapped."""
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


def pool_key(seed: int) -> jax.Array:
    """What a pool's training follows from."""
    return _keys(seed)[1]


def stranger_key(seed: int, index: int) -> jax.Array:
    """What a stranger's training follows from."""
    return jax.random.fold_in(jax.random.key(seed), index)


def look(
    folder: Path,
    *,
    trained: Target,
    records: Records,
    was_member: NDArray[np.bool_],
    spec: ResolvedSpec,
    device_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes what `references.seen` reads: all records as all models see them.

    Raises:
      ValueError: if a model gives signals that are not finite.
    """
    with recording_warnings() as notes:
        signals = extraction.extract(
            trained,
            records,
            spec,
            out=folder / FOLDER,
            device_budget=device_budget,
            progress=progress,
        )
    references_stage.keep(folder, ReferenceSignals(signals, was_member), notes)


def _keys(seed: int) -> jax.Array:
    """Of the membership and of the training of a pool."""
    return jax.random.split(jax.random.key(seed))


def _content_of(x: NDArray) -> NDArray:
    """One integer a record, equal for equal records, counted in the order in which they appear."""
    ids = content_ids(x)
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[place.ravel()]
