"""What a report's rows say: which is which, which records they tell, and numbers as words.

Everything here is a pure function of a `Report`, its rows or a number.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmeter.metrics import AttackResult, Interval, MetricWarning, evaluate
from jaxmeter.report.result import AuditResult, Row
from jaxmeter.report.wording import clean, plural
from jaxmeter.terminal import printable

FEWEST_IN_CLASS = 10  # members, and non-members, below which a class gets no figure


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


def is_blind(row: Row) -> bool:
    """Whether the attack never queries the target."""
    return row.budget.queries == 0


def access(row: Row) -> str:
    """ "blind", "white box" (it needs parameters or inner layers' outputs) or "black box"."""
    inside = row.budget.parameters or row.budget.layers
    return "blind" if is_blind(row) else "white box" if inside else "black box"


def best(report: AuditResult) -> Row:
    """The row with the largest AUC among those that query the target, the first of equals."""
    rows = [row for row in report.rows if not is_blind(row)] or list(report.rows)
    return max(rows, key=lambda row: row.result.auc)


def gradient_norms(report: AuditResult) -> NDArray | None:
    """The held-out records' gradient norms `[n]`, if an attack that scores by them was run."""
    rows = [row for row in report.rows if row.minus == "gradient norm"]
    return -rows[0].result.scores if rows else None


def corrected_interval(report: AuditResult) -> Interval:
    """The best attack's AUC interval, widened for being the best of several on these records."""
    tried = sum(not is_blind(row) for row in report.rows) or len(report.rows)
    return best(report).result.auc_interval(1 - 0.05 / tried)


def beats_chance(report: AuditResult) -> bool:
    """Whether the best AUC is above 0.5 after the correction for choosing it here."""
    return corrected_interval(report).low > 0.5


def drawn_differently(report: AuditResult) -> bool | None:
    """Whether members are told from non-members without the target; None if nobody tried."""
    rows = [row for row in report.rows if is_blind(row)]
    return any(row.result.auc_interval().low > 0.5 for row in rows) if rows else None


def resolvable(result: AttackResult, fpr: float) -> bool:
    """Whether the non-members are enough for a figure at this false positive rate."""
    return fpr >= result.resolvable_fpr


def shortage(fpr: float) -> str:
    """What is printed in place of a TPR that cannot be resolved."""
    return f"needs {math.ceil(1 / fpr * (1 - 1e-12)):,} non-members"


def budget_text(row: Row) -> str:
    """What the attack was given, in a line.

    What it reads, how many records of known membership it used, models it trained.
    """
    budget = row.budget
    parts = ["never queries the target" if is_blind(row) else access(row)]
    if budget.reads:
        parts[0] += f": {', '.join(map(printable, budget.reads))}"
    if budget.known_members or budget.known_nonmembers:
        parts.append(f"knows {budget.known_members:,}+{budget.known_nonmembers:,} records")
    if budget.models_trained:
        parts.append(f"{plural(budget.models_trained, 'model')} trained")
    if budget.queries > 1:
        parts.append(f"{budget.queries} queries a record")
    return "; ".join(parts)


def spread_lines(rows: Sequence[Row]) -> list[str]:
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


# --- Parts of the records.


def class_risk(report: AuditResult, row: Row) -> list[ClassRisk]:
    """One entry for every label among the held-out records, in order of labels."""
    found = []
    for label in np.unique(report.held.y):
        here = report.held.y == label
        members = report.held.is_member[here]
        n_in, n_out = int(members.sum()), int((~members).sum())
        if min(n_in, n_out) < FEWEST_IN_CLASS:
            found.append(ClassRisk(int(label), n_in, n_out, None, None))
            continue
        with warnings.catch_warnings():
            # One class in forty is below 0.5 by chance; the whole audit warns for the whole.
            warnings.simplefilter("ignore", MetricWarning)
            result = evaluate(row.result.scores[here], members)
        found.append(ClassRisk(int(label), n_in, n_out, result.auc, result.auc_interval()))
    return found


def exposed(report: AuditResult, row: Row, n: int = 16) -> list[Exposed]:
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
