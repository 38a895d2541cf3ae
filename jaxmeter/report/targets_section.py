"""The page's section on reference models: the same attacks on these in turn."""

from typing import Any

from jaxmeter.report import columns, markup
from jaxmeter.report.columns import AUC, Column

CAPTION = (
    "Each reference model in turn was the target, and the same attack by the others had to tell "
    "what it was trained on; a model that saw exactly the complement of its records was left out "
    "with it. So these are figures for targets of the reference models' kind, and their standard "
    "deviation says how far another training of the same kind may move them, which no interval for "
    "one target says. A target far outside their range was not trained as they were: then the "
    "attacks are weaker than a better-informed attacker's would be."
)


def rows_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The attacks that were run on reference models."""
    return [attack for attack in facts["attacks"] if attack["over_targets"] is not None]


def table(facts: dict[str, Any]) -> str:
    """One row an attack: its AUC on this target, and the spread over reference models."""
    rows = rows_of(facts)
    rates = [columns.tpr_at(at["fpr"]) for at in rows[0]["over_targets"]["tpr_at_fpr"]]
    heads = ["Attack", f"{AUC.heading} on this target", f"{AUC.heading} on the models"]
    heads += ["lowest to highest", *(f"{rate.heading} on the models" for rate in rates)]
    body = []
    for attack in rows:
        over = attack["over_targets"]
        auc = over["auc"]
        cells = [
            AUC.format.text(attack["auc"]["value"]),
            _spread(auc, AUC),
            f"{AUC.format.text(auc['low'])} to {AUC.format.text(auc['high'])}",
            *(_spread(at, rate) for at, rate in zip(over["tpr_at_fpr"], rates, strict=True)),
        ]
        name = (
            f"{markup.text(attack['name'])}"
            f'<span class="interval">{over["targets"]} models in turn</span>'
        )
        body.append(("", name, cells))
    return markup.table("attacks", heads, body)


def _spread(summary: dict[str, Any], column: Column) -> str:
    """The mean over its standard deviation."""
    if summary["mean"] is None:
        return "<span>too few records</span>"
    text = column.format.text
    sd = "" if summary["sd"] is None else f"sd {text(summary['sd'])}"
    return f'<span class="figure">{text(summary["mean"])}</span><span class="interval">{sd}</span>'
