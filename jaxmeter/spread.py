"""How an attack's figures spread over targets of one kind."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
        """Means, standard deviations and extremes, as plain values."""
        rates = [{"fpr": fpr, **_summary(self.tpr[:, i])} for i, fpr in enumerate(FPRS)]
        return {
            "targets": self.auc.size,
            "auc": {**_summary(self.auc), "values": self.auc.tolist()},
            "tpr_at_fpr": rates,
        }


def _summary(values: NDArray) -> dict[str, float | None]:
    """None for what the values do not give."""
    known = values[~np.isnan(values)]
    if not known.size:
        return dict.fromkeys(("mean", "sd", "low", "high"))
    return {
        "mean": float(known.mean()),
        "sd": float(known.std(ddof=1)) if known.size > 1 else None,
        "low": float(known.min()),
        "high": float(known.max()),
    }
