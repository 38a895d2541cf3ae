"""An audit's results: as a table, as facts, and as a folder to keep."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxmeter.report import facts, findings, table, verdict
from jaxmeter.report.layer_map import LayerMap
from jaxmeter.report.result import AuditResult, Row


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
        return table.table(self)

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
