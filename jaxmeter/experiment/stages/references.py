"""The stage "references": models are trained on the audited records, and what they say is kept."""

import json
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.auditing.references import Shadows, seen_by, trained
from jaxmeter.data.records import Records
from jaxmeter.disk import create, write
from jaxmeter.experiment.stages.notes import recording_warnings
from jaxmeter.experiment.stages.signals import FOLDER, check_finite, loaded
from jaxmeter.intake.frameworks import keras as loaded_keras
from jaxmeter.intake.frameworks import undisturbed
from jaxmeter.prng import stream
from jaxmeter.progress import Progress
from jaxmeter.shadow import stacked
from jaxmeter.shadow.architecture import Architecture, of_keras
from jaxmeter.shadow.recipe import RecipeConfig
from jaxmeter.signals.spec import SignalSpec

_MEMBERSHIP = "was_member.npy"


class ReferencePlan(NamedTuple):
    """What is to be trained, how, and what it is asked afterwards."""

    architecture: Callable[[], Architecture]
    recipe: RecipeConfig
    k: int
    asked: tuple[SignalSpec, ...]


def built(recipe: Any, shape: tuple[int, ...], *, n_classes: int, seed: int) -> Architecture:
    """The architecture of a recipe's model."""
    keras = loaded_keras()
    with undisturbed():
        keras.utils.clear_session(free_memory=False)  # layers are numbered from 1 again
        keras.utils.set_random_seed(seed)
        model = recipe.built(shape, n_classes=n_classes, seed=seed)
        return model if isinstance(model, Architecture) else of_keras(model)


def compute(
    folder: Path,
    *,
    plan: ReferencePlan,
    records: Records,
    seed: int,
    device_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Trains the models, writes what they say of the records, and forgets them.

    Raises:
      ValueError: if a model that is finite gives signals that are not, or all but one diverged.
    """

    def show(now: Progress) -> None:
        if progress:
            epochs = now.of_models * now.of_epochs
            progress(round(now.fraction * epochs), epochs)

    with recording_warnings() as notes:
        shadows = Shadows(architecture=plan.architecture(), recipe=plan.recipe, k=plan.k)
        key = stream(jax.random.key(seed), "references")
        references = trained(key, shadows, records, show)
        model = stacked.model(references.models, 0).for_inputs(records.x.shape[1:])
        spec = reduce(lambda a, b: a.union(b), (one.resolved(model) for one in plan.asked))
        place = folder / FOLDER
        seen = seen_by(references, records, spec, out=place, device_budget=device_budget)
    keep(folder, seen, notes)


def keep(folder: Path, seen: ReferenceSignals, notes: list[str]) -> None:
    """Writes what is not there yet of what `seen` and `notes` read: all but the signals.

    Raises:
      ValueError: if a model gives signals that are not finite.
    """
    for i in range(len(seen.was_member)):
        check_finite(jax.tree.map(lambda leaf, i=i: leaf[i], seen.signals), f"reference model {i}")
    with create(folder / _MEMBERSHIP) as file:
        np.save(file, seen.was_member)
    write(folder / "notes.json", json.dumps(notes, indent=1).encode())


def seen(folder: Path, models: tuple[int, ...] | None = None) -> ReferenceSignals:
    """The records as the models see them, memory-mapped; of a pool's as some of them do."""
    signals, was_member = loaded(folder), np.load(folder / _MEMBERSHIP, allow_pickle=False)
    if models is not None:
        chosen = np.array(models)
        signals = jax.tree.map(lambda leaf: leaf[chosen], signals)
        was_member = was_member[chosen]
    return ReferenceSignals(signals, was_member)


def notes(folder: Path) -> list[str]:
    """What training the models had to say."""
    return json.loads((folder / "notes.json").read_bytes())


def read_files(folder: Path, files: Mapping[str, str], spec: SignalSpec) -> dict[str, str]:
    """Hashes of what an attack reads: arrays by their path in `Signals`, and the membership."""
    manifest = json.loads((folder / FOLDER / "signals.json").read_bytes())
    kinds = {
        "outputs": bool(spec.outputs),
        "gradients": bool(spec.gradients),
        "gradient_norms": bool(spec.gradient_norm),
        "scalars": bool(spec.scalars),
        "loss": spec.loss,
        "label": spec.label,
    }
    read = {
        "/".join(array["path"]): files[f"{FOLDER}/{array['file']}"]
        for array in manifest["arrays"]
        if kinds.get(array["path"][0])
    }
    return {**read, "was member": files[_MEMBERSHIP]}
