"""The calibrated white box: a network that learns from reference models how to read a target."""

import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.attacks.interface import Access, AttackOutput, Evidence
from jaxmeter.attacks.with_references import (
    OF_LOGITS,
    NeedsReferences,
    attackable,
    seen_by_references,
    spread_of,
    warn_if_unlike,
)
from jaxmeter.reference.calibration import calibrate, separation
from jaxmeter.reference.inputs import ReferenceWarning
from jaxmeter.reference.networks import NetworkConfig
from jaxmeter.reference.white_box import CONFIG, learn, supervised
from jaxmeter.signals.scalars.names import SCALARS, Scalar, is_of
from jaxmeter.signals.spec import Signals, SignalSpec
from jaxmeter.target import Target

if TYPE_CHECKING:
    Signal = str
else:
    Signal = Literal["log odds", "margin", "log probability", "gradient norms", Scalar]
_FEWEST = 4  # reference models to learn from: two pairs
_TINY = np.finfo(np.float32).tiny


def stacked(names: tuple[Signal, ...], signals: Signals, y: NDArray) -> NDArray:
    """The named signals, float64 `[s, n]`, or `[k, s, n]` of signals of k models.

    Args:
      names: which; gradient norms are minus their logs, one a layer, and scalars those of
        `SignalSpec.scalars`, so that "gradient norms" and a scalar may stand for several signals.
      signals: of n records.
      y: their labels `[n]`.

    Raises:
      ValueError: for a name whose signals were not extracted.
    """
    found: list[NDArray] = []
    for name in names:
        some = by_place(name, signals, y)
        if not some:
            raise ValueError(
                f"the signals hold no {name}; extract them with SignalSpec(gradient_norm=True) or "
                f"SignalSpec(scalars=({name!r},)). (Only kernels have an alignment.)"
            )
        found += some.values()
    return np.stack(found, axis=-2)


def by_place(name: Signal, signals: Signals, y: NDArray) -> dict[str, NDArray]:
    """The signals that a name stands for, float64 `[n]` or `[k, n]`, by layer or variable.

    In the order of these names, numbers in them by size: dicts of arrays lose the model's order
    when JAX maps over them, and the target's signals must be paired with the same of the reference
    models, whose layers a framework may have counted on ("dense_9", "dense_10").
    """
    if name in OF_LOGITS:
        return {"": OF_LOGITS[name](signals.logits, y)}
    found: dict[str, NDArray] = {}
    if name == "gradient norms":
        for layer, norm in signals.gradient_norms.items():
            found[layer] = -np.log(np.maximum(np.asarray(norm, np.float64), _TINY))
    for scalar, value in signals.scalars.items():
        if is_of(name, scalar):
            found[scalar[len(name) + 1 :]] = np.asarray(value, np.float64)
    return {place: found[place] for place in sorted(found, key=_counted)}


def _counted(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, in which "dense_9" comes before "dense_10"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


@dataclass(frozen=True, kw_only=True)
class CalibratedInference(NeedsReferences):
    """A network on signals calibrated by reference models; see `reference.learn`.

    It is fitted on the reference models, of which it is known what they were trained on, and knows
    no member of the target.

    Attributes:
      signals: what it reads of a record, the log-odds first; see `SignalSpec`. ("log odds",) alone
        is a black box.
      network: its shape and its fitting.
      name: the row's name.
    """

    signals: tuple[Signal, ...] = ("log odds", "gradient norms", "alignment")
    network: NetworkConfig = CONFIG
    title: ClassVar[str] = "calibrated"
    online: ClassVar[bool] = True

    @property
    def access(self) -> Access:
        """What the attacker sees."""
        return "outputs" if all(name in OF_LOGITS for name in self.signals) else "white box"

    def _named(self) -> str:
        return f"{self.title} {'white box' if self.access == 'white box' else 'black box'}"

    def reads(self, target: Target) -> SignalSpec:
        """The signals it needs, of the target and of the reference models."""
        return SignalSpec(
            outputs=("logits",),
            loss=False,
            label=False,
            gradient_norm="gradient norms" in self.signals,
            scalars=tuple(kind for kind in SCALARS if kind in self.signals),
        )

    def run(self, key: jax.Array, fit: Evidence, select: Evidence, held: Evidence) -> AttackOutput:
        """Scores of the select and the held-out part; nobody's membership in the target is used."""
        observed, references, was_member = self._given(fit, select, held)
        _check_both(was_member)
        first = len(fit.records.y)
        ends = np.cumsum([first, len(select.records.y)])
        if len(was_member) < _FEWEST:
            warnings.warn(
                f"{self.name}: {len(was_member)} reference models are too few to learn from, so "
                "the log-likelihood ratio of the first signal is its score; give four or more.",
                ReferenceWarning,
                stacklevel=2,
            )
            features = calibrate(observed, references, was_member, online=self.online)
            ratio = separation(features, online=self.online)[:, 0]
            _, mine, theirs = np.split(ratio, ends)
            return AttackOutput(mine, theirs)
        learned = learn(key, references, was_member, online=self.online, config=self.network)
        if not learned.uses_networks:
            warnings.warn(
                f"{self.name}: on reference models that it was not fitted on, the network ranks "
                "members no better than the log-likelihood ratio of the first signal, so that "
                "ratio is its score. More reference models may change this.",
                ReferenceWarning,
                stacklevel=2,
            )
        scores = learned.scores(observed, references, was_member)
        targets, spread = attackable(was_member), None
        if targets is not None and learned.left_out is not None:
            spread = spread_of(learned.left_out[targets, first:], was_member[targets, first:])
        _, mine, theirs = np.split(scores, ends)
        return AttackOutput(mine, theirs, spread=spread)

    def _given(self, *parts: Evidence) -> tuple[NDArray, NDArray, NDArray]:
        """Signals of target and models, membership of the models, of all parts together."""
        observed, references, was_member = [], [], []
        for part in parts:
            seen, y = seen_by_references(part), part.records.y
            observed.append(stacked(self.signals, part.signals, y))
            references.append(stacked(self.signals, seen.signals, y))
            was_member.append(seen.was_member)
        found, models = (np.concatenate(v, axis=-1) for v in (observed, references))
        warn_if_unlike(self.signals[0], found[0], models[:, 0])
        return found, models, np.concatenate(was_member, axis=1)


@dataclass(frozen=True, kw_only=True)
class CalibratedInferenceOffline(CalibratedInference):
    """The same from models that did not see the record: none need to be trained for a new target.

    The network still learns from records that some models saw: those audited, or, with
    `reference.learn` and `reference.Calibrated.scores`, others.
    """

    title: ClassVar[str] = "calibrated offline"
    online: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class CalibratedInferenceSupervised(CalibratedInference):
    """The same, fitted on known members of the target too; see `reference.supervised`."""

    title: ClassVar[str] = "calibrated supervised"
    fits: ClassVar[bool] = True

    def run(self, key: jax.Array, fit: Evidence, select: Evidence, held: Evidence) -> AttackOutput:
        """Scores of the select and the held-out part; it knows the members of the fit part."""
        observed, references, was_member = self._given(fit, select, held)
        _check_both(was_member)
        first, second = len(fit.records.y), len(select.records.y)
        is_known = np.arange(observed.shape[1]) < first
        scores = supervised(
            key,
            observed,
            references,
            was_member,
            np.where(is_known, np.resize(fit.records.is_member, is_known.size), False),
            known=is_known,
            config=self.network,
        )
        return AttackOutput(scores[first : first + second], scores[first + second :])


def _check_both(was_member: NDArray) -> None:
    if not was_member.any() or was_member.all():
        raise ValueError(
            "the reference models were trained on none of the audited records, or on all, so that "
            "they do not show what members look like. Give models that were trained on some of "
            "them (jaxmeter.Shadows), or learn on records they did see by "
            "jaxmeter.reference.learn(..., online=False), whose scores apply to any records."
        )
