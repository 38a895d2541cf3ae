"""What attacks that compare with reference models have in common."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jaxmeter import logits
from jaxmeter.attacks.interface import FPRS, Evidence, ReferenceSignals, Spread
from jaxmeter.metrics import AttackResult, MetricWarning
from jaxmeter.reference.inputs import ReferenceWarning

# Statistics of a record that are functions of its logits and label, by the names users give them.
OF_LOGITS = {
    "log odds": logits.log_odds,
    "margin": logits.margin,
    "log probability": logits.log_probability,
}
_FEWEST = 6  # reference models: with a pair left out, two saw each record and two did not
_TARGETS = 32  # reference models that are attacked for the spread over targets, at most


@dataclass(frozen=True, kw_only=True)
class NeedsReferences:
    """What attacks with reference models have in common; not itself an attack."""

    name: str = ""
    title: ClassVar[str]
    fits: ClassVar[bool] = False
    needs_references: ClassVar[bool] = True
    needs_population: ClassVar[bool] = False

    def __post_init__(self) -> None:  # noqa: D105
        if not self.name:
            object.__setattr__(self, "name", self._named())

    def _named(self) -> str:
        return self.title


def attackable(was_member: NDArray) -> NDArray | None:
    """Reference models that can be attacked by the others, at most `_TARGETS` of them.

    None where no model saw any of the records, or there are fewer than six models.
    """
    k, n = was_member.shape
    members = was_member.sum(axis=1)
    able = np.flatnonzero((members >= 2) & (members <= n - 2))
    if k < _FEWEST or not able.size:
        return None
    return able[np.unique(np.linspace(0, able.size - 1, min(_TARGETS, able.size)).astype(int))]


def spread_of(scores: NDArray, was_member: NDArray) -> Spread:
    """What scores `[t, n]` of t models give away of what they were trained on, `[t, n]`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        results = [
            AttackResult(scores=row, is_member=seen)
            for row, seen in zip(scores, was_member, strict=True)
        ]
        tpr = [
            [r.tpr_at(fpr) if fpr >= r.resolvable_fpr else np.nan for fpr in FPRS] for r in results
        ]
    return Spread(np.array([result.auc for result in results]), np.array(tpr))


def warn_if_unlike(name: str, observed: NDArray, references: NDArray) -> None:
    """Warns of a target that says far more, or less, than any reference model does on average.

    `observed` is `[n]`, `references` `[k, n]`. Half of the records are members of each of the
    models as of the target, so their averages differ as two trainings do, unless these were
    different trainings.
    """
    means = references.mean(axis=1)
    own, low, high = float(observed.mean()), float(means.min()), float(means.max())
    room = max(high - low, 3 * float(means.std()))
    if not low - room <= own <= high + room:
        warnings.warn(
            f"the target is unlike its reference models: its {name} is {own:.3g} on average, "
            f"theirs from {low:.3g} to {high:.3g}. It was trained differently (longer, at "
            "another rate, on more or fewer records), so the attacks that compare it with them "
            "say too little or the wrong thing; bring their recipe closer to its training.",
            ReferenceWarning,
            stacklevel=3,
        )


def seen_by_references(part: Evidence) -> ReferenceSignals:
    """The part's records as reference models see them; ValueError if there are no such models."""
    if part.references is None:
        raise ValueError(
            "this attack compares the target with reference models, and there are none: pass "
            "references=jaxmeter.Shadows(...) to train some, or jaxmeter.References(...)."
        )
    return part.references
