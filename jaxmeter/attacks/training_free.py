"""Attacks that learn nothing: one number of the target's answer, as a score."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from jaxmeter import scores as score_of
from jaxmeter.attacks.interface import Access, AttackOutput, Evidence, Quantity, access_of
from jaxmeter.signals.spec import SignalSpec
from jaxmeter.target import Target


class _TrainingFree:
    """An attack that is a function of the signals; only its threshold looks at membership."""

    name: ClassVar[str]
    spec: ClassVar[SignalSpec] = SignalSpec(loss=False)
    fits: ClassVar[bool] = False
    needs_references: ClassVar[bool] = False
    needs_population: ClassVar[bool] = False
    score: ClassVar[Any]
    minus: ClassVar[Quantity | None] = None

    @property
    def access(self) -> Access:
        """What the attacker sees."""
        return access_of(self.spec)

    def reads(self, target: Target) -> SignalSpec | None:
        """The signals it needs."""
        return self.spec

    def run(self, key: jax.Array, fit: Evidence, select: Evidence, held: Evidence) -> AttackOutput:
        """Scores of the select and the held-out part."""
        score = type(self).score
        return AttackOutput(score(select.signals), score(held.signals), minus=self.minus)


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
    minus: ClassVar[Quantity | None] = "gradient norm"
    score: ClassVar = staticmethod(score_of.gradient_norm)


TRAINING_FREE = (NegativeLoss(), Confidence(), ModifiedEntropy(), GradientNorm())
