"""The attacks an audit can be asked to run, as frozen configs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from jaxmeter import scores as score_of
from jaxmeter.attack import decayed_adamw, inference_model
from jaxmeter.attack import fit as fit_attack
from jaxmeter.calibrated import (
    AttackR,
    Bavaria,
    Calibrated,
    DifficultyCalibration,
    Lira,
    LiraOffline,
    LogRatio,
    LogRatioOffline,
    OfOneStatistic,
    Rmia,
    RmiaOffline,
)
from jaxmeter.calibrated_inference import (
    CalibratedInference,
    CalibratedInferenceOffline,
    CalibratedInferenceSupervised,
)
from jaxmeter.parts import Epoch, Found, Part
from jaxmeter.signals import ResolvedSpec, SignalSpec, white_box
from jaxmeter.streams import stream
from jaxmeter.target import LOGITS, Target


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

    spec: SignalSpec | None = field(default=None, kw_only=False)
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
        epochs = enumerate(zip(*fitted.history[:3], strict=True))  # what an Epoch has
        history = tuple(Epoch(i, *map(float, epoch)) for i, epoch in epochs)
        return Found(chosen, measured, history, fitted.best_epoch)


TRAINING_FREE = (NegativeLoss(), Confidence(), ModifiedEntropy(), GradientNorm())
WITH_REFERENCES = (Lira(), LogRatio(), Rmia(), Bavaria(), LiraOffline(), CalibratedInference())

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
    | Lira
    | LiraOffline
    | LogRatio
    | LogRatioOffline
    | Rmia
    | RmiaOffline
    | Bavaria
    | AttackR
    | DifficultyCalibration
    | CalibratedInference
    | CalibratedInferenceOffline
    | CalibratedInferenceSupervised
)


# --- The steps of an audit that one attack at a time takes ----------------------------------------


def check_names(attacks: Sequence[AnyAttack]) -> None:
    """Refuses a list of attacks that a report could not tell apart."""
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks are named {names}; give at least one, and each its own name.")


_REMEDY = (
    "Pass references=jaxmeter.Shadows(architecture=...) to train some on the audited records "
    "(--references 32), or references=jaxmeter.References(...)."
)


def check_references(attacks: Sequence[AnyAttack], *, given: bool, remedy: str = _REMEDY) -> None:
    """Refuses attacks that lack reference models, and models that no attack asks for.

    `remedy` says how some are given.
    """
    needing = [attack.name for attack in calibrated(attacks)]
    if needing and not given:
        raise ValueError(
            f"{', '.join(needing)}: compared with reference models, of which there are none. "
            f"{remedy}"
        )
    if given and not needing:
        raise ValueError(
            "references= is given, but none of the attacks reads reference models; add "
            "jaxmeter.Lira() or another of jaxmeter.WITH_REFERENCES, or leave references out."
        )


def read_by(attack: AnyAttack, target: Target) -> ResolvedSpec | None:
    """The signals an attack reads, in the target's names; only `target.spec` is looked at."""
    spec = attack.reads(target)
    return None if spec is None else spec.resolved(target)


def calibrated(attacks: Sequence[AnyAttack]) -> list[OfOneStatistic | CalibratedInference]:
    """Those of the attacks that need reference models."""
    return [
        attack for attack in attacks if isinstance(attack, OfOneStatistic | CalibratedInference)
    ]


def union(reads: Sequence[ResolvedSpec | None], target: Target) -> ResolvedSpec:
    """What to extract once for attacks that read these, and for the target's accuracy."""
    wanted = SignalSpec().resolved(target)
    for spec in reads:
        wanted = wanted.union(spec) if spec else wanted
    return wanted


def found_by(
    key: jax.Array,
    attack: AnyAttack,
    spec: ResolvedSpec | None,
    fit: Part,
    select: Part,
    held: Part,
) -> Found:
    """What an attack finds, given no more of the signals than it reads."""
    mine = (p._replace(signals=p.signals.only(spec)) if spec else p for p in (fit, select, held))
    if not isinstance(attack, Calibrated):
        mine = (part._replace(references=None) for part in mine)
    return attack.run(stream(key, f"attack: {attack.name}"), *mine)
