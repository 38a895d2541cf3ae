"""What a study is made of: one frozen, typed config a run."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from jaxmeter.attacks.baselines import Blind
from jaxmeter.attacks.interface import AttackConfig
from jaxmeter.attacks.learned import Learned
from jaxmeter.attacks.suite import (
    AnyAttack,
    check_attacks,
    check_references,
    needing_references,
)
from jaxmeter.attacks.training_free import TRAINING_FREE
from jaxmeter.disk import is_plain
from jaxmeter.experiment.datasets import AnyData, Digits
from jaxmeter.experiment.models import AlexNet, Cnn, Mlp
from jaxmeter.experiment.serialization import (
    ConfigError,
    checked,
    fitted,
    replaced,
    to_json,
    value_of,
)
from jaxmeter.intake.safety.files import kind_of
from jaxmeter.shadow.recipe import RecipeConfig
from jaxmeter.signals.spec import SignalSpec

Axes = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
_C = TypeVar("_C", bound="Config")


@dataclass(frozen=True, kw_only=True)
class TargetFile:
    """A trained classifier from a file, see `load_target`.

    Attributes:
      path: `.keras`, `.h5`, `.onnx`, `.json` or a SavedModel folder.
      head: what to audit of a model with several outputs, labels or time steps: an output's or a
        layer's name or an output's 1-based number, then 0-based indices; empty for the only one.
      weights: for a `.json` architecture, its weights.
      trust: open a model with Python code in it.
    """

    path: Path
    head: tuple[str | int, ...] = ()
    weights: Path | None = None
    trust: bool = False

    def files(self) -> tuple[Path, ...]:
        """The files that it is read from.

        Raises:
          ValueError: if the path is something else than a model. All files are hashed, and that
            takes as long as a folder is large.
        """
        if self.path.exists():
            kind_of(self.path)
        if self.weights and self.weights.is_dir():
            raise ValueError(f"weights is {str(self.weights)!r}, a folder; it takes an .h5 file.")
        return (self.path, *([self.weights] if self.weights else []))


AnyTarget = TargetFile | Mlp | Cnn | AlexNet


@dataclass(frozen=True, kw_only=True)
class ShadowModels:
    """Reference models, trained on the audited records as `jaxmeter.Shadows` says.

    Attributes:
      k: how many, an even number; attacks that estimate spreads need 8 or more.
      recipe: how; the closer to the target's training, the stronger the attacks.
      architecture: what is trained: a `TargetFile`, or a recipe with `built(shape, *, n_classes,
        seed) -> keras.Model`, whose training is not looked at. None for the target's own.
    """

    k: int = 16
    recipe: RecipeConfig = RecipeConfig()
    architecture: AnyTarget | None = None

    def files(self) -> tuple[Path, ...]:
        """The files that it is read from."""
        return self.architecture.files() if isinstance(self.architecture, TargetFile) else ()


@runtime_checkable
class Buildable(Protocol):
    """A recipe of which models can be made that are not trained yet, as `Mlp` is."""

    def built(self, shape: tuple[int, ...], *, n_classes: int, seed: int) -> Any:
        """A Keras model for records of this shape, or an architecture of `jaxmeter.shadow`."""


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A target that does not come from the pool whose models it is compared with.

    Attributes:
      recipe: how it is trained.
      members: on how many records, drawn at random; None for half of them.
    """

    recipe: RecipeConfig = RecipeConfig()
    members: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A target that is one of a pool of models and is attacked with others of them.

    All models are trained on the records of `Config.data`, in complementary pairs, each on a random
    half; of whom the data says that they are members is not looked at. One store trains a pool once
    for all runs that have its recipe, whichever model is their target.

    Attributes:
      models: how many are trained, an even number.
      k: how many of them an attack has, an even number: those that follow the target's pair,
        counted around. The target's complement is never among them.
      index: which of them is the target, counted from 0; an axis of a sweep.
      recipe: how they are trained.
      architecture: what is trained: a `TargetFile`, or a recipe with `built(shape, *, n_classes,
        seed)`, whose training is not looked at.
      spec: what is read of every model beside what the run's attacks read, so that runs whose
        attacks read less find the signals of those that read more.
      stranger: a target from elsewhere in place of one of the models, which is attacked with the
        first k. `index` then numbers its draw.

    >>> Pool(models=8, k=4, index=7).references
    (0, 1, 2, 3)
    """

    models: int = 34
    k: int = 32
    index: int = 0
    recipe: RecipeConfig = RecipeConfig()
    architecture: AnyTarget | Buildable = Mlp()
    spec: SignalSpec | None = None
    stranger: Stranger | None = None

    def files(self) -> tuple[Path, ...]:
        """The files that it is read from."""
        return self.architecture.files() if isinstance(self.architecture, TargetFile) else ()

    @property
    def references(self) -> tuple[int, ...]:
        """Numbers of the models that the target is attacked with."""
        first = 0 if self.stranger else self.index // 2 * 2 + 2
        return tuple((first + i) % self.models for i in range(self.k))


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: a target, its records, and the attacks on it.

    A study with an architecture of its own derives its config from this one and names it in the
    type of `target`: a frozen dataclass with `trained(x, y, *, n_classes, seed) -> keras.Model`.
    Data and attacks of its own likewise, with the methods of `Digits` and of `NegativeLoss`.

    Attributes:
      study: the study's name: letters, digits, "-", "_".
      seed: everything random follows from it.
      data: where the records come from.
      target: the classifier under audit; with `Pool` each of several models in turn.
      attacks: what to run; the first is what the others are compared with.
      references: models that attacks such as `jaxmeter.Lira` compare the target with; None where
        no attack does, or the target is one of a `Pool`, which has its own.
      known: so many members, and so many non-members, of the fit and select part are known to
        the attacker; None for all. The held-out records do not depend on it.
      fractions: shares of the records to fit on, to select epochs and thresholds on, to hold out.
        Of a pool's records the second may be 0, if no attack is fitted; thresholds then come from
        the held-out part, by two folds. A pool's parts do not depend on which model is the target.
      overlap: what to do with a record given both as member and as non-member.
      device_mib: memory that the target and one batch may take on the device, in MiB. Signals are
        written to the store, so host memory needs no limit.
    """

    study: str
    seed: int
    data: AnyData = Digits()
    target: AnyTarget | Pool
    attacks: tuple[AnyAttack | AttackConfig, ...] = (
        *TRAINING_FREE,
        Learned(spec=SignalSpec()),
        Learned(),
        Blind(),
    )
    references: ShadowModels | None = None
    known: int | None = None
    fractions: tuple[float, float, float] = (0.4, 0.1, 0.5)
    overlap: Literal["error", "drop"] = "error"
    device_mib: int = 1024

    def files(self) -> tuple[Path, ...]:
        """The input files that its results follow from."""
        parts: tuple[Any, ...] = (self.data, self.target, self.references)
        return tuple(path for part in parts if hasattr(part, "files") for path in part.files())


def valid(config: _C) -> _C:
    """The config with all its fields of their types and in their ranges.

    Raises:
      ConfigError: otherwise, naming the field and what it takes.
    """
    if not (dataclasses.is_dataclass(config) and isinstance(config, Config)):
        raise ConfigError(f"a run is an experiment.Config; this is a {type(config).__name__}.")
    return _in_range(checked(config))


def _in_range(config: _C) -> _C:
    if not (
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", config.study) and is_plain(config.study)
    ):
        raise ConfigError(
            f"study is {config.study!r}; it names files, so it is of letters, digits, '-' and '_', "
            "and not the name of a device of Windows."
        )
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed is {config.seed}; it takes 0 to 2**32 - 1.")
    try:
        check_attacks(config.attacks)
        given = config.references is not None
        if isinstance(config.target, Pool):
            _attackable(config.target, config)
            given = bool(needing_references(config.attacks))
        check_references(config.attacks, given=given, remedy=_REMEDY)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.references is not None:
        _trainable(config.references, config.target)
    return config


_REMEDY = (
    "Give the config references=experiment.ShadowModels(k=16), on the command line --references "
    "shadow-models, to train some on the audited records."
)


def _trainable(references: ShadowModels, target: Any) -> None:
    """Refuses reference models that cannot be trained, before anything is."""
    k, what = references.k, references.architecture
    if k < 2 or k % 2:
        raise ConfigError(
            f"references.k is {k}; it must be even, so that every record is in exactly half of the "
            "models. Attacks that estimate spreads need 8 or more."
        )
    if what is not None and not isinstance(what, TargetFile) and not hasattr(what, "built"):
        raise ConfigError(
            f"references.architecture is {type(what).__name__}, which has no method built(shape, "
            "*, n_classes, seed) that gives a Keras model to train anew. Add it, or leave it None."
        )
    name = "target" if what is None else "references.architecture"
    _retrainable(name, target if what is None else what, "references.architecture")


def _retrainable(name: str, file: Any, field: str) -> None:
    """Refuses a file of which no models can be made; the `field` takes others."""
    if isinstance(file, TargetFile):
        if file.path.suffix not in (".keras", ".h5", ".hdf5") or file.head or file.weights:
            raise ConfigError(
                f"reference models cannot be made of {name}, {file.path}: that takes a .keras or "
                f".h5 file of one output. Name a recipe or another file in {field}."
            )


def _attackable(pool: Pool, config: Config) -> None:
    """Refuses a pool in which there is no such target, or not so many models to attack it with."""
    if config.references is not None:
        raise ConfigError(
            "references is given, and the target is one of a pool, whose other models are what it "
            "is compared with. Leave references None; target.k says how many there are."
        )
    if pool.models < 4 or pool.models % 2:
        raise ConfigError(
            f"target.models is {pool.models}; a pool is of complementary pairs, so it takes an "
            "even number, and at least 4: the target's pair, and another to attack it with."
        )
    most = pool.models if pool.stranger else pool.models - 2
    if not 2 <= pool.k <= most or pool.k % 2:
        raise ConfigError(
            f"target.k is {pool.k}; of a pool of {pool.models} models it takes an even number from "
            f"2 to {most}, without the target and its complement, so that every record is in half "
            f"of them. For more, train more: target.models {pool.k + 2}."
        )
    if not 0 <= pool.index < pool.models:
        raise ConfigError(
            f"target.index is {pool.index}; the pool's models are numbered 0 to {pool.models - 1}."
        )
    fit, select, held = config.fractions
    fitted = [attack.name for attack in config.attacks if attack.fits]
    if not (fit > 0 and select >= 0 and held > 0 and fit + select + held <= 1 + 1e-9):
        raise ConfigError(
            f"fractions are {config.fractions}; they sum to at most 1, and the first and the last "
            "are positive."
        )
    if not select and fitted:
        raise ConfigError(
            f"fractions[1] is 0, and {', '.join(fitted)} would choose an epoch or a threshold on "
            "that part of the records. Give it a share, or leave these attacks out."
        )
    _retrainable("target.architecture", pool.architecture, "target.architecture")


def expand(base: _C, axes: Axes = ()) -> tuple[_C, ...]:
    """The runs of a sweep, each valid and each once.

    Args:
      base: the run that the others are changes of.
      axes: values by dotted field name, e.g. `{"seed": range(5), "attacks.1.config.epochs": (10,
        25)}`, of which all combinations are run, the last axis fastest; or a sequence of changes
        `{name: value}`, one a run. Empty for `base` alone.

    Raises:
      ConfigError: for a field there is not, with the nearest names, or a value of another type.

    >>> base = Config(study="doc", seed=0, target=Mlp())
    >>> [c.target.widths for c in expand(base, {"target.widths": ((8,), (16,))})]
    [(8,), (16,)]
    """
    base = valid(base)
    changes: list[Mapping[str, Any]]
    if isinstance(axes, Mapping):
        for name, values in axes.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
                raise ConfigError(f"axis {name} is {values!r}; it takes a tuple of values.")
        changes = [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]
    else:
        changes = list(axes) or [{}]
    runs: dict[str, _C] = {}
    for change in changes:
        config = base
        for name, value in change.items():  # the other fields are BASE's, which are checked
            hint = value_of(config, name)[1]
            config = replaced(config, name, fitted(value, hint, name))
        runs[to_json(_in_range(config))] = config
    return tuple(runs.values())
