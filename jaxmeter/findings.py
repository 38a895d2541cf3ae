"""What an audit's numbers say: the facts behind the table, the page and `results.json`, each once.

Everything here is a pure function of a `Report`. `facts` gives plain Python values that are strict
JSON: a figure that the data cannot give is None beside a reason, never NaN.
"""

import importlib.metadata
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmeter.metrics import AttackResult, Interval, MetricWarning, evaluate
from jaxmeter.spread import FPRS

if TYPE_CHECKING:  # `report` imports this module; only the types are needed the other way.
    from jaxmeter.report import Report, Row
    from jaxmeter.target import TargetSpec

SCHEMA = 1
BLIND = "blind baseline"
GRADIENT_NORM = "gradient norm"
_FEWEST_IN_CLASS = 10  # members, and non-members, below which a class gets no figure
_EXACT_FALSE_POSITIVES, _ROC_POINTS = 500, 500


class ClassRisk(NamedTuple):
    """How well one attack tells members of one class from its non-members."""

    label: int
    n_members: int
    n_nonmembers: int
    auc: float | None  # None: too few records
    interval: Interval | None


class Exposed(NamedTuple):
    """A record that an attack is most sure of."""

    row: int  # among the held-out records
    record: int  # among the records given to the audit
    label: int
    score: float
    is_member: bool
    fpr: float  # non-members that score at least as high


# --- Which rows are what.


def is_blind(row: "Row") -> bool:
    """Whether the attack never queries the target."""
    return row.name == BLIND or row.budget.queries == 0


def access(row: "Row") -> str:
    """ "blind", "white box" (it needs parameters or inner layers' outputs) or "black box"."""
    inside = row.budget.parameters or row.budget.layers
    return "blind" if is_blind(row) else "white box" if inside else "black box"


def best(report: "Report") -> "Row":
    """The row with the largest AUC among those that query the target, the first of equals."""
    rows = [row for row in report.rows if not is_blind(row)] or list(report.rows)
    return max(rows, key=lambda row: row.result.auc)


def gradient_norms(report: "Report") -> NDArray | None:
    """The held-out records' gradient norms `[n]`, if an attack that scores by them was run."""
    rows = [row for row in report.rows if row.name == GRADIENT_NORM]
    return -rows[0].result.scores if rows else None


def corrected_interval(report: "Report") -> Interval:
    """The best attack's AUC interval, widened for being the best of several on these records."""
    tried = sum(not is_blind(row) for row in report.rows) or len(report.rows)
    return best(report).result.auc_interval(1 - 0.05 / tried)


def beats_chance(report: "Report") -> bool:
    """Whether the best AUC is above 0.5 after the correction for choosing it here."""
    return corrected_interval(report).low > 0.5


def drawn_differently(report: "Report") -> bool | None:
    """Whether members are told from non-members without the target; None if nobody tried."""
    rows = [row for row in report.rows if is_blind(row)]
    return any(row.result.auc_interval().low > 0.5 for row in rows) if rows else None


def resolvable(result: AttackResult, fpr: float) -> bool:
    """Whether the non-members are enough for a figure at this false positive rate."""
    return fpr >= result.resolvable_fpr


def shortage(fpr: float) -> str:
    """What is printed in place of a TPR that cannot be resolved."""
    return f"needs {math.ceil(1 / fpr * (1 - 1e-12)):,} non-members"


def score_keys(rows: Sequence["Row"]) -> list[str]:
    """The arrays' names in scores.npz, one an attack, made of letters, digits and underscores."""
    slugs = (re.sub(r"[^a-z0-9]+", "_", row.name.lower()).strip("_")[:40] for row in rows)
    return [f"scores_{i:02d}_{slug}".rstrip("_") for i, slug in enumerate(slugs)]


def score_arrays(
    rows: Sequence["Row"], is_member: NDArray, y: NDArray, held_index: NDArray
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
    }


# --- Numbers as text.


def percent(rate: float) -> str:
    """A rate for reading: one decimal, two below 1%.

    >>> percent(0.1234), percent(0.001), percent(0.0), percent(1.0), percent(0.9999)
    ('12.3%', '0.10%', '0%', '100%', '>99.9%')
    """
    if math.isnan(rate):
        return "unknown"
    if rate in (0, 1):
        return f"{rate:.0%}"
    if rate > 0.9995:
        return ">99.9%"
    return f"{rate:.1%}" if rate >= 0.00995 else f"{rate:.2%}" if rate >= 5e-5 else "<0.01%"


def rate_name(fpr: float) -> str:
    """A rate as a name, with no digits added: "1%", "0.1%"."""
    return f"{100 * fpr:g}%"


def percents(interval: Interval) -> str:
    """An interval of rates, e.g. "9.4–15.7%"; the first unit is left off if it is the same."""
    low, high = percent(interval.low), percent(interval.high)
    return (
        f"{low.removesuffix('%')}–{high}" if not set("<>") & set(low + high) else f"{low} – {high}"
    )


def plural(count: int, noun: str) -> str:
    """ "1 model", "2 models"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def budget_text(row: "Row") -> str:
    """What the attack was given, in a line.

    What it reads, how many records of known membership it used, models it trained.
    """
    budget = row.budget
    parts = ["never queries the target" if is_blind(row) else access(row)]
    if budget.reads:
        parts[0] += f": {', '.join(budget.reads)}"
    if budget.known_members or budget.known_nonmembers:
        parts.append(f"knows {budget.known_members:,}+{budget.known_nonmembers:,} records")
    if budget.models_trained:
        parts.append(f"{plural(budget.models_trained, 'model')} trained")
    if budget.queries > 1:
        parts.append(f"{budget.queries} queries a record")
    return "; ".join(parts)


def spread_lines(rows: Sequence["Row"]) -> list[str]:
    """What attacks with reference models found on those, a line each, under a line that says so."""
    lines = []
    for row in rows:
        if row.spread is not None:
            auc = row.spread.facts()["auc"]
            sd = "" if auc["sd"] is None else f", sd {auc['sd']:.3f}"
            lines.append(
                f"  {clean(row.name)}: mean {auc['mean']:.3f}{sd}, {auc['low']:.3f} to "
                f"{auc['high']:.3f} over {plural(row.spread.auc.size, 'model')}"
            )
    head = "AUC of the same attack on the reference models in turn, each attacked by the others:"
    return [head, *lines] if lines else []


def clean(text: Any) -> str:
    """One line without control characters, for labels that come from users."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\s]+", " ", str(text)).strip()


def shortened(name: str, width: int = 30) -> str:
    """At most `width` characters of a name, on one line; names often differ at their end.

    >>> shortened("gradients of dense_3", 12)
    'gradie…nse_3'
    """
    name, tail = clean(name), (width - 1) // 2
    return name if len(name) <= width else f"{name[: width - 1 - tail]}…{name[-tail:]}"


# --- Parts of the records.


def class_risk(report: "Report", row: "Row") -> list[ClassRisk]:
    """One entry for every label among the held-out records, in order of labels."""
    found = []
    for label in np.unique(report.held.y):
        here = report.held.y == label
        members = report.held.is_member[here]
        n_in, n_out = int(members.sum()), int((~members).sum())
        if min(n_in, n_out) < _FEWEST_IN_CLASS:
            found.append(ClassRisk(int(label), n_in, n_out, None, None))
            continue
        with warnings.catch_warnings():
            # One class in forty is below 0.5 by chance; the whole audit warns for the whole.
            warnings.simplefilter("ignore", MetricWarning)
            result = evaluate(row.result.scores[here], members)
        found.append(ClassRisk(int(label), n_in, n_out, result.auc, result.auc_interval()))
    return found


def exposed(report: "Report", row: "Row", n: int = 16) -> list[Exposed]:
    """The `n` highest-scoring held-out records, members or not; the first of equals first."""
    scores, is_member = row.result.scores, row.result.is_member
    top = np.argsort(-scores, kind="stable")[:n]
    return [
        Exposed(
            row=int(i),
            record=int(report.held_index[i]),
            label=int(report.held.y[i]),
            score=float(scores[i]),
            is_member=bool(is_member[i]),
            fpr=float(np.mean(scores[~is_member] >= scores[i])),
        )
        for i in top
    ]


# --- Everything, as strict JSON.


def facts(report: "Report", verdict: dict[str, Any]) -> dict[str, Any]:
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
                "fewest": _FEWEST_IN_CLASS,
                "by_label": [risk._asdict() for risk in class_risk(report, top)],
            },
            "exposed": {
                "attack": top.name,
                "records": [record._asdict() for record in exposed(report, top)],
            },
            "layers": None if report.layers is None else report.layers.facts(),
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


def target_facts(spec: "TargetSpec") -> dict[str, Any]:
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
                "logits": source.logits,
                "difference": source.difference,
                "versions": dict(source.versions),
            },
        }
    )


def attack_facts(rows: Sequence["Row"]) -> list[dict[str, Any]]:
    """All figures of every attack; the first is what the others are compared with."""
    return [
        plain({"key": key, **_attack(row, rows[0])})
        for key, row in zip(score_keys(rows), rows, strict=True)
    ]


def _attack(row: "Row", reference: "Row") -> dict[str, Any]:
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
