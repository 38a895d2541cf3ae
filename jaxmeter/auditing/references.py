"""Reference models of an audit: given, or trained on the audited records."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import ClassVar

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.data.records import Records, content_ids
from jaxmeter.prng import stream
from jaxmeter.progress import Progress
from jaxmeter.reference.inputs import ReferenceWarning
from jaxmeter.shadow import extraction, stacked, training
from jaxmeter.shadow.architecture import Architecture
from jaxmeter.shadow.membership import balanced_membership
from jaxmeter.shadow.recipe import Recipe, RecipeConfig
from jaxmeter.signals.planning import DEVICE_BUDGET
from jaxmeter.signals.spec import AnySpec
from jaxmeter.target import Target

Stages = Callable[[str, int, int], None]  # told (stage, done, total)


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """Reference models that there are already, and what they were trained on.

    Attributes:
      models: k models, a stacked target; see `shadow.train` and `shadow.stack`.
      x: the records they were trained on, and others they were not, `[m, ...]`, prepared as the
        audited records are. Audited records are found among them by content; those that are not
        there count as seen by no model.
      was_member: whether model k was trained on record m, bool `[k, m]`.

    Raises:
      ValueError: if the shapes do not fit.
    """

    models: Target
    x: ArrayLike
    was_member: ArrayLike
    trains: ClassVar[bool] = False

    @property
    def k(self) -> int:
        """How many there are."""
        return stacked.count(self.models)

    @property
    def one(self) -> Target:
        """A model of the kind."""
        return stacked.model(self.models, 0)

    @property
    def origin(self) -> str:
        """Where they come from, for a report's settings."""
        return "given"

    def ready(
        self, key: jax.Array | None, records: Records, progress: Stages | None = None
    ) -> "References":
        """Themselves."""
        return self

    def __post_init__(self) -> None:  # noqa: D105
        k, shape = stacked.count(self.models), np.shape(self.was_member)
        if shape != (k, len(np.asarray(self.x))) or np.asarray(self.was_member).dtype != bool:
            raise ValueError(
                f"was_member is {np.asarray(self.was_member).dtype} {shape}; for {k} models and "
                f"{len(np.asarray(self.x))} records it must be bool [{k}, "
                f"{len(np.asarray(self.x))}]."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadows:
    """Reference models to be trained on the audited records, each on a random half of them.

    Every record is in exactly half of the models, so a model has as many training records as the
    target if the audit has as many non-members as members.

    Attributes:
      architecture: what is trained, the target's own or the attacker's guess of it: from
        `shadow.of_keras`, `of_file`, `of_flax` or `of_functions`.
      recipe: how; the closer to the target's training, the stronger the attacks.
      k: how many models, an even number.
      checkpoint: a folder for finished models; the same audit goes on there after a kill.
    """

    architecture: Architecture
    recipe: Recipe | RecipeConfig = RecipeConfig()
    k: int = 32
    checkpoint: str | PathLike[str] | None = None
    trains: ClassVar[bool] = True

    @property
    def one(self) -> Target:
        """A model of the kind."""
        return self.architecture.target

    @property
    def origin(self) -> str:
        """Where they come from, for a report's settings."""
        return f"trained as {self.one.spec.source.origin} by {self.recipe!r}"

    def ready(
        self, key: jax.Array | None, records: Records, progress: Stages | None = None
    ) -> References:
        """The models, trained; a key is needed."""
        assert key is not None
        return trained(key, self, records, epochs_shown(progress))

    def __post_init__(self) -> None:  # noqa: D105
        if self.k < 2 or self.k % 2:
            raise ValueError(
                f"k={self.k} reference models; the number must be even, so that every record "
                "is in exactly half of them. Attacks that estimate spreads need 8 or more."
            )


def epochs_shown(progress: Stages | None) -> Callable[[Progress], None]:
    """What `trained` calls, to show epochs done as `progress(stage, done, total)`."""

    def show(now: Progress) -> None:
        if progress:
            epochs = now.of_models * now.of_epochs
            progress("epochs of reference models", round(now.fraction * epochs), epochs)

    return show


def trained(
    key: jax.Array,
    shadows: Shadows,
    records: Records,
    progress: Callable[[Progress], None] | None = None,
) -> References:
    """Trains the models; those that diverge are left out. Equal records go to the same models.

    Raises:
      ValueError: if fewer than two are left.
    """
    recipe = shadows.recipe
    content = content_ids(records.x)
    membership = balanced_membership(stream(key, "membership"), shadows.k, int(content.max()) + 1)
    was_member = np.asarray(membership)[:, content]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # _kept says it
        models, _, finite = training.train_all(
            stream(key, "models"),
            shadows.architecture,
            records.x,
            records.y,
            was_member,
            recipe.recipe() if isinstance(recipe, RecipeConfig) else recipe,
            checkpoint=shadows.checkpoint,
            progress=progress,
        )
    models, was_member = _kept(models, was_member, finite, "a loss or variables")
    return References(models=models, x=records.x, was_member=was_member)


def _kept(
    models: Target, was_member: NDArray, finite: NDArray, what: str
) -> tuple[Target, NDArray]:
    """The finite models and what they were trained on."""
    if finite.all():
        return models, was_member
    warnings.warn(
        f"{int((~finite).sum())} of {finite.size} reference models have {what} that are not finite "
        "and are left out.",
        ReferenceWarning,
        stacklevel=3,
    )
    if finite.sum() < 2:
        raise ValueError(
            f"{int(finite.sum())} of {finite.size} reference models are finite; nothing can be "
            "calibrated by them. Lower the learning rate of the recipe."
        )
    return stacked.model(models, finite), was_member[finite]


def seen_by(
    references: References,
    records: Records,
    spec: AnySpec,
    *,
    out: str | PathLike[str] | None = None,
    device_budget: int = DEVICE_BUDGET,
    host_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ReferenceSignals:
    """The records as the reference models see them. Models that are not finite are left out.

    `out` is a folder for the signals, see `shadow.extract`; None to keep them in memory, of which
    they may take `host_budget` bytes.

    Raises:
      ValueError: if fewer than two models are finite, records do not fit the models, or signals not
        the budgets.
    """
    finite = stacked.finite(references.models)
    was_member = membership_of(references, records.x)
    models, was_member = _kept(references.models, was_member, finite, "variables")
    signals = extraction.extract(
        models,
        records,
        spec,
        out=out,
        device_budget=device_budget,
        host_budget=host_budget,
        progress=progress,
    )
    return ReferenceSignals(signals, was_member)


def membership_of(references: References, x: NDArray) -> NDArray:
    """Whether each model was trained on each of these records, bool `[k, n]`, by content."""
    pool = np.asarray(references.x)
    if pool.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"the reference models' records have the shape {pool.shape[1:]}, the audited ones "
            f"{x.shape[1:]}; they must be prepared alike to be recognised."
        )
    if pool.dtype != x.dtype:
        cast = pool.astype(x.dtype)
        if not np.array_equal(cast, pool):
            raise ValueError(
                f"the reference models' records are {pool.dtype} and the audited ones {x.dtype}, "
                "and not the same numbers in both; prepare them alike."
            )
        pool = cast
    ids = content_ids(np.concatenate([pool, x]))
    theirs, ours = ids[: len(pool)], ids[len(pool) :]
    seen = np.zeros((len(np.asarray(references.was_member)), int(ids.max()) + 1), bool)
    for row, member in zip(seen, np.asarray(references.was_member), strict=True):
        row[theirs[member]] = True
    known = np.isin(ours, theirs)
    if not known.all():
        warnings.warn(
            f"{int((~known).sum())} of {known.size} audited records are not among the reference "
            "models' records, so no model counts as having seen them: only offline scores say "
            "something of these.",
            ReferenceWarning,
            stacklevel=3,
        )
    return seen[:, ours]
