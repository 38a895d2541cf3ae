"""The stage "layers": what each layer of the target gives away by itself."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.auditing.layers import measured_layers, stored_layers
from jaxmeter.data.records import Records
from jaxmeter.disk import create, write
from jaxmeter.experiment.stages.notes import recording_warnings
from jaxmeter.report.facts import layer_arrays
from jaxmeter.report.result import LayerRanking
from jaxmeter.signals.spec import Signals
from jaxmeter.target import TargetSpec


class StoredLayers(NamedTuple):
    """The ranking of the layers, None where there was nothing to rank, and warnings."""

    ranking: LayerRanking | None
    notes: list[str]


def rank(
    folder: Path,
    *,
    signals: Signals,
    seen: ReferenceSignals | None,
    y: NDArray,
    is_member: NDArray,
    target: TargetSpec,
) -> None:
    """Writes what `ranked` reads; all arguments are of the held-out records."""
    records = Records(np.zeros((len(y), 0), np.float32), y, is_member)  # a map reads no record
    with recording_warnings() as notes:
        found = measured_layers(signals, records, target, seen)
    facts: dict = {"notes": notes, "ranking": None}
    if found is not None:
        rows = [
            {"layer": row.layer, "signal": row.signal, "variable": row.variable}
            for row in found.rows
        ]
        facts["ranking"] = {"signals": rows, "layers": found.layers, "models": found.models}
        with create(folder / "layers.npz") as file:
            np.savez(file, **layer_arrays(found))  # type: ignore[arg-type]
    write(folder / "layers.json", json.dumps(facts, indent=1).encode())


def ranked(folder: Path, is_member: NDArray) -> StoredLayers:
    """What `rank` wrote; `is_member` is of the held-out records."""
    facts = json.loads((folder / "layers.json").read_bytes())
    if facts["ranking"] is None:
        return StoredLayers(None, facts["notes"])
    with np.load(folder / "layers.npz", allow_pickle=False) as arrays:
        ranking = stored_layers(facts["ranking"], dict(arrays), is_member)
    return StoredLayers(ranking, facts["notes"])
