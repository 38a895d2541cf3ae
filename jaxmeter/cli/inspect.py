"""What a target has that attacks can use, as rows and as tables."""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict
from jax import Array
from rich import box
from rich.table import Table
from rich.text import Text

from jaxmeter.jaxpr.shapes import Shape, traced
from jaxmeter.target import Target, layer_of
from jaxmeter.terminal import one_line, printable


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


def facts_table(target: Target) -> Table:
    """Where a target came from, what it takes and what it gives."""
    spec, source = target.spec, target.spec.source
    versions = ", ".join(f"{package} {version}" for package, version in source.versions)
    difference = "not compared: there is no original to run"
    if source.difference is not None:
        difference = f"at most {source.difference:.1g} on a probe batch of random records"
    facts = {
        "Model": source.origin,
        "Route": f"{source.route} ({versions})" if versions else source.route,
        "Opened": source.process,
        "Difference": difference,
        "Input": f"{sizes_text(spec.input_shape)} {spec.input_dtype}",
        "Classes": "not known" if spec.n_classes is None else str(spec.n_classes),
        "Logits": source.logits,
    }
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(Text(name, style="bold"), Text(one_line(fact), overflow="fold"))
    return table


def layers_table(target: Target) -> Table:
    """One row a layer: its output, its variables, and what attacks can use of it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", justify="right")
    for title in ("Layer", "Output", "Variables"):
        table.add_column(title, overflow="fold")
    table.add_column("Parameters", justify="right")
    table.add_column("Attacks can use", overflow="fold")
    for row in layer_rows(target):
        variables = "\n".join(
            f"{printable(v.name)} {sizes_text(v.shape)}{'' if v.is_trainable else ', no gradient'}"
            for v in row.variables
        )
        uses = ["output"] if row.position else []
        for number, name in row.gradients:
            inner = "" if name == row.name else f": {printable(name)}"
            uses.append(f"gradients {number}{inner}")
        cells = (
            str(row.position or "-"),
            printable(row.name),
            sizes_text(row.output) if row.position else "-",
            variables or "-",
            f"{row.parameters:,}",
            "\n".join(uses) or "-",
        )
        table.add_row(*map(Text, cells))  # Text: brackets in a name are no markup
    return table


def sizes_text(shape: Sequence[int | None] | None) -> str:
    """A shape for reading: "(28, 28, 1)"; "?" is a dimension that is open."""
    if shape is None:
        return "not known"
    sizes = ["?" if d is None else str(d) for d in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
