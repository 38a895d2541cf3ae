"""The page of a report: one HTML file that needs no network, no script and no other file.

Made from what `results.json` holds and from the figures, so the page cannot say anything that the
data file does not. Every text from outside passes `html.escape`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmeter.report import columns, layers_section, markup, targets_section
from jaxmeter.report.columns import Column, Entry
from jaxmeter.report.figures.listing import FIGURES, LABELS
from jaxmeter.report.markup import caption, figure, section, text
from jaxmeter.report.wording import clean, duration, percent, plural


def page(facts: dict[str, Any], figures: dict[str, str]) -> str:
    """The whole page.

    Args:
      facts: from `facts.facts`.
      figures: SVG files by name, of `figures.listing.FIGURES` those that were drawn.
    """
    verdict = facts["verdict"]
    body = [
        _verdict(facts),
        section("attacks", "The attacks", _table(facts), _table_notes(facts)),
        section(
            "roc",
            "Trade-off between finding members and accusing others",
            figure("roc", figures, LABELS["roc"]),
            caption(
                "Each curve says which share of the members an attack finds (up) for which share "
                "of non-members wrongly accused (across); both axes are logarithmic, since an "
                "attack matters most where it accuses few. The band is the pointwise 95% "
                f"Clopper-Pearson interval of {verdict['best']}, given the threshold. In the "
                "shaded part no held-out non-member is accused; the FPR there is too small to be "
                "measured, and the height is the share of members found before the first false "
                "alarm."
            ),
        ),
        section(
            "scores",
            "Scores of members and non-members",
            figure("histograms", figures, LABELS["histograms"]),
            caption(
                "Higher means “more likely a member”. The outermost bins also hold everything "
                "beyond them; an axis is logarithmic where one bin holds more than half."
            ),
        ),
        *_layers(facts, figures),
        _classes(facts, figures),
        _exposed(facts, figures),
    ]
    body += [
        section(one.name, one.heading, figure(one.name, figures, one.label), caption(one.caption))
        for one in FIGURES
        if one.heading and one.name in figures
    ]
    if targets_section.rows_of(facts):
        shown, said = targets_section.table(facts), targets_section.CAPTION
        title = "How much another target would differ"
        body.insert(2, section("targets", title, shown, caption(said)))
    body += [_how_to_read(facts), _reproducibility(facts)]
    title = f"Membership inference audit of {_name(facts)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{text(title)}</title>\n<style>\n{markup.CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<footer>Written by jaxmeter {text(facts['version'] or '')}. It shows "
        "held-out records, members among them: treat it as the training data itself.</footer>\n"
        "</body>\n</html>\n"
    )


# --- Sections.


def _verdict(facts: dict[str, Any]) -> str:
    verdict, target, held = facts["verdict"], facts["target"], facts["parts"]["held"]
    accuracy = target["accuracy"]
    what = [
        f"{target['n_classes']} classes" if target["n_classes"] else "",
        f"records of shape {markup.shape(target['input_shape'])}" if target["input_shape"] else "",
        f"accuracy {markup.percent_or_unknown(accuracy['members'])} on members and "
        f"{markup.percent_or_unknown(accuracy['nonmembers'])} on non-members",
    ]
    alarm = f'<p class="alarm">{text(verdict["alarm"])}</p>\n' if verdict["alarm"] else ""
    caveats = "".join(f"<li>{text(sentence)}</li>\n" for sentence in verdict["caveats"])
    return (
        f'<header>\n<p class="kicker">Membership inference audit</p>\n'
        f"<h1>{markup.whole(verdict['headline'])}</h1>\n"
        f'<p class="target"><strong>{text(_name(facts))}</strong>: '
        f"{text(', '.join(filter(None, what)))}. Measured on {held['members']:,} held-out members "
        f"and {held['nonmembers']:,} non-members.</p>\n{alarm}"
        + "".join(f"<p>{text(sentence)}</p>\n" for sentence in verdict["finding"])
        + f"<h2>What to keep in mind</h2>\n<ul>\n{caveats}</ul>\n"
        + "".join(f'<p class="note">Note: {text(note)}</p>\n' for note in facts["notes"])
        + "</header>"
    )


def _table(facts: dict[str, Any]) -> str:
    entries = facts["attacks"]
    first, *others = columns.in_report("page", entries)
    marked = {column.name: _ends(column, entries) for column in others if column.ranks}
    heads = [first.heading]
    for column in others:
        heads += [column.heading, ""] if column.name in marked else [column.heading]
    rows = []
    for attack in entries:
        cells = []
        for column in others:
            cells.append(markup.cell(column.cell(attack, "page")))
            if column.name in marked:
                cells.append(_whisker(column.of(attack), *marked[column.name]))
        best = attack["name"] == facts["verdict"]["best"] and len(entries) > 1
        name = f'{text(attack["name"])}<span class="interval">{text(_access(attack))}</span>'
        rows.append(("best" if best else "", name, cells))
    return markup.table("attacks", heads, rows)


def _table_notes(facts: dict[str, Any]) -> str:
    start, end = _ends(columns.AUC, facts["attacks"])
    return caption(
        "Under each figure its 95% interval. The marks show the AUC's on an axis "
        f"from {start:g} to {end:g}, with a line at chance, 0.5. The difference from "
        f"{facts['attacks'][0]['name']} is paired, on the same records, by DeLong's test; its "
        "p-values are not corrected for the number of attacks. The attack with the "
        "largest AUC is marked."
    )


def _classes(facts: dict[str, Any], figures: dict[str, str]) -> str:
    classes = facts["classes"]["by_label"]
    few = [c["label"] for c in classes if c["auc"] is None]
    left_out = ""
    if few:
        named = ", ".join(map(str, few[:20])) + (", …" if len(few) > 20 else "")
        left_out = (
            f" {len(few)} of {len(classes)} classes have fewer than {facts['classes']['fewest']} "
            f"held-out members or non-members and get no figure ({named})."
        )
    shown = len(classes) - len(few)
    chance = " One in twenty such intervals misses the truth by chance." if shown > 1 else ""
    return section(
        "classes",
        "Risk by class",
        figure("classes", figures, LABELS["classes"]) if shown else "",
        caption(
            f"How well {facts['classes']['attack']} tells members of one class from non-members of "
            "the same class, with DeLong's 95% interval. An AUC within a class leaves out what the "
            f"attack gains from comparing classes.{chance}{left_out}"
        ),
        figure("class_scores", figures, LABELS["class_scores"]),
        caption(
            f"Scores of {facts['classes']['attack']} class by class, as shares of the class's "
            "members and non-members, of which the title counts the records; at most the first 12 "
            "classes."
        ),
    )


def _layers(facts: dict[str, Any], figures: dict[str, str]) -> list[str]:
    """The section on layers, where an attack has read signals of some."""
    found = facts.get("layers")
    return [layers_section.section(found, figures)] if found and "layers" in figures else []


def _exposed(facts: dict[str, Any], figures: dict[str, str]) -> str:
    records = facts["exposed"]["records"]
    members = sum(record["is_member"] for record in records)
    rows = "\n".join(
        f'<tr class="{"member" if record["is_member"] else "nonmember"}"><td>{rank}</td>'
        f"<td>{record['record']}</td><td>{record['label']}</td><td>{markup.number(record['score'])}</td>"
        f"<td>{percent(record['fpr'])}</td>"
        f"<td>{'member' if record['is_member'] else 'false alarm'}</td></tr>"
        for rank, record in enumerate(records, start=1)
    )
    table = (
        '<div class="scroll"><table class="records"><thead><tr><th>Rank</th><th>Record</th>'
        "<th>Class</th><th>Score</th><th>FPR</th><th>Truth</th></tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )
    if "exposed" in figures:
        picture = figure("exposed", figures, LABELS["exposed"])
        table = f"{picture}<details><summary>The same as numbers</summary>{table}</details>"
    return section(
        "exposed",
        "The most exposed records",
        table,
        caption(
            f"The {len(records)} held-out records that {facts['exposed']['attack']} scores "
            f"highest: {members} members and {len(records) - members} false alarms "
            "(non-members that the attack takes for members). FPR is the share of non-members that "
            "score at least as high. Record numbers count from 0 in the records given to the "
            "audit. These records are the easiest to accuse, rightly or wrongly; that a record is "
            "not among them does not make it safe."
        ),
    )


def _how_to_read(facts: dict[str, Any]) -> str:
    held = facts["parts"]["held"]
    terms = {
        "Member": "a record the target was trained on. A non-member is one it was not trained on.",
        "AUC": "the probability that a random member outscores a random non-member, a tie counting "
        "one half. An average over all thresholds: a high AUC can go with few members found at low "
        "FPR, and the other way round. Interval: DeLong.",
        "TPR at 1% FPR": "the share of members found by the best threshold that accuses at most 1% "
        "of the non-members here. No interpolation; tied records are accused together or not at "
        "all. Interval: Clopper-Pearson, given the threshold. The true FPR of that threshold has "
        "an interval of its own, in results.json.",
        "Resolvable FPR": f"with {held['nonmembers']:,} non-members, rates below "
        f"{percent(1 / held['nonmembers'])} cannot be told from 0, so nothing is printed there.",
        "Balanced accuracy": "the mean of the share of members called members and of non-members "
        "called non-members, at a threshold from the select part (where an attack has none: from "
        "the other half of the held-out records). Interval: Clopper-Pearson rates combined by "
        "MOVER.",
        "Information budget": "what an attacker must have to run the attack: the signals read, the "
        "records of known membership used, the models trained, the weights seen. Figures of two "
        "attacks compare only at equal budgets.",
        "Held out": "attacks are fitted on the fit part, and epochs and thresholds chosen on the "
        "select part. No record of the held-out part, nor a copy of one, is in either.",
    }
    items = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>\n" for k, v in terms.items())
    return section("reading", "How to read this", f"<dl>\n{items}</dl>")


def _reproducibility(facts: dict[str, Any]) -> str:
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
    entries = {
        "Target": f"{source['origin']} (by {source['route']}); logits {source['logits']}",
        "Against the original": difference,
        "Layers": ", ".join(facts["target"]["layers"]) or "not named",
        "Records, members + non-members": parts,
        "Seed": facts["seed"],
        "Signals": f"{markup.size(signals['bytes'])} in {duration(signals['seconds'])}",
        "Device": facts["device"] or "not recorded",
        "Versions": ", ".join(f"{k} {v}" for k, v in facts["versions"].items()) or "not recorded",
        **{f"Setting {name}": value for name, value in facts["settings"].items()},
    }
    items = "".join(
        f"<dt>{text(name)}</dt><dd>{text(value)}</dd>\n" for name, value in entries.items()
    )
    budgets = "".join(
        f"<dt>{text(a['name'])}</dt><dd>{text(_budget(a['budget']))}</dd>\n"
        for a in facts["attacks"]
    )
    return section(
        "reproducing",
        "Reproducing this",
        f"<dl>\n{items}</dl>\n<h3>What each attack was given</h3>\n<dl>\n{budgets}</dl>",
        caption("results.json holds every figure and its counts, scores.npz every score."),
    )


# --- Pieces.


def _ends(column: Column, entries: Sequence[Entry]) -> tuple[float, float]:
    """Two round figures between which all intervals, and chance, lie."""
    figures = [column.of(entry) for entry in entries]
    low = min(0.45, *(figure["low"] for figure in figures))
    high = max(0.6, *(figure["high"] for figure in figures))
    return math.floor(low * 20) / 20, math.ceil(high * 20) / 20


def _whisker(figure: Mapping[str, float], start: float, end: float) -> str:
    """A figure and its interval as a mark."""
    low, value, high, chance = (
        100 * (at - start) / (end - start)
        for at in (figure["low"], figure["value"], figure["high"], 0.5)
    )
    return (
        '<svg class="whisker" viewBox="-4 0 108 16" aria-hidden="true">'
        '<line class="axis" x1="0" x2="100" y1="8" y2="8"/>'
        f'<line class="chance" x1="{chance:.1f}" x2="{chance:.1f}" y1="1" y2="15"/>'
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="8" y2="8"/>'
        f'<circle cx="{value:.1f}" cy="8" r="3.2"/></svg>'
    )


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


def _name(facts: dict[str, Any]) -> str:
    return clean(facts["target"]["source"]["origin"])
