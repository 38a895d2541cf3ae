"""An audit's results: as values, as a table, and as a folder to keep."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from jaxmeter import facts, findings, verdict
from jaxmeter.data import Records
from jaxmeter.findings import percent
from jaxmeter.metrics import AttackResult
from jaxmeter.spread import FPRS, Spread
from jaxmeter.target import TargetSpec

if TYPE_CHECKING:  # Only for annotations: what a report is does not depend on how attacks work.
    from jaxmeter.catalogue import Epoch
    from jaxmeter.layer_results import LayerMap


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an attack was given; figures of two attacks compare only at equal budgets.

    Attributes:
      known_members: members of the target whose membership the attacker used (to fit, to choose
        the epoch or the threshold).
      known_nonmembers: non-members likewise.
      models_trained: models the attacker trained on such data (reference models), 0 for none.
      queries: forward passes of the target for each record.
      reads: the signals read, in words, e.g. ("logits", "loss", "label").
      parameters: trainable variables of the target whose values the attack needs; empty for a black
        box.
      layers: the target's inner layers whose outputs the attack needs; empty for a black box.
    """

    known_members: int
    known_nonmembers: int
    models_trained: int = 0
    queries: int = 1
    reads: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One attack on the held-out records.

    Attributes:
      name: the attack, unique within a report.
      result: its scores on the held-out records (in their order) and every statistic of them;
        `result.threshold` comes from the select part.
      budget: what it was given.
      seconds: wall time of fitting and scoring, without the extraction of signals.
      history: epochs of a learned attack; empty otherwise.
      best_epoch: the epoch kept (0: as initialised); None for training-free attacks.
      spread: the same attack on reference models in turn; None without reference models.
    """

    name: str
    result: AttackResult
    budget: Budget
    seconds: float
    history: "tuple[Epoch, ...]" = ()
    best_epoch: int | None = None
    spread: Spread | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What an audit found.

    Attributes:
      rows: one an attack, in the order asked.
      held: the held-out records that every row is measured on.
      held_index: their indices in the records given to the audit, int `[n]`.
      parts: `(members, non-members)` of the fit, select and held-out part.
      target: facts about the target.
      accuracy: the target's accuracy on the audit's members and on its non-members.
      seed: what everything random followed from, as shown to the reader: the command line's seed,
        or the data of the key given to `audit`.
      signal_seconds: wall time of extracting all signals of all records.
      signal_bytes: memory they took.
      notes: warnings raised on the way.
      versions: `(package, version)` pairs, Python included.
      device: what JAX computed on.
      layers: what each layer gives away on the held-out records, where an attack read signals of
        layers; see `jaxmeter.layer_map`.
    """

    rows: tuple[Row, ...]
    held: Records
    held_index: NDArray
    parts: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    target: TargetSpec
    accuracy: tuple[float, float]
    seed: str
    signal_seconds: float
    signal_bytes: int
    notes: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    device: str = ""
    settings: dict = field(default_factory=dict)
    layers: "LayerMap | None" = None

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
        rates = (f"TPR at\n{findings.rate_name(fpr)} FPR" for fpr in FPRS)
        for head in ("AUC", "Balanced\naccuracy", *rates):
            table.add_column(head, justify="right", no_wrap=True, vertical="top")
        table.add_column("Time", justify="right", no_wrap=True)
        above = findings.beats_chance(self) and len(self.rows) > 1
        for row in self.rows:
            result = row.result
            low, high = result.auc_interval()
            strong = "bold" if above and row is self.best else ""
            table.add_row(
                Text.assemble(
                    (findings.clean(row.name), strong), "\n", (findings.budget_text(row), "dim")
                ),
                _figure(f"{result.auc:.3f}", f"{low:.3f}–{high:.3f}", strong),
                _figure(percent(result.accuracy), findings.percents(result.accuracy_interval())),
                *(self._tpr(result, fpr) for fpr in FPRS),
                Text(duration(row.seconds)),
                end_section=False,
            )
        return table

    def _tpr(self, result: AttackResult, fpr: float) -> Text:
        if not findings.resolvable(result, fpr):
            return Text(findings.shortage(fpr).replace(" non-", "\nnon-"), style="dim italic")
        return _figure(percent(result.tpr_at(fpr)), findings.percents(result.tpr_interval(fpr)))

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
            text.append(f"\nNote: {findings.clean(note)}", style="yellow")
        return text

    def facts(self) -> dict[str, Any]:
        """What `results.json` holds: every figure, as strict JSON's types."""
        return facts.facts(self, verdict.verdict(self))

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
        from jaxmeter import folder  # Brings in matplotlib, which takes long to import.

        return folder.save(self, out)


def check_folder(out: str | PathLike[str]) -> Path:
    """Raises what `Report.save(out)` would raise about the folder, before any work is done.

    Returns:
      The folder, made absolute.
    """
    from jaxmeter import folder

    return folder.check(out)


def duration(seconds: float) -> str:
    """Wall time for reading.

    >>> duration(0.004), duration(3.21), duration(75), duration(4000)
    ('<0.01 s', '3.2 s', '1:15 min', '1:07 h')
    """
    if seconds < 60:
        return "<0.01 s" if seconds < 0.005 else f"{seconds:.{2 if seconds < 1 else 1}f} s"
    whole, unit = (round(seconds), "min") if seconds < 3600 else (round(seconds / 60), "h")
    return f"{whole // 60}:{whole % 60:02d} {unit}"


def _figure(value: str, interval: str, style: str = "") -> Text:
    return Text.assemble((value, style), "\n", (interval, "dim"))
