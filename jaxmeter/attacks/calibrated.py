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

from jaxmeter.attacks.interface import Access, AttackOutput, Evidence, ReferenceSignals, Spread
from jaxmeter.attacks.with_references import (
    OF_LOGITS,
    NeedsReferences,
    attackable,
    seen_by_references,
    spread_of,
    warn_if_unlike,
)
from jaxmeter.reference.attack_r import attack_r
from jaxmeter.reference.bavaria import bavaria
from jaxmeter.reference.difficulty import difficulty_calibration
from jaxmeter.reference.inputs import ReferenceWarning
from jaxmeter.reference.leave_one_out import choose_a, leave_out
from jaxmeter.reference.lira import lira, lira_offline
from jaxmeter.reference.rmia import Population, log_ratio, log_ratio_offline, rmia, rmia_offline
from jaxmeter.signals.spec import Signals, SignalSpec
from jaxmeter.target import Target

Statistic = Literal["log odds", "margin", "log probability", "gradient norm"]


def statistic(name: Statistic, signals: Signals, y: NDArray) -> NDArray:
    """One number a record, `[n]`, or `[k, n]` for signals of k models; higher = member.

    "log odds", "margin" and "log probability" are those of `jaxmeter.logits`; "gradient norm" is
    minus the log of the norm of the loss's gradient over all layers.
    """
    if name == "gradient norm":
        squares = sum(np.square(v, dtype=np.float64) for v in signals.gradient_norms.values())
        return -0.5 * np.log(np.maximum(squares, np.finfo(np.float32).tiny))
    return OF_LOGITS[name](signals.logits, y)


@dataclass(frozen=True, kw_only=True)
class OfOneStatistic(NeedsReferences):
    """A score of `jaxmeter.reference` that reads one number a record; not itself an attack."""

    statistic: Statistic = "log odds"
    function: ClassVar[Any]  # of jaxmeter.reference

    def _named(self) -> str:
        default = type(self).__dataclass_fields__["statistic"].default
        return self.title + ("" if self.statistic == default else f", {self.statistic}")

    @property
    def access(self) -> Access:
        """What the attacker sees."""
        return "white box" if self.statistic == "gradient norm" else "outputs"

    def reads(self, target: Target) -> SignalSpec:
        """The signals it needs, of the target and of the reference models."""
        if self.statistic == "gradient norm":
            return SignalSpec(outputs=(), loss=False, label=False, gradient_norm=True)
        return SignalSpec(loss=False, label=False)

    def options(self, parts: "PartStatistics") -> dict[str, Any]:
        """Settings of this attack's function."""
        return {}

    def run(self, key: jax.Array, fit: Evidence, select: Evidence, held: Evidence) -> AttackOutput:
        """Scores of the select and the held-out part.

        The fit part's non-members are the population of the attacks that have one; nothing else of
        the target's membership is used.
        """
        given = PartStatistics(self.statistic, fit, select, held)
        warn_if_unlike(self.statistic, given.observed, given.references)
        score = partial(type(self).function, **self.options(given))
        options: dict[str, Any] = {}
        if self.needs_population:
            options["population"] = given.population()
        scores = score(given.observed, given.references, given.was_member, **options)
        cut = len(select.records.y)
        return AttackOutput(scores[:cut], scores[cut:], spread=self._spread(score, given))

    def _spread(self, score: Callable[..., NDArray], given: "PartStatistics") -> Spread | None:
        """The same attack on reference models in turn, by the others."""
        targets = attackable(given.was_member)
        if targets is None:
            return None
        with warnings.catch_warnings():
            # What is missing is said of the target; here it would be said k times.
            warnings.simplefilter("ignore", ReferenceWarning)
            scores = leave_out(
                score,
                given.references,
                given.was_member,
                population=given.everybody() if self.needs_population else None,
                targets=targets.tolist(),
            )
        return spread_of(scores, given.was_member[targets])


class PartStatistics:
    """One statistic of the parts, of the target and of the reference models."""

    def __init__(self, name: Statistic, fit: Evidence, select: Evidence, held: Evidence) -> None:
        """Of the select and held-out part together; the fit part is kept apart."""
        seen = [seen_by_references(part) for part in (fit, select, held)]

        def of(part: Evidence, models: ReferenceSignals) -> tuple[NDArray, NDArray]:
            y = part.records.y
            return statistic(name, part.signals, y), statistic(name, models.signals, y)

        (self._fit, self._fit_references), *others = map(of, (fit, select, held), seen)
        self._seen, self._is_member = seen[0].was_member, fit.records.is_member
        self.observed: NDArray = np.concatenate([mine for mine, _ in others])
        self.references: NDArray = np.concatenate([theirs for _, theirs in others], axis=1)
        self.was_member: NDArray = np.concatenate([one.was_member for one in seen[1:]], axis=1)

    def population(self) -> Population:
        """The non-members of the fit part."""
        apart = ~self._is_member
        return Population(self._fit[apart], self._fit_references[:, apart], self._seen[:, apart])

    def everybody(self) -> tuple[NDArray, NDArray]:
        """The fit part as the reference models know it."""
        return self._fit_references, self._seen


@dataclass(frozen=True, kw_only=True)
class Lira(OfOneStatistic):
    """The likelihood-ratio attack, online; see `reference.lira`.

    Attributes:
      statistic: what is compared.
      variance: "shared" by all records, or each record's "own", which takes many models (64).
      name: the row's name.
    """

    variance: Literal["shared", "own"] = "shared"
    title: ClassVar[str] = "LiRA"
    function: ClassVar[Any] = staticmethod(lira)

    def _named(self) -> str:
        return super()._named() + (", own variance" if self.variance == "own" else "")

    def options(self, parts: PartStatistics) -> dict[str, Any]:
        """Of `reference.lira`."""
        return {"variance": self.variance}


@dataclass(frozen=True, kw_only=True)
class LiraOffline(Lira):
    """The likelihood-ratio attack from models that did not see the record; `lira_offline`."""

    title: ClassVar[str] = "LiRA offline"
    function: ClassVar[Any] = staticmethod(lira_offline)


@dataclass(frozen=True, kw_only=True)
class LogRatio(OfOneStatistic):
    """The log-ratio of BASE and InfoRMIA, online; see `reference.log_ratio`."""

    statistic: Statistic = "log probability"
    title: ClassVar[str] = "log-ratio"
    function: ClassVar[Any] = staticmethod(log_ratio)


@dataclass(frozen=True, kw_only=True)
class LogRatioOffline(OfOneStatistic):
    """The log-ratio from models that did not see the record; see `reference.log_ratio_offline`.

    Attributes:
      statistic: what is compared.
      a: of the linear guess of what IN models say; None to choose it by `reference.choose_a`.
      name: the row's name.
    """

    statistic: Statistic = "log probability"
    a: float | None = None
    title: ClassVar[str] = "log-ratio offline"
    function: ClassVar[Any] = staticmethod(log_ratio_offline)

    def options(self, parts: PartStatistics) -> dict[str, Any]:
        """Of `reference.log_ratio_offline`."""
        if self.a is not None:
            return {"a": self.a}
        return {"a": choose_a(parts.references, parts.was_member)}


@dataclass(frozen=True, kw_only=True)
class Rmia(OfOneStatistic):
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
    function: ClassVar[Any] = staticmethod(rmia)

    def options(self, parts: PartStatistics) -> dict[str, Any]:
        """Of `reference.rmia`."""
        return {"gamma": self.gamma}


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
    function: ClassVar[Any] = staticmethod(rmia_offline)

    def options(self, parts: PartStatistics) -> dict[str, Any]:
        """Of `reference.rmia_offline`."""
        a = self.a
        if a is None:
            a = choose_a(
                parts.references,
                parts.was_member,
                population=parts.everybody(),
                gamma=self.gamma,
            )
        return {**super().options(parts), "a": a}


@dataclass(frozen=True, kw_only=True)
class Bavaria(OfOneStatistic):
    """The normal-inverse-gamma predictive ratio, online; see `reference.bavaria`."""

    title: ClassVar[str] = "BaVarIA"
    function: ClassVar[Any] = staticmethod(bavaria)


@dataclass(frozen=True, kw_only=True)
class AttackR(OfOneStatistic):
    """The share of models that did not see the record and say less; see `reference.attack_r`."""

    statistic: Statistic = "log probability"
    title: ClassVar[str] = "attack R"
    function: ClassVar[Any] = staticmethod(attack_r)


@dataclass(frozen=True, kw_only=True)
class DifficultyCalibration(OfOneStatistic):
    """The statistic minus its mean over models that did not see the record (Watson et al. 2022).

    See `reference.difficulty_calibration`.
    """

    statistic: Statistic = "log probability"
    title: ClassVar[str] = "difficulty calibration"
    function: ClassVar[Any] = staticmethod(difficulty_calibration)
