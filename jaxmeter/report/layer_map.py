"""What layers give away: ranked, as a table, a figure and facts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from jaxmeter.metrics import AttackResult
from jaxmeter.report import columns, measures
from jaxmeter.report.columns import AUC, Column
from jaxmeter.report.facts import plain
from jaxmeter.report.findings import resolvable
from jaxmeter.report.result import CONFIDENCE, LayerRanking, LayerSignal
from jaxmeter.report.wording import clean, percent, plural, rate_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MINUS_THIS = Column(
    "best_minus_this",
    "best AUC minus this",
    "the first signal's AUC minus this one's, paired, with intervals for all of them at once",
    interval=True,
    format=columns.DIFFERENCE,
)
_FPR = 0.01
_NAMED = 6  # places that a sentence lists


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerMap(LayerRanking):
    """What the layers of a target give away, with ways to read it: a `LayerRanking`."""

    @classmethod
    def of(cls, ranking: LayerRanking) -> "LayerMap":
        """The same values, to be read."""
        return cls(
            rows=ranking.rows, layers=ranking.layers, output=ranking.output, models=ranking.models
        )

    def table(self) -> Table:
        """One line a signal of a layer, the largest AUC first, for a terminal or a notebook."""
        table = Table(
            box=box.SIMPLE_HEAD,
            title="Which layer gives away how much",
            title_style="bold",
            title_justify="left",
            caption=Text("\n".join([*self.finding(), self.scored()])),
            caption_style="",
            caption_justify="left",
            padding=(0, 1, 0, 0),
        )
        table.add_column("Layer", overflow="fold")
        table.add_column("Signal", no_wrap=True)
        rate = columns.tpr_at(_FPR)
        for head in (AUC.heading, rate.heading, MINUS_THIS.heading_on_two_lines):
            table.add_column(head, justify="right", vertical="top")
        for row, behind in zip(self.rows, self.behind, strict=True):
            style = "bold" if behind.low <= 0 and self.best_interval.low > 0.5 else ""
            minus = None if row is self.rows[0] else behind._asdict()
            table.add_row(
                Text(clean(row.place), style=style),
                row.signal,
                AUC.shown(measures.auc(row.result), "terminal").rich(style),
                rate.shown(measures.at_fpr(row.result, _FPR), "terminal").rich(),
                MINUS_THIS.shown(minus, "terminal").rich(),
            )
        return table

    def figure(self) -> "Figure":
        """Every signal's AUC with its interval, layer by layer in the model's order."""
        from jaxmeter.report.figures.layers import (
            layer_figure,  # Brings in matplotlib, which takes long to import.
        )

        return layer_figure(self)

    def facts(self) -> dict[str, Any]:
        """All figures as strict JSON's types."""
        beyond, output = self.beyond_output, self.output
        return plain(
            {
                "models": self.models,
                "confidence": CONFIDENCE,
                "layers": self.layers,
                "finding": self.finding(),
                "scored": self.scored(),
                "best_interval": self.best_interval,
                "output": None
                if output is None or beyond is None
                else {**_measured(output), "best_minus_this": beyond},
                "signals": [
                    {
                        "layer": row.layer,
                        "signal": row.signal,
                        "variable": row.variable,
                        **_measured(row.result),
                        "best_minus_this": behind,
                        "may_be_best": behind.low <= 0,
                    }
                    for row, behind in zip(self.rows, self.behind, strict=True)
                ],
            }
        )

    def finding(self) -> list[str]:
        """What it says, in sentences."""
        first, (low, high) = self.rows[0], self.best_interval
        found, rows = self.candidates, len(self.rows)
        said = [
            f"The {_name(first)} gives away most: as a score, it ranks a random member above a "
            f"random non-member with probability {first.result.auc:.3f} (the AUC; 95% interval, "
            f"allowing for the choice of the best of {rows}, {low:.3f} to {high:.3f})."
        ]
        if low <= 0.5:
            said = [
                "No layer's signal told members from non-members better than chance: the largest "
                f"AUC is {first.result.auc:.3f} (95% interval, allowing for the choice of the best "
                f"of {rows}, {low:.3f} to {high:.3f})."
            ]
        elif len(found) == 1 < rows:
            said.append("All others give away less (DeLong's paired test, Bonferroni).")
        elif len(found) == rows > 1:
            said.append(f"None of the other {rows - 1} can be told from it on these records.")
        elif rows > 1:
            named = ", ".join(f"the {_name(row)}" for row in found[1 : _NAMED + 1])
            more = len(found) - 1 - _NAMED
            said.append(
                f"{len(found) - 1} of the other {rows - 1} cannot be told from it on these records "
                f"(DeLong's paired test, Bonferroni): {named}"
                + (f" and {more} more." if more > 0 else ".")
            )
        said += self._at_low_rate()
        if self.output is not None and self.beyond_output is not None:
            gain = self.beyond_output
            said.append(
                f"The log-odds of the target's answer, which a black box has, have an AUC of "
                f"{self.output.auc:.3f}; the largest AUC minus that is {gain.value:+.3f} "
                f"({gain.low:+.3f} to {gain.high:+.3f})."
            )
        return said

    def _at_low_rate(self) -> list[str]:
        """Which signal finds the most members at a low FPR, if it is another one."""
        best = self.rows[0].result
        if not resolvable(best, _FPR):
            return []
        row = max(self.rows, key=lambda row: row.result.tpr_at(_FPR))
        most, found = row.result.tpr_at(_FPR), best.tpr_at(_FPR)
        if most <= found:
            return []
        low, high = row.result.tpr_interval(_FPR)
        return [
            f"At a false positive rate of {rate_name(_FPR)} the {_name(row)} finds the most "
            f"members: {percent(most)} (95% interval {percent(low)} to {percent(high)}), to "
            f"{percent(found)} by the largest AUC."
        ]

    def scored(self) -> str:
        """How a signal became a score, in a sentence."""
        if self.models:
            return (
                "A score is the log-likelihood ratio of one signal, by what "
                f"{plural(self.models, 'reference model')} that saw the record, or did not, say "
                "of it."
            )
        return (
            "A score is the signal itself. Reference models would take out what makes a record "
            "easy or hard for any model."
        )


def _measured(result: AttackResult) -> dict[str, Any]:
    return {
        "auc": measures.auc(result),
        "tpr_at_fpr": measures.at_fpr(result, _FPR),
    }


def _name(row: LayerSignal) -> str:
    return f"{row.signal} of {clean(row.place)}"
