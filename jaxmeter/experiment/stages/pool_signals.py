"""The stage "pool_signals": what all models of a pool say of all records; a run sees rows of it."""

from collections.abc import Callable
from pathlib import Path

from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.data.records import Records
from jaxmeter.experiment.stages import references as references_stage
from jaxmeter.experiment.stages.notes import recording_warnings
from jaxmeter.experiment.stages.pool_draws import membership
from jaxmeter.experiment.stages.signals import FOLDER
from jaxmeter.shadow import extraction
from jaxmeter.shadow.stacked import count
from jaxmeter.signals.spec import ResolvedSpec
from jaxmeter.target import Target


def look(
    folder: Path,
    *,
    models: Target,
    records: Records,
    spec: ResolvedSpec,
    seed: int,
    device_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes what `references.seen` reads, of all models.

    Raises:
      ValueError: if a model gives signals that are not finite.
    """
    with recording_warnings() as notes:
        signals = extraction.extract(
            models,
            records,
            spec,
            out=folder / FOLDER,
            device_budget=device_budget,
            progress=progress,
        )
    was_member = membership(records.x, count(models), seed)
    references_stage.keep(folder, ReferenceSignals(signals, was_member), notes)
