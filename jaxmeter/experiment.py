"""One audit, from a target and records to a report; and the attacks it can be asked to run."""

import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from jaxmeter import scores as score_of
from jaxmeter.attack import decayed_adamw, inference_model
from jaxmeter.attack import fit as fit_attack
from jaxmeter.data import Records, split_indices
from jaxmeter.metrics import best_threshold, evaluate
from jaxmeter.report import Budget, Epoch, Report, Row
from jaxmeter.signals import (
    DEVICE_BUDGET,
    ResolvedSpec,
    Signals,
    SignalSpec,
    check_records,
    extract,
    white_box,
)
from jaxmeter.target import LOGITS, Target, layer_of

Progress = Callable[[str, int, int], None]


class Part(NamedTuple):
    """One part of the records with its signals."""

    records: Records
    signals: Signals


class Found(NamedTuple):
    """What an attack says: scores of the select and of the held-out part, higher = member."""

    select: NDArray
    held: NDArray
    history: tuple[Epoch, ...] = ()
    best_epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the inference model is fitted: settings of `inference_model` and `fit`.

    Attributes:
      epochs: passes over the fit part.
      learning_rate: AdamW's, at the start of its cosine decay.
      weight_decay: AdamW's.
      batch_size: records a step, half of them members.
      members: size of the ensemble.
      folds: parts of the fit part that models of the ensemble leave out in turn, see `fit`.
    """

    epochs: int = 25
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch_size: int = 128
    members: int = 10
    folds: int = 5


class _TrainingFree:
    """An attack that is a function of the signals; only its threshold looks at membership."""

    name: ClassVar[str]
    spec: ClassVar[SignalSpec] = SignalSpec(loss=False)
    fits: ClassVar[bool] = False
    score: ClassVar[Any]

    def reads(self, target: Target) -> SignalSpec | None:
        """The signals it needs."""
        return self.spec

    def run(self, key: jax.Array, fit: Part, select: Part, held: Part) -> Found:
        """Scores of the select and the held-out part."""
        score = type(self).score
        return Found(score(select.signals), score(held.signals))


@dataclass(frozen=True, kw_only=True)
class NegativeLoss(_TrainingFree):
    """Minus the cross-entropy loss; see `scores.negative_loss`."""

    name: ClassVar[str] = "negative loss"
    score: ClassVar = staticmethod(score_of.negative_loss)


@dataclass(frozen=True, kw_only=True)
class Confidence(_TrainingFree):
    """The probability of the record's own class; see `scores.confidence`."""

    name: ClassVar[str] = "confidence"
    score: ClassVar = staticmethod(score_of.confidence)


@dataclass(frozen=True, kw_only=True)
class Entropy(_TrainingFree):
    """Minus the entropy of the prediction; see `scores.entropy`."""

    name: ClassVar[str] = "entropy"
    score: ClassVar = staticmethod(score_of.entropy)


@dataclass(frozen=True, kw_only=True)
class ModifiedEntropy(_TrainingFree):
    """Minus the modified entropy of Song and Mittal; see `scores.modified_entropy`."""

    name: ClassVar[str] = "modified entropy"
    score: ClassVar = staticmethod(score_of.modified_entropy)


@dataclass(frozen=True, kw_only=True)
class LogitMargin(_TrainingFree):
    """Own logit minus the largest other; see `scores.logit_margin`."""

    name: ClassVar[str] = "logit margin"
    score: ClassVar = staticmethod(score_of.logit_margin)


@dataclass(frozen=True, kw_only=True)
class GradientNorm(_TrainingFree):
    """Minus the norm of the loss's gradient over all layers; see `scores.gradient_norm`."""

    name: ClassVar[str] = "gradient norm"
    spec: ClassVar[SignalSpec] = SignalSpec(outputs=(), loss=False, label=False, gradient_norm=True)
    score: ClassVar = staticmethod(score_of.gradient_norm)


@dataclass(frozen=True, kw_only=True)
class ClassWise:
    """Modified entropy against a threshold for each class; see `scores.class_wise_thresholds`."""

    name: str = "class-wise modified entropy"
    fits: ClassVar[bool] = True

    def reads(self, target: Target) -> SignalSpec | None:
        """The signals it needs."""
        return SignalSpec(loss=False)

    def run(self, key: jax.Array, fit: Part, select: Part, held: Part) -> Found:
        """Scores of the select and the held-out part."""
        known = score_of.modified_entropy(fit.signals), fit.records.y, fit.records.is_member

        def score(part: Part) -> NDArray:
            own = score_of.modified_entropy(part.signals)
            return score_of.class_wise_thresholds(own, part.records.y, *known)

        return Found(score(select), score(held))


@dataclass(frozen=True, kw_only=True)
class Blind:
    """A classifier on `x` and `y` alone, which never queries the target.

    Whatever it finds is a difference between how members and non-members were drawn, not leakage
    (Das, Zhang, Tramer 2024, arXiv:2406.16201): every other attack may be measuring that as well.
    Gradient-boosted trees of scikit-learn, fitted on the fit part.
    """

    name: ClassVar[str] = "blind baseline"
    fits: ClassVar[bool] = True

    def reads(self, target: Target) -> SignalSpec | None:
        """No signal."""
        return None

    def run(self, key: jax.Array, fit: Part, select: Part, held: Part) -> Found:
        """Scores of the select and the held-out part."""
        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
        trees = HistGradientBoostingClassifier(max_iter=50, random_state=seed)

        def features(part: Part) -> NDArray:
            x, y = part.records.x, part.records.y
            return np.concatenate([x.reshape(len(x), -1), y[:, None]], axis=1).astype(np.float32)

        trees.fit(features(fit), fit.records.is_member)
        return Found(*(trees.decision_function(features(part)) for part in (select, held)))


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The inference model of Nasr, Shokri, Houmansadr, fitted on known members; see `inference`.

    Fitted on the fit part; the epoch is chosen on the select part and, by the models that did not
    see them, on the records of the fit part.

    Attributes:
      spec: the signals it reads; None for the white box of `signals.white_box`: last layer's
        gradients, logits, loss, label.
      name: the row's name; by default "white box" if it reads gradients, activations or norms,
        else "black box".
      config: how it is fitted.
    """

    spec: SignalSpec | None = None
    name: str = ""
    config: FitConfig = FitConfig()
    fits: ClassVar[bool] = True

    def __post_init__(self) -> None:  # noqa: D105
        if not self.name:
            object.__setattr__(self, "name", "black box" if self._black() else "white box")

    def _black(self) -> bool:
        spec = self.spec
        return spec is not None and not (
            spec.gradients or spec.gradient_norm or set(spec.outputs) - {LOGITS}
        )

    def reads(self, target: Target) -> SignalSpec:
        """The signals it needs."""
        return self.spec or white_box(target)

    def run(self, key: jax.Array, fit: Part, select: Part, held: Part) -> Found:
        """Scores of the select and the held-out part."""
        config = self.config
        attack = inference_model(members=config.members)
        fitted = fit_attack(
            key,
            attack,
            fit.signals,
            fit.records.is_member,
            optimizer=partial(decayed_adamw, config.learning_rate, config.weight_decay),
            epochs=config.epochs,
            batch_size=config.batch_size,
            select=(select.signals, select.records.is_member),
            folds=config.folds,
        )
        chosen, measured = (
            np.asarray(attack.score(fitted.params, part.signals)) for part in (select, held)
        )
        epochs = enumerate(zip(*fitted.history, strict=True))
        history = tuple(Epoch(i, *map(float, epoch)) for i, epoch in epochs)
        return Found(chosen, measured, history, fitted.best_epoch)


TRAINING_FREE = (NegativeLoss(), Confidence(), ModifiedEntropy(), GradientNorm())

AnyAttack = (
    NegativeLoss
    | Confidence
    | Entropy
    | ModifiedEntropy
    | LogitMargin
    | GradientNorm
    | ClassWise
    | Blind
    | Learned
)


def audit(
    target: Target,
    records: Records,
    *,
    key: jax.Array,
    attacks: Sequence[AnyAttack] | None = None,
    fractions: tuple[float, float, float] = (0.4, 0.1, 0.5),
    overlap: Literal["error", "drop"] = "error",
    device_budget: int = DEVICE_BUDGET,
    host_budget: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Runs attacks on a target and measures them on the same held-out records.

    The records are split at random into three parts that share no content: `fit` (learned attacks
    are fitted on it), `select` (best epoch, thresholds), `held` (every figure of the report).
    Signals are extracted once for all attacks.

    Args:
      target: the classifier under audit.
      records: records of known membership, members and non-members drawn alike.
      key: PRNG key, consumed: split and learned attacks follow from it.
      attacks: what to run, in the order of the report's rows; None for the training-free attacks of
        `TRAINING_FREE`, the learned black box and white box, and the blind baseline.
      fractions: shares of fit, select and held-out part.
      overlap: what to do if a record is given both as member and as non-member, see `split`.
      device_budget: bytes on the device for target, batch and intermediate arrays.
      host_budget: bytes of host memory the signals may take; None for no limit.
      progress: called as `progress(stage, done, total)`.

    Raises:
      ValueError: for records that do not fit the target or overlap, parts that are too small, names
        the target does not have, two attacks of one name, or a budget that is too small. All of it
        before the first signal is computed.

    >>> import jax, numpy as np, jaxmeter as jm
    >>> net = jm.from_function(lambda p, s, x: x @ p["w"], {"w": np.ones((3, 2), "f")})
    >>> x, y = np.random.default_rng(0).normal(size=(80, 3)), np.arange(80) % 2
    >>> records = jm.Records.of(members=(x[:40], y[:40]), nonmembers=(x[40:], y[40:]))
    >>> report = jm.audit(net, records, key=jax.random.key(0), attacks=[jm.NegativeLoss()])
    >>> report.rows[0].name, report.rows[0].result.n_members
    ('negative loss', 20)
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = _audit(
            target, records, key, attacks, fractions, overlap, device_budget, host_budget, progress
        )
    notes = [str(warning.message) for warning in caught]
    notes += [
        f"{row.name}: nothing significantly better than the loss threshold was found on "
        f"{row.budget.known_members}+{row.budget.known_nonmembers} records of known membership, so "
        "its scores are the loss threshold's."
        for row in report.rows
        if row.best_epoch == 0
    ]
    for warning in caught:  # the caller's own filters decide what becomes of them
        warnings.warn(warning.message, warning.category, stacklevel=2)
    return replace(report, notes=tuple(dict.fromkeys(notes)))


def _audit(
    target: Target,
    records: Records,
    key: jax.Array,
    attacks: Sequence[AnyAttack] | None,
    fractions: tuple[float, float, float],
    overlap: Literal["error", "drop"],
    device_budget: int,
    host_budget: int | None,
    progress: Progress | None,
) -> Report:
    if attacks is None:
        attacks = (*TRAINING_FREE, Learned(spec=SignalSpec()), Learned(), Blind())
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks are named {names}; give at least one, and each its own name.")
    target = target.for_inputs(records.x.shape[1:])
    check_records(target, records)
    asked = [attack.reads(target) for attack in attacks]
    reads = [None if spec is None else spec.resolved(target) for spec in asked]
    key, split_key = jax.random.split(key)
    indices = split_indices(split_key, records, fractions, overlap=overlap)

    wanted = SignalSpec().resolved(target)
    for spec in reads:
        wanted = wanted.union(spec) if spec else wanted
    used = np.concatenate(indices)
    start = time.perf_counter()
    signals = extract(
        target,
        records.rows(used),
        wanted,
        device_budget=device_budget,
        host_budget=host_budget,
        progress=progress and partial(progress, "signals"),
    )
    signal_seconds = time.perf_counter() - start
    bounds = np.cumsum([0, *(index.size for index in indices)])
    slices = [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    parts = [
        Part(records.rows(index), signals.rows(rows))
        for index, rows in zip(indices, slices, strict=True)
    ]
    rows = []
    for i, (attack, spec) in enumerate(zip(attacks, reads, strict=True)):
        if progress:
            progress("attacks", i, len(attacks))
        mine = [p._replace(signals=p.signals.only(spec)) if spec else p for p in parts]
        rows.append(_row(jax.random.fold_in(key, i), attack, spec, mine))
    if progress:
        progress("attacks", len(attacks), len(attacks))
    correct = score_of.correctness(signals)
    known = records.is_member[used]
    return Report(
        rows=tuple(rows),
        held=parts[2].records,
        held_index=indices[2],
        parts=tuple(_counts(p.records) for p in parts),  # type: ignore[arg-type]
        target=target.spec,
        accuracy=(float(correct[known].mean()), float(correct[~known].mean())),
        seed=" ".join(map(str, jax.random.key_data(key).ravel().tolist())),
        signal_seconds=signal_seconds,
        signal_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(signals)),
        versions=_versions(),
        device=", ".join(str(device) for device in jax.local_devices()),
        settings={"fractions": list(fractions), "overlap": overlap},
    )


def _row(key: jax.Array, attack: AnyAttack, spec: ResolvedSpec | None, parts: list[Part]) -> Row:
    start = time.perf_counter()
    found = attack.run(key, *parts)
    seconds = time.perf_counter() - start
    fit, select, held = (part.records for part in parts)
    threshold = best_threshold(found.select, select.is_member)
    known = [_counts(part) for part in ([fit, select] if attack.fits else [select])]
    return Row(
        name=attack.name,
        result=evaluate(found.held, held.is_member, threshold=threshold),
        budget=Budget(
            known_members=sum(members for members, _ in known),
            known_nonmembers=sum(others for _, others in known),
            queries=int(spec is not None),
            reads=_reads(spec),
            parameters=(*spec.gradients, *spec.norms) if spec else (),
        ),
        seconds=seconds,
        history=found.history,
        best_epoch=found.best_epoch,
    )


def _reads(spec: ResolvedSpec | None) -> tuple[str, ...]:
    if spec is None:
        return ("x", "y")
    layers = tuple(dict.fromkeys(layer_of(name) for name in spec.gradients))
    return (
        *spec.outputs,
        *([f"gradients of {_listed(layers)}"] if layers else []),
        *([f"gradient norms of {_listed(spec.norms)}"] if spec.norms else []),
        *(["loss"] if spec.loss else []),
        *(["label"] if spec.label else []),
    )


def _listed(layers: tuple[str, ...]) -> str:
    return " and ".join(layers) if len(layers) <= 2 else f"{len(layers)} layers"


def _counts(records: Records) -> tuple[int, int]:
    members = int(records.is_member.sum())
    return members, len(records.y) - members


def _versions() -> tuple[tuple[str, str], ...]:
    packages = ("jaxmeter", "jax", "jaxlib", "flax", "optax", "numpy", "keras", "jax-privacy")
    return (("python", platform.python_version()), *((name, version(name)) for name in packages))
