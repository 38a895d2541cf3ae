"""The page of a report: one HTML file that needs no network, no script and no other file.

Made from what `results.json` holds and from the figures, so the page cannot say anything that the
data file does not. Its words are in `templates/report.html`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmeter.report import columns, markup
from jaxmeter.report.columns import AUC, Column, Entry, ReportCell
from jaxmeter.report.figures.listing import FIGURES
from jaxmeter.report.layer_map import MINUS_THIS
from jaxmeter.report.markup import Mark, Sheet, SheetRow
from jaxmeter.report.wording import duration, plural

_SHOWN = 15  # signals of layers; the others are folded away


def page(facts: dict[str, Any], figures: dict[str, str]) -> str:
    """The whole page.

    Args:
      facts: from `facts.facts`.
      figures: SVG files by name, of `figures.listing.FIGURES` those that were drawn.
    """
    classes = facts["classes"]["by_label"]
    few = [risk["label"] for risk in classes if risk["auc"] is None]
    drawn = [one for one in FIGURES if one.name in figures]
    return markup.rendered(
        "report.html",
        facts=facts,
        name=facts["target"]["source"]["origin"],
        described=_described(facts["target"]),
        attacks=_attacks(facts),
        axis=[f"{end:g}" for end in _ends(AUC, facts["attacks"])],
        targets=_targets(facts["attacks"]),
        layers=layers(facts["layers"]) if facts.get("layers") and "layers" in figures else None,
        few=few,
        shown_classes=len(classes) - len(few),
        drawn={one.name: markup.figure(one.name, figures, one.label) for one in drawn},
        figures=[one for one in drawn if one.heading],
        origins=_origins(facts),
        budgets=[(attack["name"], _budget(attack["budget"])) for attack in facts["attacks"]],
    )


# --- Tables.


def _attacks(facts: dict[str, Any]) -> Sheet:
    """The attacks side by side; beside the figure that ranks them a mark of its interval."""
    entries = facts["attacks"]
    first, *others = columns.in_report("page", entries)
    axes = {column.name: _ends(column, entries) for column in others if column.ranks}
    heads = [first.heading]
    for column in others:
        heads += [column.heading, ""] if column.name in axes else [column.heading]
    rows = []
    for attack in entries:
        cells: list[ReportCell | Mark] = []
        for column in others:
            cells.append(column.cell(attack, "page"))
            if column.name in axes:
                cells.append(_mark(column.of(attack), *axes[column.name]))
        best = attack["name"] == facts["verdict"]["best"] and len(entries) > 1
        rows.append(SheetRow(attack["name"], _access(attack), cells, "best" if best else ""))
    return Sheet(heads, rows)


def _ends(column: Column, entries: Sequence[Entry]) -> tuple[float, float]:
    """Two round figures between which all intervals, and chance, lie."""
    figures = [column.of(entry) for entry in entries]
    low = min(0.45, *(figure["low"] for figure in figures))
    high = max(0.6, *(figure["high"] for figure in figures))
    return math.floor(low * 20) / 20, math.ceil(high * 20) / 20


def _mark(figure: Mapping[str, float], start: float, end: float) -> Mark:
    at = (figure["low"], figure["value"], figure["high"], 0.5)
    return Mark(*(100 * (value - start) / (end - start) for value in at))


def layers(facts: dict[str, Any]) -> dict[str, Any]:
    """What `templates/layers.html` shows of a layer map's facts."""
    rate = columns.tpr_at(facts["signals"][0]["tpr_at_fpr"]["fpr"])
    heads = ["Layer and signal", AUC.heading, rate.heading, MINUS_THIS.heading]
    rows = [
        SheetRow(
            row["variable"] or row["layer"],
            row["signal"],
            [
                AUC.shown(row["auc"], "page"),
                rate.shown(row["tpr_at_fpr"], "page"),
                MINUS_THIS.shown(row["best_minus_this"] if rank else None, "page"),
            ],
            "best" if row["may_be_best"] else "",
        )
        for rank, row in enumerate(facts["signals"])
    ]
    return {
        "said": " ".join([*facts["finding"], facts["scored"]]),
        "first": Sheet(heads, rows[:_SHOWN]),
        "others": Sheet(heads, rows[_SHOWN:]),
        "comparisons": len(rows) - 1,
    }


def _targets(entries: Sequence[Entry]) -> Sheet | None:
    """One row an attack on reference models: its AUC on this target, its spread over these."""
    entries = [entry for entry in entries if entry["over_targets"] is not None]
    if not entries:
        return None
    rates = [columns.tpr_at(at["fpr"]) for at in entries[0]["over_targets"]["tpr_at_fpr"]]
    heads = ["Attack", f"{AUC.heading} on this target", f"{AUC.heading} on the models"]
    heads += ["lowest to highest", *(f"{rate.heading} on the models" for rate in rates)]
    rows = []
    for entry in entries:
        over, text = entry["over_targets"], AUC.format.text
        cells = [
            ReportCell(text(entry["auc"]["value"])),
            _spread(over["auc"], AUC),
            ReportCell(f"{text(over['auc']['low'])} to {text(over['auc']['high'])}"),
            *(_spread(at, rate) for at, rate in zip(over["tpr_at_fpr"], rates, strict=True)),
        ]
        rows.append(SheetRow(entry["name"], f"{over['targets']} models in turn", cells))
    return Sheet(heads, rows)


def _spread(summary: dict[str, Any], column: Column) -> ReportCell:
    """The mean over its standard deviation."""
    if summary["mean"] is None:
        return ReportCell("too few records")
    sd = "" if summary["sd"] is None else f"sd {column.format.text(summary['sd'])}"
    return ReportCell(column.format.text(summary["mean"]), (sd,))


# --- Words.


def _described(target: dict[str, Any]) -> str:
    accuracy = target["accuracy"]
    what = [
        f"{target['n_classes']} classes" if target["n_classes"] else "",
        f"records of shape {markup.shape(target['input_shape'])}" if target["input_shape"] else "",
        f"accuracy {markup.percent_or_unknown(accuracy['members'])} on members and "
        f"{markup.percent_or_unknown(accuracy['nonmembers'])} on non-members",
    ]
    return ", ".join(filter(None, what))


def _origins(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """What it takes to compute the same again."""
    source, signals = facts["target"]["source"], facts["signals"]
    parts = "; ".join(
        f"{name} {part['members']:,} + {part['nonmembers']:,}"
        for name, part in facts["parts"].items()
    )
    difference = (
        "no original framework to compare with"
        if source["difference"] is None
        else f"{markup.number(source['difference'])} (largest absolute difference on a probe batch)"
    )
    return [
        ("Target", f"{source['origin']} (by {source['route']}); logits {source['logits']}"),
        ("Against the original", difference),
        ("Layers", ", ".join(facts["target"]["layers"]) or "not named"),
        ("Records, members + non-members", parts),
        ("Seed", facts["seed"]),
        ("Signals", f"{markup.size(signals['bytes'])} in {duration(signals['seconds'])}"),
        ("Device", facts["device"] or "not recorded"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items()) or "not recorded"),
        *((f"Setting {name}", value) for name, value in facts["settings"].items()),
    ]


def _access(attack: dict[str, Any]) -> str:
    known = attack["budget"]["known_members"] + attack["budget"]["known_nonmembers"]
    what = "never queries the target" if attack["access"] == "blind" else attack["access"]
    return f"{what}; knows {known:,} records" if known else what


def _budget(budget: dict[str, Any]) -> str:
    known = budget["known_members"], budget["known_nonmembers"]
    said = [
        f"reads {', '.join(budget['reads']) or 'nothing'}",
        f"knows {plural(known[0], 'member')} and {plural(known[1], 'non-member')}"
        if any(known)
        else "knows no member",
        f"queries the target {plural(budget['queries'], 'time')} a record"
        if budget["queries"]
        else "never queries the target",
        f"trains {plural(budget['models_trained'], 'model')}" if budget["models_trained"] else "",
        f"sees the weights of {', '.join(budget['parameters'])}" if budget["parameters"] else "",
        f"sees the outputs of {', '.join(budget['layers'])}" if budget.get("layers") else "",
    ]
    return "; ".join(filter(None, said))
