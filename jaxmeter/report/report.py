"""An audit's results: as a table, as facts, and as a folder to keep."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from jaxmeter.attacks.interface import FPRS
from jaxmeter.metrics import AttackResult
from jaxmeter.report import facts, findings, verdict
from jaxmeter.report.layer_map import LayerMap
from jaxmeter.report.result import AuditResult, Row
from jaxmeter.report.wording import clean, duration, percent, percents, rate_name


@dataclass(frozen=True, kw_only=True, eq=False)
class Report(AuditResult):
    """What an audit found, with ways to read it; its attributes are `AuditResult`'s."""

    layers: LayerMap | None = None

    @property
    def best(self) -> Row:
        """The row with the largest AUC among those that query the target."""
        return findings.best(self)

    def table(self) -> Table:
        """One row an attack, for a terminal or a notebook; readable from 80 columns up.

        Every figure stands over its 95% interval. A TPR at an FPR that the non-members cannot
        resolve is not printed; what it would need is.
        """
        table = Table(
            box=box.SIMPLE_HEAD,
            title="Membership inference audit",
            title_style="bold",
            title_justify="left",
            caption=self._caption(),
            caption_style="",
            caption_justify="left",
            padding=(0, 1, 0, 0),
        )
        table.add_column("Attack", min_width=16, overflow="fold")
        rates = (f"TPR at\n{rate_name(fpr)} FPR" for fpr in FPRS)
        for head in ("AUC", "Balanced\naccuracy", *rates):
            table.add_column(head, justify="right", no_wrap=True, vertical="top")
        table.add_column("Time", justify="right", no_wrap=True)
        above = findings.beats_chance(self) and len(self.rows) > 1
        for row in self.rows:
            result = row.result
            low, high = result.auc_interval()
            strong = "bold" if above and row is self.best else ""
            table.add_row(
                Text.assemble((clean(row.name), strong), "\n", (findings.budget_text(row), "dim")),
                _figure(f"{result.auc:.3f}", f"{low:.3f}–{high:.3f}", strong),
                _figure(percent(result.accuracy), percents(result.accuracy_interval())),
                *(self._tpr(result, fpr) for fpr in FPRS),
                Text(duration(row.seconds)),
                end_section=False,
            )
        return table

    def _tpr(self, result: AttackResult, fpr: float) -> Text:
        if not findings.resolvable(result, fpr):
            return Text(findings.shortage(fpr).replace(" non-", "\nnon-"), style="dim italic")
        return _figure(percent(result.tpr_at(fpr)), percents(result.tpr_interval(fpr)))

    def _caption(self) -> Text:
        members, nonmembers = self.parts[2]
        lines = [
            f"Measured on {members:,} held-out members and {nonmembers:,} non-members; under each "
            "figure its 95% interval. Thresholds of the accuracy come from the select part"
            + (
                "; where an attack has none there, from the other half of these records."
                if any(row.result.threshold is None for row in self.rows)
                else "."
            ),
            f"The target's accuracy is {percent(self.accuracy[0])} on members and "
            f"{percent(self.accuracy[1])} on non-members.",
        ]
        lines += findings.spread_lines(self.rows)
        text = Text("\n".join(lines))
        alarm = verdict.alarm(self)
        if alarm:
            text.append(f"\n{alarm}", style="bold red")
        for note in self.notes:
            text.append(f"\nNote: {clean(note)}", style="yellow")
        return text

    def facts(self) -> dict[str, Any]:
        """What `results.json` holds: every figure, as strict JSON's types."""
        layers = None if self.layers is None else self.layers.facts()
        return facts.facts(self, verdict.verdict(self), layers)

    def save(self, out: str | PathLike[str]) -> Path:
        """Writes `report.html`, `results.json`, `scores.npz` and `figures/` to a folder.

        All is first written to a temporary folder beside it and then renamed, so whatever goes
        wrong, `out` is either as it was or complete. The page shows held-out records, members
        among them: treat it as the training data itself.

        Args:
          out: a folder that does not exist (parents are made), is empty, or holds an earlier
            report and nothing else; that one is replaced.

        Returns:
          The folder.

        Raises:
          FileExistsError: if `out` holds anything else. Nothing is changed.
          NotADirectoryError: if `out` or a parent of it is a file.
          PermissionError: if it may not be written.
        """
        from jaxmeter.report import folder  # Brings in matplotlib, which takes long to import.

        return folder.save(self, self.facts(), out)


def check_folder(out: str | PathLike[str]) -> Path:
    """Raises what `Report.save(out)` would raise about the folder, before any work is done.

    Returns:
      The folder, made absolute.
    """
    from jaxmeter.report import folder

    return folder.check(out)


def _figure(value: str, interval: str, style: str = "") -> Text:
    return Text.assemble((value, style), "\n", (interval, "dim"))
