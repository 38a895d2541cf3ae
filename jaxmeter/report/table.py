"""A report's table of attacks, for a terminal or a notebook."""

from rich import box
from rich.table import Table
from rich.text import Text

from jaxmeter.report import columns, findings, verdict
from jaxmeter.report.result import AuditResult
from jaxmeter.report.wording import clean, percent


def table(report: AuditResult) -> Table:
    """See `Report.table`."""
    entries = [columns.entry(row, report.rows[0], "terminal") for row in report.rows]
    first, *others = columns.in_report("terminal", entries)
    table = Table(
        box=box.SIMPLE_HEAD,
        title="Membership inference audit",
        title_style="bold",
        title_justify="left",
        caption=_caption(report),
        caption_style="",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column(first.heading, min_width=16, overflow="fold")
    for column in others:
        heading = column.heading_on_two_lines
        table.add_column(heading, justify="right", no_wrap=True, vertical="top")
    above = findings.beats_chance(report) and len(report.rows) > 1
    best = findings.best(report)
    for row, entry in zip(report.rows, entries, strict=True):
        strong = "bold" if above and row is best else ""
        cells = [
            column.cell(entry, "terminal").rich(strong if column.ranks else "") for column in others
        ]
        name = Text.assemble((clean(row.name), strong), "\n", (findings.budget_text(row), "dim"))
        table.add_row(name, *cells)
    return table


def _caption(report: AuditResult) -> Text:
    members, nonmembers = report.parts[2]
    lines = [
        f"Measured on {members:,} held-out members and {nonmembers:,} non-members; under each "
        "figure its 95% interval. Thresholds of the accuracy come from the select part"
        + (
            "; where an attack has none there, from the other half of these records."
            if any(row.result.threshold is None for row in report.rows)
            else "."
        ),
        f"The target's accuracy is {percent(report.accuracy[0])} on members and "
        f"{percent(report.accuracy[1])} on non-members.",
    ]
    lines += findings.spread_lines(report.rows)
    text = Text("\n".join(lines))
    alarm = verdict.alarm(report)
    if alarm:
        text.append(f"\n{alarm}", style="bold red")
    for note in report.notes:
        text.append(f"\nNote: {clean(note)}", style="yellow")
    return text
