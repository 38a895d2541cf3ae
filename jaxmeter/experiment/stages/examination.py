"""The stage "intake": a target's file is opened, and what there is in it noted down."""

import json
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxmeter.disk import write
from jaxmeter.experiment.stages.notes import recording_warnings
from jaxmeter.intake.loading import load_target
from jaxmeter.target import Outputs, Source, Target, TargetSpec


class TargetLocation(NamedTuple):
    """Where a target is, and its content: `load_target`'s arguments and the files' hashes."""

    path: Path
    head: tuple[str | int, ...]
    weights: Path | None
    trust: bool
    content: tuple[str, ...]


@lru_cache(maxsize=2)
def opened(place: TargetLocation, shape: tuple[int, ...]) -> tuple[Target, list[str]]:
    """The target for records of this shape, and what opening it had to say."""
    head: Any = place.head or None
    if head is not None and len(head) == 1:
        head = head[0]
    with recording_warnings() as notes:
        target = load_target(place.path, output=head, weights=place.weights, trust=place.trust)
    return target.for_inputs(shape), notes


def examine(folder: Path, *, place: TargetLocation, shape: tuple[int, ...], origin: str) -> None:
    """Writes what `examined` reads; `origin` is how results name the target."""
    target, notes = opened(place, shape)
    describe(folder, target.spec, origin, notes)


def describe(folder: Path, spec: TargetSpec, origin: str, notes: list[str]) -> None:
    """Writes what `examined` reads, of a target that there is."""
    source = replace(spec.source, origin=origin)
    facts = {"spec": asdict(replace(spec, source=source)), "notes": notes}
    write(folder / "target.json", json.dumps(facts, indent=1, sort_keys=True).encode())


def examined(folder: Path) -> tuple[TargetSpec, list[str]]:
    """A target's facts, and notes."""
    found = json.loads((folder / "target.json").read_bytes())
    spec, source = found["spec"], found["spec"]["source"]
    source = Source(**{**source, "versions": tuple(map(tuple, source["versions"]))})
    tuples = {name: tuple(spec[name]) for name in ("input_shape", "layers", "variables")}
    return TargetSpec(**{**spec, **tuples, "source": source}), found["notes"]


def unloaded(spec: TargetSpec) -> Target:
    """A target of these facts without arrays, for asking attacks what they read."""

    def apply(params: Any, state: Any, x: Any) -> Outputs:
        raise RuntimeError("this target was not loaded")

    arrays = {name: jnp.zeros(()) for name in spec.variables}
    return Target(params=arrays, state={}, apply=apply, spec=spec)
