"""The page's section on layers: what each gives away."""

from typing import Any

from jaxmeter.report import markup
from jaxmeter.report.figures.listing import LABELS
from jaxmeter.report.wording import percent, rate_name

_SHOWN = 15  # rows; the others are folded away


def section(facts: dict[str, Any], figures: dict[str, str]) -> str:
    """Figure and table of a layer map's facts."""
    said = " ".join([*facts["finding"], facts["scored"]])
    rows = [_row(row, i) for i, row in enumerate(facts["signals"])]
    heads = ["Layer and signal", "AUC", f"TPR at {_rate(facts)} FPR", "Best AUC minus this"]
    tables = [markup.table("attacks", heads, rows[:_SHOWN])]
    if rows[_SHOWN:]:
        more = markup.table("attacks", heads, rows[_SHOWN:])
        summary = f"The other {len(rows) - _SHOWN}"
        tables.append(f"<details><summary>{summary}</summary>{more}</details>")
    return markup.section(
        "layers",
        "Which layer gives away how much",
        f'<p class="said">{markup.text(said)}</p>',
        markup.figure("layers", figures, LABELS["layers"]),
        markup.caption(
            "Each mark is one signal of one layer, by itself, on the held-out records; layers are "
            "in the model’s order. Activation: minus the distance of the layer’s output to the "
            "mean of the record’s class. Gradient: the cosine of the record’s gradient, downhill, "
            "and the weights (whitened as in K-FAC): how far the weights have moved the way this "
            "record would move them. Gradient norm: minus the norm of the layer’s gradient. All "
            "signs are fixed beforehand, so an AUC below 0.5 is a signal that points the wrong way "
            "in that layer."
        ),
        *tables,
        markup.caption(
            "Under each AUC its 95% interval by DeLong. The last column is paired, on the same "
            f"records; its intervals are Bonferroni’s for {len(rows) - 1} comparisons, so that "
            "with 95% confidence the signal that is truly the best is among those where the "
            "interval contains 0, which are marked."
        ),
    )


def _row(row: dict[str, Any], rank: int) -> tuple[str, str, list[str]]:
    auc, at, minus = row["auc"], row["tpr_at_fpr"], row["best_minus_this"]
    rate = f'<span class="short">{markup.whole(at["reason"] or "")}</span>'
    if at["value"] is not None:
        rate = _two(percent(at["value"]), f"{percent(at['low'])} to {percent(at['high'])}")
    difference = "<span>–</span>"
    if rank:
        interval = f"{markup.signed(minus['low'])} to {markup.signed(minus['high'])}"
        difference = _two(markup.signed(minus["value"]), interval)
    cells = [
        _two(f"{auc['value']:.3f}", f"{auc['low']:.3f} to {auc['high']:.3f}"),
        rate,
        difference,
    ]
    name = markup.text(row["variable"] or row["layer"])
    name += f'<span class="interval">{markup.text(row["signal"])}</span>'
    return ("best" if row["may_be_best"] else "", name, cells)


def _two(value: str, interval: str) -> str:
    return f'<span class="figure">{value}</span><span class="interval">{interval}</span>'


def _rate(facts: dict[str, Any]) -> str:
    return rate_name(facts["signals"][0]["tpr_at_fpr"]["fpr"])
