"""What attacks are given and what they give back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.data.records import Records
from jaxmeter.signals.spec import Signals

FPRS = (0.01, 0.001)


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
    """One part of the records with its signals; `references` where there are reference models."""

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
    """What an attack says: scores of the select and of the held-out part, higher = member.

    `spread` is the same attack on reference models in turn, where it has some to be attacked.
    """

    select: NDArray
    held: NDArray
    history: tuple[Epoch, ...] = ()
    best_epoch: int | None = None
    spread: Spread | None = None
