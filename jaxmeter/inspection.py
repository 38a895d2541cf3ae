"""What there is in a target: layers, their shapes and variables, and what attacks can ask for."""

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict
from jax import Array

from jaxmeter.shapes import Shape, traced
from jaxmeter.target import Target, layer_of


class Variable(NamedTuple):
    """An array of a layer; not trainable if it is state, which has no gradient."""

    name: str
    shape: tuple[int, ...]
    is_trainable: bool


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer.

    Attributes:
      position: its 1-based number in `SignalSpec(outputs=...)`; None if it has no output.
      name: its name there.
      output: shape of one record's output, None in it where any length will do; None if unknown.
      variables: its arrays, named within the layer.
      gradients: numbers and names in `SignalSpec(gradients=...)`, 1-based among layers with
        trainable variables; several if layers without an output of their own lie inside.
    """

    position: int | None
    name: str
    output: Shape | None
    variables: tuple[Variable, ...]
    gradients: tuple[tuple[int, str], ...]

    @property
    def parameters(self) -> int:
        """How many trainable numbers it has."""
        return sum(math.prod(v.shape) for v in self.variables if v.is_trainable)


def layer_rows(target: Target) -> tuple[LayerRow, ...]:
    """A row for each layer in model order, then for owners of variables that have no output.

    Nothing is computed: shapes come from tracing.

    >>> import jax.numpy as jnp
    >>> from jaxmeter.target import from_function
    >>> net = from_function(lambda p, s, x: x @ p["out/kernel"], {"out/kernel": jnp.ones((4, 3))})
    >>> [(row.name, row.parameters, row.gradients) for row in layer_rows(net)]
    [('out', 12, ((1, 'out'),))]
    """
    spec = target.spec
    outputs = _outputs(target)
    places = {name: number for number, name in enumerate(spec.layers, start=1)}
    variables: dict[str, list[Variable]] = {name: [] for name in spec.layers}
    gradients: dict[str, list[tuple[int, str]]] = {name: [] for name in spec.layers}
    for number, layer in enumerate(spec.trainable_layers, start=1):
        gradients.setdefault(_row_of(layer, places), []).append((number, layer))
    flat = [(name, target.params[name], True) for name in spec.variables]
    state = flatten_dict(target.state, sep="/")
    flat += [(name, value, False) for name, value in state.items() if _is_array(value)]
    for name, value, is_trainable in flat:
        row = _row_of(layer_of(name), places)
        inside = name.removeprefix(f"{row}/")
        variables.setdefault(row, []).append(Variable(inside, tuple(value.shape), is_trainable))
    return tuple(
        LayerRow(
            position=places.get(name),
            name=name,
            output=outputs.get(name),
            variables=tuple(found),
            gradients=tuple(gradients.get(name, ())),
        )
        for name, found in variables.items()
    )


def _row_of(owner: str, layers: Container[str]) -> str:
    """The innermost of the layers that holds an owner of variables; else the owner itself."""
    path = owner
    while path and path not in layers:
        path = path.rpartition("/")[0]
    return path or owner


def _outputs(target: Target) -> dict[str, Shape | None]:
    """Shape of one record's output of each layer, by name."""
    spec = target.spec
    if spec.input_shape is None:
        return {}

    def run(x: Array) -> list[Array]:
        layers = target.apply(target.params, target.state, x).layers
        return [layers[name] for name in spec.layers]

    found = traced(run, spec.input_shape, spec.input_dtype)
    return {name: leaf.row for name, leaf in zip(spec.layers, found.leaves, strict=True)}


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape")


class Totals(NamedTuple):
    """Sums over a target."""

    layers: int
    trainable_layers: int
    parameters: int
    state: int  # numbers that are read, but have no gradient


def totals(target: Target) -> Totals:
    """How much there is in a target."""
    state = [leaf for leaf in jax.tree.leaves(target.state) if _is_array(leaf)]
    return Totals(
        layers=len(target.spec.layers),
        trainable_layers=len(target.spec.trainable_layers),
        parameters=sum(math.prod(value.shape) for value in target.params.values()),
        state=sum(math.prod(value.shape) for value in state),
    )
