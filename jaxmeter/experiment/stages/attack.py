"""The stage "attack": one attack is fitted, if it is learned, and scores the records."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.attacks.interface import (
    AttackConfig,
    AttackOutput,
    Epoch,
    Evidence,
    ReferenceSignals,
    Spread,
)
from jaxmeter.attacks.suite import run_attack
from jaxmeter.data.records import Records
from jaxmeter.disk import create, write
from jaxmeter.experiment.stages.notes import recording_warnings
from jaxmeter.signals.spec import ResolvedSpec, Signals


class AttackRows(NamedTuple):
    """What an attack is given of one part."""

    records: Records
    rows: NDArray  # its rows among all signals


class StoredOutput(NamedTuple):
    """What came of an attack.

    Attributes:
      found: scores.
      models: reference models that it had; 0 if it needs none.
      notes: warnings.
    """

    found: AttackOutput
    models: int
    notes: list[str]


def attack(
    folder: Path,
    *,
    config: AttackConfig,
    spec: ResolvedSpec | None,
    signals: Signals,
    seen: ReferenceSignals | None,
    parts: tuple[AttackRows, AttackRows, AttackRows],
    seed: int,
) -> None:
    """Writes what `came` reads; `seen` are all signals as reference models see them."""
    given = [
        Evidence(part.records, signals.rows(part.rows), seen and seen.rows(part.rows))
        for part in parts
    ]
    with recording_warnings() as notes:
        result = run_attack(jax.random.key(seed), config, spec, *given)
    spread = result.spread
    for name, scores in (("select", result.select), ("held", result.held)):
        bad = int((~np.isfinite(scores)).sum())
        if bad:
            raise ValueError(
                f"{config.name} gave {bad} scores of the {name} part that are not finite, which "
                "have no order and cannot be measured."
            )
    in_turn: dict[str, Any] = (
        {} if spread is None else {"auc_in_turn": spread.auc, "tpr_in_turn": spread.tpr}
    )
    with create(folder / "found.npz") as file:
        np.savez(
            file,
            select=result.select,
            held=result.held,
            history=np.array(result.history, np.float64).reshape(-1, 4),
            best_epoch=np.array([] if result.best_epoch is None else [result.best_epoch], np.int64),
            minus=np.array([] if result.minus is None else [result.minus], np.str_),
            models=np.int64(0 if seen is None else len(seen.was_member)),
            **in_turn,
        )
    write(folder / "notes.json", json.dumps(notes, indent=1).encode())


def came(folder: Path) -> StoredOutput:
    """What `attack` wrote."""
    with np.load(folder / "found.npz", allow_pickle=False) as arrays:
        history = tuple(Epoch(int(e), *map(float, rest)) for e, *rest in arrays["history"])
        best = arrays["best_epoch"]
        spread = None
        if "auc_in_turn" in arrays:
            spread = Spread(arrays["auc_in_turn"], arrays["tpr_in_turn"])
        epoch = int(best[0]) if best.size else None
        (minus,) = arrays["minus"].tolist() or [None]
        result = AttackOutput(arrays["select"], arrays["held"], history, epoch, spread, minus)
        models = int(arrays["models"])
    return StoredOutput(result, models, json.loads((folder / "notes.json").read_bytes()))
