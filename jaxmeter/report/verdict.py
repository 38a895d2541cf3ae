"""The verdict of an audit in plain words."""

from typing import Any

from jaxmeter.attacks.interface import FPRS
from jaxmeter.report import findings
from jaxmeter.report.measures import at_fpr
from jaxmeter.report.result import AuditResult
from jaxmeter.report.wording import clean, percent

_PRIOR = 0.01  # fraction of members among the records an attacker meets, for the verdict's example


def verdict(report: AuditResult) -> dict[str, Any]:
    """A headline, paragraphs for it, and caveats.

    Returns:
      `headline`, `finding` (sentences), `caveats` (sentences), `alarm` (the sentence about members
      and non-members drawn differently, or None), and the decisions behind them: `best`,
      `above_chance`, `drawn_differently`.
    """
    top, differently = findings.best(report), findings.drawn_differently(report)
    above = findings.beats_chance(report)
    if differently and above and _beats_blind(report):
        headline = "Members and non-members differ, but not only by membership"
    elif differently and above:
        headline = "Members and non-members differ, but nothing shows that it is by membership"
    elif above:
        headline = "Members can be told from non-members better than by chance"
    else:
        headline = "No attack told members from non-members better than chance"
    return {
        "headline": headline,
        "alarm": alarm(report),
        "finding": [
            _ranking(report),
            *_identified(report),
            _chance(report),
            *(_beyond_blind(report) if differently else ()),
        ],
        "caveats": _caveats(report),
        "best": top.name,
        "above_chance": above,
        "corrected_interval": findings.corrected_interval(report)._asdict(),
        "drawn_differently": differently,
    }


def alarm(report: AuditResult) -> str | None:
    """What to say when the blind baseline beats chance, else None."""
    blind = [row for row in report.rows if findings.is_blind(row)]
    for row in blind:
        low, high = row.result.auc_interval()
        if low > 0.5:
            return (
                f"The {row.name} tells members from non-members without ever querying the target "
                f"(AUC {row.result.auc:.3f}, 95% interval {low:.3f} to {high:.3f}; by chance alone "
                "that happens in one audit of forty). So members and non-members seem to have been "
                "drawn differently, and every other figure here measures that difference too, not "
                "membership alone."
            )
    return None


def _ranking(report: AuditResult) -> str:
    top, tried = findings.best(report), sum(not findings.is_blind(row) for row in report.rows)
    low, high = top.result.auc_interval()
    which = f"the best of {tried} attacks, " if tried > 1 else ""
    name = f"{which}{top.name}," if tried > 1 else top.name
    return (
        f"{name[0].upper()}{name[1:]} ranks a random member above a random non-member with "
        f"probability {top.result.auc:.3f} (the AUC; 95% interval {low:.3f} to {high:.3f}; chance "
        "is 0.5)."
    )


def _identified(report: AuditResult) -> list[str]:
    fpr, top = FPRS[0], findings.best(report)
    if not findings.resolvable(top.result, fpr):
        return [
            f"What it identifies at a false positive rate of {percent(fpr)} cannot be "
            f"measured with {top.result.n_nonmembers:,} held-out non-members: it "
            f"{findings.shortage(fpr)}."
        ]
    at = at_fpr(top.result, fpr)
    low, high = top.result.tpr_interval(fpr)
    said = [
        f"With at most {fpr:.0%} of non-members wrongly accused it identifies "
        f"{percent(at['value'])} of the members ({at['true_positives']:,} of "
        f"{top.result.n_members:,}; 95% interval {percent(low)} to {percent(high)}). "
        "Guessing would identify 1%."
    ]
    other = max(
        (row for row in report.rows if not findings.is_blind(row)),
        key=lambda row: row.result.tpr_at(fpr),
        default=top,
    )
    if other.result.tpr_at(fpr) > at["value"]:
        said.append(
            f"At that rate {clean(other.name)} identifies the most: "
            f"{percent(other.result.tpr_at(fpr))} (95% interval "
            f"{percent(other.result.tpr_interval(fpr).low)} to "
            f"{percent(other.result.tpr_interval(fpr).high)})."
        )
    return said


def _chance(report: AuditResult) -> str:
    low, high = findings.corrected_interval(report)
    tried = sum(not findings.is_blind(row) for row in report.rows)
    how = (
        f"Allowing for the choice of the best of {tried} attacks on these very records "
        f"(Bonferroni), its interval is {low:.3f} to {high:.3f}"
        if tried > 1
        else f"Its interval is {low:.3f} to {high:.3f}"
    )
    if low > 0.5:
        return f"{how}, which excludes chance."
    if high < 0.5:
        return f"{how}, which lies below chance: a sign is wrong somewhere."
    return f"{how}, which includes chance; an AUC of up to {high:.3f} cannot be ruled out either."


def _beats_blind(report: AuditResult) -> bool:
    top = findings.best(report).result
    return all(
        top.auc_difference(row.result).low > 0 for row in report.rows if findings.is_blind(row)
    )


def _beyond_blind(report: AuditResult) -> list[str]:
    """How far the best attack gets beyond each baseline that never queries the target."""
    top = findings.best(report)
    said = []
    for row in report.rows:
        if findings.is_blind(row) and row is not top:
            gain = top.result.auc_difference(row.result)
            said.append(
                f"Its AUC minus that of the {clean(row.name)}, on the same records, is "
                f"{gain.value:+.3f} (95% interval {gain.low:+.3f} to {gain.high:+.3f})."
            )
    return said


def _caveats(report: AuditResult) -> list[str]:
    top, fpr = findings.best(report), FPRS[0]
    said = []
    if findings.drawn_differently(report) is None:
        said.append(
            "No blind baseline was run, so nothing here shows that members and non-members were "
            "drawn alike. If they were not, every attack looks better than it is."
        )
    elif not findings.drawn_differently(report):
        said.append(
            "A baseline that never queries the target found no difference between members and "
            "non-members, so there is no sign that they were drawn differently."
        )
    if findings.resolvable(top.result, fpr) and top.result.tpr_at(fpr) > 0:
        low, high = top.result.ppv_interval(fpr, _PRIOR)
        said.append(
            "How many of those flagged are members depends on how many members an attacker meets. "
            f"If that is one record in a hundred, between {percent(low)} and "
            f"{percent(high)} of those flagged at a false positive rate of {fpr:.0%} are "
            "members (95% interval); among the records here, about half of all are members by "
            "design."
            if 0.4 < top.result.n_members / len(top.result.scores) < 0.6
            else "How many of those flagged are members depends on how many members an attacker "
            f"meets. If that is one record in a hundred, between {percent(low)} and "
            f"{percent(high)} of those flagged at a false positive rate of {fpr:.0%} are "
            "members (95% interval)."
        )
    return [
        *said,
        "These are the attacks that were run, not the best possible: a stronger attack may find "
        "more, and a figure at chance is no proof of privacy.",
        "Intervals describe the sampling of records for this one trained target. Training it again "
        "would give other figures, and no interval here covers that.",
    ]
