"""The stage "metrics": from what the attacks found to the figures of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jaxmeter.auditing.rows import counts, declined, measured
from jaxmeter.disk import create, write
from jaxmeter.experiment.stages.notes import recording_warnings
from jaxmeter.report.facts import attack_facts, plain, score_arrays, target_facts
from jaxmeter.report.layer_map import LayerMap
from jaxmeter.report.result import LayerRanking
from jaxmeter.target import TargetSpec

if TYPE_CHECKING:  # Only for annotations: figures follow from what was found, not from how.
    from jaxmeter.attacks.interface import AttackConfig
    from jaxmeter.experiment.stages.attack import StoredOutput
    from jaxmeter.signals.spec import ResolvedSpec

RESULTS, SCORES = "results.json", "scores.npz"


def score(
    folder: Path,
    *,
    attacks: "Sequence[tuple[AttackConfig, ResolvedSpec | None, StoredOutput]]",
    target: TargetSpec,
    is_member: NDArray,
    y: NDArray,
    parts: tuple[NDArray, NDArray, NDArray],
    accuracy: tuple[float, float],
    layers: LayerRanking | None,
    signal_bytes: int,
    notes: Sequence[str],
) -> None:
    """Writes results.json, but for the run's name, and scores.npz.

    `is_member` and `y` are of all records, `parts` the indices that were used.
    """
    truth = [is_member[part] for part in parts]
    with recording_warnings() as said:
        rows = [
            measured(
                attack,
                came.found,
                spec=spec,
                target=target,
                truth=truth,
                seconds=0.0,
                models=came.models,
            )
            for attack, spec, came in attacks
        ]
        facts = attack_facts(rows)
        ranked = None if layers is None else LayerMap.of(layers).facts()
    for row in facts:
        del row["seconds"]  # the only figure that two equal runs do not share; see cost.json
    members = [dict(zip(("members", "nonmembers"), counts(part), strict=True)) for part in truth]
    results = {
        "attacks": facts,
        "parts": dict(zip(("fit", "select", "held"), members, strict=True)),
        "target": target_facts(target),
        "accuracy": accuracy,
        "layers": ranked,
        "signals": {"bytes": signal_bytes},
        "notes": list(dict.fromkeys([*notes, *said, *declined(rows)])),
    }
    write(folder / RESULTS, json.dumps(plain(results), allow_nan=False).encode())
    arrays = score_arrays(rows, truth[2], y[parts[2]], np.asarray(parts[2]), layers)
    with create(folder / SCORES) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
