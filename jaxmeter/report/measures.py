"""What is measured of one attack: figures with their intervals and counts, as facts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmeter.metrics import AttackResult
from jaxmeter.report.findings import resolvable, shortage

_EXACT_FALSE_POSITIVES, _ROC_POINTS = 500, 500


def auc(result: AttackResult) -> dict[str, Any]:
    """The AUC with its interval."""
    return {"value": result.auc, **result.auc_interval()._asdict()}


def balanced_accuracy(result: AttackResult) -> dict[str, Any]:
    """The balanced accuracy with its interval, its threshold and the counts behind it."""
    tell = result.threshold is not None
    flagged = result.scores >= result.threshold if tell else None
    return {
        "value": result.accuracy,
        **result.accuracy_interval()._asdict(),
        "threshold": result.threshold,
        "threshold_from": "the select part" if tell else "two folds of the held-out part",
        "true_positives": None if flagged is None else int((flagged & result.is_member).sum()),
        "false_positives": None if flagged is None else int((flagged & ~result.is_member).sum()),
    }


def at_fpr(result: AttackResult, fpr: float) -> dict[str, Any]:
    """The TPR at one FPR with its interval and counts, or None and the reason."""
    if not resolvable(result, fpr):
        return {"fpr": fpr, "value": None, "low": None, "high": None, "reason": shortage(fpr)}
    roc = result.roc()
    point = int(np.searchsorted(roc.fpr, fpr * (1 + 1e-12), side="right")) - 1
    realised = result.fpr_interval(fpr)
    return {
        "fpr": fpr,
        "value": result.tpr_at(fpr),
        **result.tpr_interval(fpr)._asdict(),
        "reason": None,
        "true_positives": round(roc.tpr[point] * result.n_members),
        "false_positives": round(roc.fpr[point] * result.n_nonmembers),
        "true_fpr": {"low": realised.low, "high": realised.high},
        "threshold": roc.thresholds[point],
    }


def thinned_roc(result: AttackResult) -> dict[str, Any]:
    """The ROC curve by its corners: all of them at low FPR, some 500 of the rest.

    Points in the middle of a vertical or horizontal run are left out: straight lines between the
    others are the same curve, so up to `exact_to_fpr` nothing is lost.
    """
    roc = result.roc()
    flat = (np.diff(roc.fpr)[1:] == 0) & (np.diff(roc.fpr)[:-1] == 0)
    flat |= (np.diff(roc.tpr)[1:] == 0) & (np.diff(roc.tpr)[:-1] == 0)
    corners = np.flatnonzero(np.concatenate([[True], ~flat, [True]]))
    exact_to = min(1.0, _EXACT_FALSE_POSITIVES / result.n_nonmembers)
    exact = corners[roc.fpr[corners] <= exact_to]
    rest = corners[len(exact) :]
    if len(rest) > _ROC_POINTS:
        rest = rest[np.unique(np.linspace(0, len(rest) - 1, _ROC_POINTS).round().astype(int))]
    else:
        exact_to = 1.0
    kept: NDArray = np.concatenate([exact, rest])
    return {
        "exact_to_fpr": exact_to,
        "fpr": roc.fpr[kept],
        "tpr": roc.tpr[kept],
        "threshold": roc.thresholds[kept],
    }
