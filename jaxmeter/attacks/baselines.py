"""What an attack must beat: no question to the target, and a threshold for each class."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter import scores as score_of
from jaxmeter.attacks.interface import Access, AttackOutput, Evidence
from jaxmeter.signals.spec import SignalSpec
from jaxmeter.target import Target


@dataclass(frozen=True, kw_only=True)
class ClassWise:
    """Modified entropy against a threshold for each class; see `scores.class_wise_thresholds`."""

    name: str = "class-wise modified entropy"
    access: ClassVar[Access] = "outputs"
    fits: ClassVar[bool] = True
    needs_references: ClassVar[bool] = False
    needs_population: ClassVar[bool] = False

    def reads(self, target: Target) -> SignalSpec | None:
        """The signals it needs."""
        return SignalSpec(loss=False)

    def run(self, key: jax.Array, fit: Evidence, select: Evidence, held: Evidence) -> AttackOutput:
        """Scores of the select and the held-out part."""
        known = score_of.modified_entropy(fit.signals), fit.records.y, fit.records.is_member

        def score(part: Evidence) -> NDArray:
            own = score_of.modified_entropy(part.signals)
            return score_of.class_wise_thresholds(own, part.records.y, *known)

        return AttackOutput(score(select), score(held))


@dataclass(frozen=True, kw_only=True)
class Blind:
    """A classifier on `x` and `y` alone, which never queries the target.

    Whatever it finds is a difference between how members and non-members were drawn, not leakage
    (Das, Zhang, Tramer 2024, arXiv:2406.16201): every other attack may be measuring that as well.
    Gradient-boosted trees of scikit-learn, fitted on the fit part.
    """

    name: ClassVar[str] = "blind baseline"
    access: ClassVar[Access] = "records"
    fits: ClassVar[bool] = True
    needs_references: ClassVar[bool] = False
    needs_population: ClassVar[bool] = False

    def reads(self, target: Target) -> SignalSpec | None:
        """No signal."""
        return None

    def run(self, key: jax.Array, fit: Evidence, select: Evidence, held: Evidence) -> AttackOutput:
        """Scores of the select and the held-out part."""
        from sklearn.ensemble import HistGradientBoostingClassifier  # Takes a second to import.

        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
        trees = HistGradientBoostingClassifier(max_iter=50, random_state=seed)

        def features(part: Evidence) -> NDArray:
            x, y = part.records.x, part.records.y
            return np.concatenate([x.reshape(len(x), -1), y[:, None]], axis=1).astype(np.float32)

        trees.fit(features(fit), fit.records.is_member)
        return AttackOutput(*(trees.decision_function(features(part)) for part in (select, held)))
