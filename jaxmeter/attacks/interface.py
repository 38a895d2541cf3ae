"""What attacks are given and what they give back."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.data.records import Records
from jaxmeter.signals.spec import Signals, SignalSpec
from jaxmeter.target import LOGITS, Target

FPRS = (0.01, 0.001)
# What an attacker sees of the target, from least to most; a record's own `x` and `y` always.
Access = Literal["records", "labels", "outputs", "white box"]
Quantity = Literal["gradient norm"]  # of which a report has a figure
ACCESS: tuple[Access, ...] = ("records", "labels", "outputs", "white box")


class Spread(NamedTuple):
    """One attack on t targets of one kind: reference models in turn, attacked by the others.

    Attributes:
      auc: `[t]`.
      tpr: at each FPR of `FPRS`, `[t, 2]`; NaN where the non-members cannot resolve it.
    """

    auc: NDArray
    tpr: NDArray

    def facts(self) -> dict[str, Any]:
        """Means, standard deviations, extremes and all values, as plain values; None for NaN."""
        rates = [{"fpr": fpr, **_summary(self.tpr[:, i])} for i, fpr in enumerate(FPRS)]
        return {"targets": self.auc.size, "auc": _summary(self.auc), "tpr_at_fpr": rates}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Spread":
        """What `facts` were of.

        >>> spread = Spread(np.array([0.6, 0.7]), np.array([[0.1, np.nan], [0.2, np.nan]]))
        >>> again = Spread.of(spread.facts())
        >>> all(np.array_equal(a, b, equal_nan=True) for a, b in zip(spread, again))
        True
        """
        tpr = [at["values"] for at in facts["tpr_at_fpr"]]
        return cls(np.array(facts["auc"]["values"], float), np.array(tpr, float).T)


def _summary(values: NDArray) -> dict[str, Any]:
    """None for what the values do not give."""
    known = values[~np.isnan(values)]
    listed = [None if np.isnan(value) else float(value) for value in values]
    if not known.size:
        return {**dict.fromkeys(("mean", "sd", "low", "high")), "values": listed}
    return {
        "mean": float(known.mean()),
        "sd": float(known.std(ddof=1)) if known.size > 1 else None,
        "low": float(known.min()),
        "high": float(known.max()),
        "values": listed,
    }


class ReferenceSignals(NamedTuple):
    """Records as k reference models see them.

    Attributes:
      signals: of each model, leaves `[k, n, ...]`.
      was_member: whether model k was trained on record n, bool `[k, n]`.
    """

    signals: Signals
    was_member: NDArray

    def rows(self, index: NDArray | slice) -> "ReferenceSignals":
        """The same of some of the records."""
        signals = jax.tree.map(lambda leaf: leaf[:, index], self.signals)
        return ReferenceSignals(signals, self.was_member[:, index])


class Evidence(NamedTuple):
    """One part of the records with everything an attack may read of it.

    Attributes:
      records: n records, with who was a member of the target.
      signals: of the target, what the attack's `reads` asked for; leaves `[n, ...]`.
      references: the same signals of k reference models; None for an attack that needs none.
    """

    records: Records
    signals: Signals
    references: ReferenceSignals | None = None


class Epoch(NamedTuple):
    """One epoch of fitting a learned attack."""

    epoch: int
    loss: float
    select_loss: float
    select_auc: float


class AttackOutput(NamedTuple):
    """What an attack says of the records.

    Attributes:
      select: scores of the select part `[n]`, in its order; higher = more likely a member.
      held: scores of the held-out part.
      history: epochs of a learned attack.
      best_epoch: the epoch kept, 0 for "as initialised"; None for an attack without epochs.
      spread: the same attack on reference models in turn, where it has some to be attacked.
      minus: the quantity that the scores are minus of, if they are of one that a report has a
        figure of.
    """

    select: NDArray
    held: NDArray
    history: tuple[Epoch, ...] = ()
    best_epoch: int | None = None
    spread: Spread | None = None
    minus: Quantity | None = None


@runtime_checkable
class AttackConfig(Protocol):
    """What `jaxmeter.audit` and a study ask of an attack.

    Any frozen dataclass with these members is an attack: it inherits nothing and is registered
    nowhere. Its fields are its settings; in a study they are part of the run's name.

    >>> from dataclasses import dataclass
    >>> import jax, numpy as np, jaxmeter as jm
    >>> @dataclass(frozen=True, kw_only=True)
    ... class LargestLogit:
    ...     name: str = "largest logit"
    ...     access = "outputs"
    ...     fits = needs_references = needs_population = False
    ...     def reads(self, target):
    ...         return jm.SignalSpec(loss=False, label=False)
    ...     def run(self, key, fit, select, held):
    ...         scores = [part.signals.logits.max(axis=1) for part in (select, held)]
    ...         return jm.AttackOutput(*scores)
    >>> net = jm.from_function(lambda p, s, x: x @ p["w"], {"w": np.ones((3, 2), "f")})
    >>> x, y = np.random.default_rng(0).normal(size=(80, 3)), np.arange(80) % 2
    >>> records = jm.Records.of(members=(x[:40], y[:40]), nonmembers=(x[40:], y[40:]))
    >>> report = jm.audit(net, records, key=jax.random.key(0), attacks=[LargestLogit()])
    >>> report.rows[0].name
    'largest logit'
    """

    @property
    def name(self) -> str:
        """The row's name, unique in an audit."""

    @property
    def access(self) -> Access:
        """What the attacker sees: "records" for one that never asks the target, "labels",
        "outputs", or "white box" for one that reads gradients or inner layers' outputs."""

    @property
    def fits(self) -> bool:
        """Whether it uses who is a member in the fit part."""

    @property
    def needs_references(self) -> bool:
        """Whether it compares the target with reference models."""

    @property
    def needs_population(self) -> bool:
        """Whether it uses the fit part's non-members as a population."""

    def reads(self, target: Target) -> SignalSpec | None:
        """The signals it needs, of the target and of reference models; None for none at all."""

    def run(self, key: jax.Array, fit: Evidence, select: Evidence, held: Evidence) -> AttackOutput:
        """Scores of the select and the held-out part.

        Args:
          key: PRNG key, consumed.
          fit: records of known membership to learn from, if `fits`.
          select: records of known membership to choose an epoch on; thresholds are chosen on them.
          held: the records that figures are measured on. Their membership is part of the records,
            and to look at it would be to cheat.
        """


def access_of(spec: SignalSpec | None) -> Access:
    """What an attack sees that reads these signals.

    >>> access_of(SignalSpec()), access_of(SignalSpec(gradient_norm=True)), access_of(None)
    ('outputs', 'white box', 'records')
    """
    if spec is None:
        return "records"
    inner = set(spec.outputs) - {LOGITS}
    return (
        "white box" if inner or spec.gradients or spec.gradient_norm or spec.scalars else "outputs"
    )
