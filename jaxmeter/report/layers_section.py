"""The page's section on layers: what each gives away."""

from typing import Any

from jaxmeter.report import columns, markup
from jaxmeter.report.columns import Column
from jaxmeter.report.figures.listing import LABELS
from jaxmeter.report.layer_map import MINUS_THIS

_SHOWN = 15  # rows; the others are folded away


def section(facts: dict[str, Any], figures: dict[str, str]) -> str:
    """Figure and table of a layer map's facts."""
    said = " ".join([*facts["finding"], facts["scored"]])
    rate = columns.tpr_at(facts["signals"][0]["tpr_at_fpr"]["fpr"])
    rows = [_row(row, i, rate) for i, row in enumerate(facts["signals"])]
    heads = ["Layer and signal", columns.AUC.heading, rate.heading, MINUS_THIS.heading]
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


def _row(row: dict[str, Any], rank: int, rate: Column) -> tuple[str, str, list[str]]:
    minus = row["best_minus_this"] if rank else None
    cells = [
        columns.AUC.shown(row["auc"], "page"),
        rate.shown(row["tpr_at_fpr"], "page"),
        MINUS_THIS.shown(minus, "page"),
    ]
    name = markup.text(row["variable"] or row["layer"])
    name += f'<span class="interval">{markup.text(row["signal"])}</span>'
    return ("best" if row["may_be_best"] else "", name, [markup.cell(cell) for cell in cells])
