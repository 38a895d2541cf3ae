"""The stage "attack": one attack is fitted, if it is learned, and scores the records."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.catalogue import AnyAttack, Epoch, Found, Part, found_by
from jaxmeter.data import Records
from jaxmeter.experiment.notes import noted
from jaxmeter.signals import ResolvedSpec, Signals


class Given(NamedTuple):
    """What an attack is given of one part."""

    records: Records
    rows: NDArray  # its rows among all signals


def attack(
    folder: Path,
    *,
    config: AnyAttack,
    spec: ResolvedSpec | None,
    signals: Signals,
    parts: tuple[Given, Given, Given],
    seed: int,
) -> None:
    """Writes what `found` reads."""
    given = (Part(part.records, signals.rows(part.rows)) for part in parts)
    with noted() as notes:
        result = found_by(jax.random.key(seed), config, spec, *given)
    for name, scores in (("select", result.select), ("held", result.held)):
        bad = int((~np.isfinite(scores)).sum())
        if bad:
            raise ValueError(
                f"{config.name} gave {bad} scores of the {name} part that are not finite, which "
                "have no order and cannot be measured."
            )
    np.savez(
        folder / "found.npz",
        select=result.select,
        held=result.held,
        history=np.array(result.history, np.float64).reshape(-1, 4),
        best_epoch=np.array([] if result.best_epoch is None else [result.best_epoch], np.int64),
    )
    (folder / "notes.json").write_text(json.dumps(notes, indent=1), "utf-8")


def found(folder: Path) -> tuple[Found, list[str]]:
    """What an attack found, and notes."""
    with np.load(folder / "found.npz", allow_pickle=False) as arrays:
        history = tuple(Epoch(int(e), *map(float, rest)) for e, *rest in arrays["history"])
        best = arrays["best_epoch"]
        result = Found(
            arrays["select"], arrays["held"], history, int(best[0]) if best.size else None
        )
    return result, json.loads((folder / "notes.json").read_bytes())
