"""The stage "signals": what all attacks of a run read, computed once."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from jaxmeter.data.records import Records
from jaxmeter.signals.extraction import extract
from jaxmeter.signals.scalars.names import is_of
from jaxmeter.signals.spec import ResolvedSpec, Signals
from jaxmeter.signals.storage import load
from jaxmeter.target import Target

FOLDER = "signals"


def compute(
    folder: Path,
    *,
    target: Target,
    records: Records,
    spec: ResolvedSpec,
    device_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the signals of the records.

    Raises:
      ValueError: if some are not finite.
    """
    signals = extract(
        target,
        records,
        spec,
        device_budget=device_budget,
        out=folder / FOLDER,
        progress=progress,
    )
    check_finite(signals, "the target")


def check_finite(signals: Signals, model: str) -> None:
    """Refuses signals of one model that are not finite.

    Raises:
      ValueError: naming the model and the first record.
    """
    for leaf in jax.tree.leaves(signals):
        if leaf.dtype == bool:
            continue
        for start in range(0, len(leaf), 4096):
            part = np.asarray(leaf[start : start + 4096])
            bad = np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(axis=1))
            if bad.size:
                raise ValueError(
                    f"signals of records are not finite (first: record {start + bad[0]} of those "
                    f"extracted): {model} overflows on them, so no attack can be measured. "
                    "Train it more carefully, or look at the records' scale."
                )


def loaded(folder: Path, model: int | None = None) -> Signals:
    """The signals of an entry, memory-mapped; of a pool's those of one model."""
    signals = load(folder / FOLDER)
    return signals if model is None else jax.tree.map(lambda leaf: leaf[model], signals)


def read_files(folder: Path, files: Mapping[str, str], spec: ResolvedSpec | None) -> dict[str, str]:
    """Hashes of the arrays that a spec reads, by their path in `Signals`."""
    if spec is None:
        return {}
    manifest = json.loads((folder / FOLDER / "signals.json").read_bytes())

    def is_read(path: list[str]) -> bool:
        if path[0] == "scalars":
            return any(is_of(kind, path[1]) for kind in spec.scalars)
        return tuple(path[:2]) in wanted

    wanted = {
        *(("outputs", name) for name in spec.outputs),
        *(("gradients", name) for name in spec.gradients),
        *(("gradient_norms", name) for name in spec.norms),
        *([("loss",)] if spec.loss else []),
        *([("label",)] if spec.label else []),
    }
    return {
        "/".join(array["path"]): files[f"{FOLDER}/{array['file']}"]
        for array in manifest["arrays"]
        if is_read(array["path"])
    }
