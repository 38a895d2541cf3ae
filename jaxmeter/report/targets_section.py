"""The page's section on reference models: the same attacks on these in turn."""

from collections.abc import Callable
from typing import Any

from jaxmeter.report import markup
from jaxmeter.report.wording import percent, rate_name

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
    rates = [at["fpr"] for at in rows[0]["over_targets"]["tpr_at_fpr"]]
    heads = ["Attack", "AUC on this target", "AUC on the models", "lowest to highest"]
    heads += [f"TPR at {rate_name(fpr)} FPR on the models" for fpr in rates]
    body = []
    for attack in rows:
        over = attack["over_targets"]
        auc = over["auc"]
        cells = [
            f"{attack['auc']['value']:.3f}",
            _spread(auc, "{:.3f}".format),
            f"{auc['low']:.3f} to {auc['high']:.3f}",
            *(_spread(at, percent) for at in over["tpr_at_fpr"]),
        ]
        name = (
            f"{markup.text(attack['name'])}"
            f'<span class="interval">{over["targets"]} models in turn</span>'
        )
        body.append(("", name, cells))
    return markup.table("attacks", heads, body)


def _spread(summary: dict[str, Any], text: Callable[[float], str]) -> str:
    """The mean over its standard deviation."""
    if summary["mean"] is None:
        return "<span>too few records</span>"
    sd = "" if summary["sd"] is None else f"sd {text(summary['sd'])}"
    return f'<span class="figure">{text(summary["mean"])}</span><span class="interval">{sd}</span>'
