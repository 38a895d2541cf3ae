"""Attacks that compare what the target says of a record with what reference models say of it.

The formulas are `jaxmeter.reference`'s; here they are configs of an audit. Each reads one number a
record, of the target and of k reference models, and which of these were trained on the record.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter import logits, reference
from jaxmeter.metrics import AttackResult, MetricWarning
from jaxmeter.parts import Found, Part, SeenBy
from jaxmeter.signals import Signals, SignalSpec
from jaxmeter.spread import FPRS, Spread
from jaxmeter.target import Target

Statistic = Literal["log odds", "margin", "log probability", "gradient norm"]

_FEWEST = 6  # reference models: with a pair left out, two saw each record and two did not
_TARGETS = 32  # reference models that are attacked for the spread over targets, at most


def statistic(name: Statistic, signals: Signals, y: NDArray) -> NDArray:
    """One number a record, `[n]`, or `[k, n]` for signals of k models; higher = member.

    "log odds", "margin" and "log probability" are those of `jaxmeter.logits`; "gradient norm" is
    minus the log of the norm of the loss's gradient over all layers.
    """
    if name == "gradient norm":
        squares = sum(np.square(v, dtype=np.float64) for v in signals.gradient_norms.values())
        return -0.5 * np.log(np.maximum(squares, np.finfo(np.float32).tiny))
    of = {
        "log odds": logits.log_odds,
        "margin": logits.margin,
        "log probability": logits.log_probability,
    }
    return of[name](signals.logits, y)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What attacks with reference models have in common; not itself an attack."""

    statistic: Statistic = "log odds"
    name: str = ""
    title: ClassVar[str]
    fits: ClassVar[bool] = False
    needs_population: ClassVar[bool] = False

    def __post_init__(self) -> None:  # noqa: D105
        if not self.name:
            object.__setattr__(self, "name", self._named())

    def _named(self) -> str:
        default = type(self).__dataclass_fields__["statistic"].default
        return self.title + ("" if self.statistic == default else f", {self.statistic}")

    def reads(self, target: Target) -> SignalSpec:
        """The signals it needs, of the target and of the reference models."""
        if self.statistic == "gradient norm":
            return SignalSpec(outputs=(), loss=False, label=False, gradient_norm=True)
        return SignalSpec(loss=False, label=False)

    def score(self, parts: "Statistics") -> Callable[..., NDArray]:
        """The function of `jaxmeter.reference`, with this attack's settings."""
        raise NotImplementedError

    def run(self, key: jax.Array, fit: Part, select: Part, held: Part) -> Found:
        """Scores of the select and the held-out part.

        The fit part's non-members are the population of the attacks that have one; nothing else of
        the target's membership is used.
        """
        given = Statistics(self.statistic, fit, select, held)
        given.check_alike(self.statistic)
        options: dict[str, Any] = {}
        if self.needs_population:
            options["population"] = given.population()
        scores = self.score(given)(given.observed, given.references, given.was_member, **options)
        return Found(scores[: len(select.records.y)], scores[len(select.records.y) :])

    def spread(self, fit: Part, select: Part, held: Part) -> Spread | None:
        """The same attack on reference models in turn, by the others; None if that is impossible.

        It is impossible where no model saw any of the records, or there are fewer than six models.
        """
        given = Statistics(self.statistic, fit, select, held)
        members = given.was_member.sum(axis=1)
        k, n = given.was_member.shape
        able = np.flatnonzero((members >= 2) & (members <= n - 2))
        if k < _FEWEST or not able.size:
            return None
        some = np.unique(np.linspace(0, able.size - 1, min(_TARGETS, able.size)).astype(int))
        targets = able[some]
        with warnings.catch_warnings():
            # What is missing is said of the target; here it would be said k times.
            warnings.simplefilter("ignore", reference.ReferenceWarning)
            scores = reference.leave_out(
                self.score(given),
                given.references,
                given.was_member,
                population=given.everybody() if self.needs_population else None,
                targets=targets.tolist(),
            )
            warnings.simplefilter("ignore", MetricWarning)
            results = [
                AttackResult(scores=row, is_member=given.was_member[target])
                for row, target in zip(scores, targets, strict=True)
            ]
            tpr = [
                [r.tpr_at(fpr) if fpr >= r.resolvable_fpr else np.nan for fpr in FPRS]
                for r in results
            ]
        return Spread(np.array([result.auc for result in results]), np.array(tpr))


class Statistics:
    """One statistic of the parts, of the target and of the reference models."""

    def __init__(self, name: Statistic, fit: Part, select: Part, held: Part) -> None:
        """Of the select and held-out part together; the fit part is kept apart."""
        if fit.references is None or select.references is None or held.references is None:
            raise ValueError(
                "this attack compares the target with reference models, and there are none: pass "
                "references=jaxmeter.Shadows(...) to train some, or jaxmeter.References(...)."
            )

        def of(part: Part) -> tuple[NDArray, NDArray]:
            y, seen = part.records.y, part.references
            assert isinstance(seen, SeenBy)
            return statistic(name, part.signals, y), statistic(name, seen.signals, y)

        (self._fit, self._fit_references), *others = map(of, (fit, select, held))
        self._seen, self._is_member = fit.references.was_member, fit.records.is_member
        self.observed: NDArray = np.concatenate([mine for mine, _ in others])
        self.references: NDArray = np.concatenate([theirs for _, theirs in others], axis=1)
        both = [select.references.was_member, held.references.was_member]
        self.was_member: NDArray = np.concatenate(both, axis=1)

    def check_alike(self, name: str) -> None:
        """Warns of a target that says far more, or less, than any reference model does on average.

        Half of the records are members of each of them as of the target, so their averages differ
        as two trainings do, unless these were different trainings.
        """
        means = self.references.mean(axis=1)
        own, low, high = float(self.observed.mean()), float(means.min()), float(means.max())
        room = max(high - low, 3 * float(means.std()))
        if not low - room <= own <= high + room:
            warnings.warn(
                f"the target is unlike its reference models: its {name} is {own:.3g} on average, "
                f"theirs from {low:.3g} to {high:.3g}. It was trained differently (longer, at "
                "another rate, on more or fewer records), so the attacks that compare it with them "
                "say too little or the wrong thing; bring their recipe closer to its training.",
                reference.ReferenceWarning,
                stacklevel=2,
            )

    def population(self) -> reference.Population:
        """The non-members of the fit part."""
        apart = ~self._is_member
        return reference.Population(
            self._fit[apart], self._fit_references[:, apart], self._seen[:, apart]
        )

    def everybody(self) -> tuple[NDArray, NDArray]:
        """The fit part as the reference models know it."""
        return self._fit_references, self._seen


@dataclass(frozen=True, kw_only=True)
class Lira(Calibrated):
    """The likelihood-ratio attack, online; see `reference.lira`.

    Attributes:
      statistic: what is compared.
      variance: "shared" by all records, or each record's "own", which takes many models (64).
      name: the row's name.
    """

    variance: Literal["shared", "own"] = "shared"
    title: ClassVar[str] = "LiRA"

    def _named(self) -> str:
        return super()._named() + (", own variance" if self.variance == "own" else "")

    def score(self, parts: Statistics) -> Callable[..., NDArray]:
        """`reference.lira`."""
        return partial(reference.lira, variance=self.variance)


@dataclass(frozen=True, kw_only=True)
class LiraOffline(Lira):
    """The likelihood-ratio attack from models that did not see the record; `lira_offline`."""

    title: ClassVar[str] = "LiRA offline"

    def score(self, parts: Statistics) -> Callable[..., NDArray]:
        """`reference.lira_offline`."""
        return partial(reference.lira_offline, variance=self.variance)


@dataclass(frozen=True, kw_only=True)
class LogRatio(Calibrated):
    """The log-ratio of BASE and InfoRMIA, online; see `reference.log_ratio`."""

    statistic: Statistic = "log probability"
    title: ClassVar[str] = "log-ratio"

    def score(self, parts: Statistics) -> Callable[..., NDArray]:
        """`reference.log_ratio`."""
        return reference.log_ratio


@dataclass(frozen=True, kw_only=True)
class LogRatioOffline(Calibrated):
    """The log-ratio from models that did not see the record; see `reference.log_ratio_offline`.

    Attributes:
      statistic: what is compared.
      a: of the linear guess of what IN models say; None to choose it by `reference.choose_a`.
      name: the row's name.
    """

    statistic: Statistic = "log probability"
    a: float | None = None
    title: ClassVar[str] = "log-ratio offline"

    def score(self, parts: Statistics) -> Callable[..., NDArray]:
        """`reference.log_ratio_offline`."""
        a = self.a
        if a is None:
            a = reference.choose_a(parts.references, parts.was_member)
        return partial(reference.log_ratio_offline, a=a)


@dataclass(frozen=True, kw_only=True)
class Rmia(Calibrated):
    """RMIA, online; see `reference.rmia`. Its population is the fit part's non-members.

    Attributes:
      statistic: what is compared.
      gamma: how many times larger a record's ratio must be than the population's.
      name: the row's name.
    """

    statistic: Statistic = "log probability"
    gamma: float = 2.0
    title: ClassVar[str] = "RMIA"
    needs_population: ClassVar[bool] = True

    def score(self, parts: Statistics) -> Callable[..., NDArray]:
        """`reference.rmia`."""
        return partial(reference.rmia, gamma=self.gamma)


@dataclass(frozen=True, kw_only=True)
class RmiaOffline(Rmia):
    """RMIA from models that did not see the record; see `reference.rmia_offline`.

    Attributes:
      statistic: what is compared.
      gamma: how many times larger a record's ratio must be than the population's.
      a: of the linear guess of what IN models say; None to choose it by `reference.choose_a`, on
        the reference models alone.
      name: the row's name.
    """

    a: float | None = None
    title: ClassVar[str] = "RMIA offline"

    def score(self, parts: Statistics) -> Callable[..., NDArray]:
        """`reference.rmia_offline`."""
        a = self.a
        if a is None:
            a = reference.choose_a(
                parts.references,
                parts.was_member,
                population=parts.everybody(),
                gamma=self.gamma,
            )
        return partial(reference.rmia_offline, gamma=self.gamma, a=a)


@dataclass(frozen=True, kw_only=True)
class Bavaria(Calibrated):
    """The normal-inverse-gamma predictive ratio, online; see `reference.bavaria`."""

    title: ClassVar[str] = "BaVarIA"

    def score(self, parts: Statistics) -> Callable[..., NDArray]:
        """`reference.bavaria`."""
        return reference.bavaria


@dataclass(frozen=True, kw_only=True)
class AttackR(Calibrated):
    """The share of models that did not see the record and say less; see `reference.attack_r`."""

    statistic: Statistic = "log probability"
    title: ClassVar[str] = "attack R"

    def score(self, parts: Statistics) -> Callable[..., NDArray]:
        """`reference.attack_r`."""
        return reference.attack_r


@dataclass(frozen=True, kw_only=True)
class DifficultyCalibration(Calibrated):
    """The statistic minus its mean over models that did not see the record (Watson et al. 2022).

    See `reference.difficulty_calibration`.
    """

    statistic: Statistic = "log probability"
    title: ClassVar[str] = "difficulty calibration"

    def score(self, parts: Statistics) -> Callable[..., NDArray]:
        """`reference.difficulty_calibration`."""
        return reference.difficulty_calibration
