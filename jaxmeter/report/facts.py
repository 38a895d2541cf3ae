"""An audit as plain facts, behind the page and `results.json`, and its scores as arrays.

`facts` gives plain Python values that are strict JSON: a figure that the data cannot give is None
beside a reason, never NaN.
"""

import importlib.metadata
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmeter.attacks.interface import FPRS
from jaxmeter.metrics import AttackResult
from jaxmeter.report.findings import (
    FEWEST_IN_CLASS,
    access,
    best,
    class_risk,
    exposed,
    resolvable,
    shortage,
)
from jaxmeter.report.result import AuditResult, LayerRanking, Row
from jaxmeter.target import TargetSpec

SCHEMA = 1
LAYER_ARRAYS = ("layer_scores", "output_scores")  # in scores.npz
_EXACT_FALSE_POSITIVES, _ROC_POINTS = 500, 500


def facts(
    report: AuditResult, verdict: dict[str, Any], layers: dict[str, Any] | None
) -> dict[str, Any]:
    """All figures of a report as dicts, lists, strings, finite numbers, bools and None."""
    top = best(report)
    (fit, select, held) = ({"members": m, "nonmembers": n} for m, n in report.parts)
    return plain(
        {
            "tool": "jaxmeter",
            "schema": SCHEMA,
            "version": dict(report.versions).get("jaxmeter") or _installed(),
            "verdict": verdict,
            "confidence": 0.95,
            "target": {
                **target_facts(report.target),
                "accuracy": dict(zip(("members", "nonmembers"), report.accuracy, strict=True)),
            },
            "parts": {"fit": fit, "select": select, "held": held},
            "attacks": attack_facts(report.rows),
            "classes": {
                "attack": top.name,
                "fewest": FEWEST_IN_CLASS,
                "by_label": [risk._asdict() for risk in class_risk(report, top)],
            },
            "exposed": {
                "attack": top.name,
                "records": [record._asdict() for record in exposed(report, top)],
            },
            "layers": layers,
            "notes": report.notes,
            "seed": report.seed,
            "settings": report.settings,
            "signals": {"seconds": report.signal_seconds, "bytes": report.signal_bytes},
            "device": report.device,
            "versions": dict(report.versions),
        }
    )


def _installed() -> str | None:
    try:
        return importlib.metadata.version("jaxmeter")
    except importlib.metadata.PackageNotFoundError:
        return None


def target_facts(spec: TargetSpec) -> dict[str, Any]:
    """What a target is and where it came from."""
    source = spec.source
    return plain(
        {
            "input_shape": spec.input_shape,
            "n_classes": spec.n_classes,
            "input_dtype": spec.input_dtype,
            "layers": spec.layers,
            "variables": spec.variables,
            "source": {
                "route": source.route,
                "origin": source.origin,
                "process": source.process,
                "logits": source.logits,
                "difference": source.difference,
                "versions": dict(source.versions),
            },
        }
    )


def attack_facts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All figures of every attack; the first is what the others are compared with."""
    return [
        plain({"key": key, **_attack(row, rows[0])})
        for key, row in zip(score_keys(rows), rows, strict=True)
    ]


def _attack(row: Row, reference: Row) -> dict[str, Any]:
    result, budget = row.result, row.budget
    tell = result.threshold is not None
    flagged = result.scores >= result.threshold if tell else None
    counts = {
        "true_positives": None if flagged is None else int((flagged & result.is_member).sum()),
        "false_positives": None if flagged is None else int((flagged & ~result.is_member).sum()),
    }
    return {
        "name": row.name,
        "access": access(row),
        "minus": row.minus,
        "n_members": result.n_members,
        "n_nonmembers": result.n_nonmembers,
        "resolvable_fpr": result.resolvable_fpr,
        "auc": {"value": result.auc, **result.auc_interval()._asdict()},
        "auc_minus_reference": {
            "reference": reference.name,
            **result.auc_difference(reference.result)._asdict(),
        },
        "balanced_accuracy": {
            "value": result.accuracy,
            **result.accuracy_interval()._asdict(),
            "threshold": result.threshold,
            "threshold_from": "the select part" if tell else "two folds of the held-out part",
            **counts,
        },
        "tpr_at_fpr": [at_fpr(result, fpr) for fpr in FPRS],
        "epsilon": result.epsilon(),
        "budget": {name: getattr(budget, name) for name in budget.__dataclass_fields__},
        "over_targets": None if row.spread is None else row.spread.facts(),
        "seconds": row.seconds,
        "best_epoch": row.best_epoch,
        "history": [epoch._asdict() for epoch in row.history],
        "roc": thinned_roc(result),
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


def plain(value: Any) -> Any:
    """The value in strict JSON's types; infinities as "inf" and "-inf", NaN as None.

    Whatever JSON does not know (a path, a function in the settings) becomes its text.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return str(value) if isinstance(value, PurePath) else repr(value)


def score_keys(rows: Sequence[Row]) -> list[str]:
    """The arrays' names in scores.npz, one an attack, made of letters, digits and underscores."""
    slugs = (re.sub(r"[^a-z0-9]+", "_", row.name.lower()).strip("_")[:40] for row in rows)
    return [f"scores_{i:02d}_{slug}".rstrip("_") for i, slug in enumerate(slugs)]


def score_arrays(
    rows: Sequence[Row],
    is_member: NDArray,
    y: NDArray,
    held_index: NDArray,
    layers: LayerRanking | None = None,
) -> dict[str, NDArray]:
    """What scores.npz holds: every attack's scores of the held-out records, and what these are."""
    keys = score_keys(rows)
    return {
        "attacks": np.array([row.name for row in rows], dtype=np.str_),
        "keys": np.array(keys, dtype=np.str_),
        "is_member": is_member,
        "y": y,
        "held_index": held_index,
        **{key: row.result.scores for key, row in zip(keys, rows, strict=True)},
        **({} if layers is None else layer_arrays(layers)),
    }


def layer_arrays(layers: LayerRanking) -> dict[str, NDArray]:
    """Every score of a layer map, `[signals, n]` in its order, and those of the output `[n]`."""
    scores = np.stack([row.result.scores for row in layers.rows])
    output = () if layers.output is None else (layers.output.scores,)
    return dict(zip(LAYER_ARRAYS, (scores, *output), strict=False))
