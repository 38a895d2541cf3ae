"""Targets that were not trained as the models they are compared with.

    JAXMETER_DATA=FOLDER python experiments/calibrated_whitebox_unlike.py sweep
    python experiments/calibrated_whitebox_unlike.py table --by target.index attack

The Location-30 pool of `calibrated_whitebox.py`, which one store trains once for both, its first 32
models, and five targets that are strangers to it: trained for 20 epochs, for 150, with three times
the learning rate, in batches of 256, on 1,200 members. `docs/calibrated_whitebox.md` reads the
table.

Cost: 4 minutes on two CPU cores that did other work, without the pool. AUC / TPR at 0.1% FPR in per
cent:

| attack | 20 epochs | 150 epochs | rate | batches | members |
| --- | ---: | ---: | ---: | ---: | ---: |
| negative loss | .747 / 0.2 | .824 / 0.4 | .817 / 0.2 | .764 / 0.0 | .882 / 0.0 |
| LiRA | .793 / 2.0 | .723 / 0.6 | .783 / 6.3 | .844 / 0.3 | .937 / 4.8 |
| LiRA, levels taken out | .812 / 3.4 | .881 / 4.1 | .910 / 8.9 | .877 / 2.1 | .715 / 0.1 |
| calibrated: norms, alignment | .892 / 23 | .967 / 44 | .965 / 45 | .940 / 31 | .968 / 42 |
| calibrated, offline | .894 / 20.4 | .966 / 44.3 | .965 / 46.8 | .939 / 33.2 | .971 / 45.1 |

One target each; Python 3.11, jax 0.10.2, flax 0.12.8.
"""

from dataclasses import dataclass, replace

from calibrated_whitebox import BASE as ALIKE
from calibrated_whitebox import RECIPE, STANDARD, Calibrated
from numpy.typing import NDArray

import jaxmeter as jm
from jaxmeter import experiment, reference


def without_levels(observed: NDArray, references: NDArray, was_member: NDArray) -> NDArray:
    """LiRA, the target's level taken out first as the calibrated attack does."""
    features = reference.calibrate(observed, references, was_member)
    return features[:, 0, reference.ONLINE.index("log-ratio, shared variances")]


@dataclass(frozen=True, kw_only=True)
class LiraWithoutLevels(jm.Lira):
    """LiRA, the target's level taken out first."""

    name: str = "LiRA, levels taken out"
    function = staticmethod(without_levels)

    def options(self, parts: object) -> dict[str, object]:
        """None."""
        return {}


BASE = replace(
    ALIKE,
    study="calibrated_whitebox_unlike",
    attacks=(
        jm.NegativeLoss(),
        jm.Lira(),
        LiraWithoutLevels(),
        STANDARD,
        Calibrated(name="calibrated, offline", online=False),
    ),
)
STRANGERS = (
    experiment.Stranger(recipe=replace(RECIPE, epochs=20), members=2500),
    experiment.Stranger(recipe=replace(RECIPE, epochs=150), members=2500),
    experiment.Stranger(recipe=replace(RECIPE, learning_rate=3e-3), members=2500),
    experiment.Stranger(recipe=replace(RECIPE, batch_size=256), members=2500),
    experiment.Stranger(recipe=RECIPE, members=1200),
)
AXES = [{"target.index": i, "target.stranger": one} for i, one in enumerate(STRANGERS)]

if __name__ == "__main__":
    experiment.main(BASE, AXES)
