"""A parsed ONNX graph and what its inputs stand for, as a target."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmeter.intake.adapter import as_target
from jaxmeter.intake.heads import FinalLayer, ProbeOutputs
from jaxmeter.intake.onnx.graph import Graph, Node, reads, run
from jaxmeter.target import Source, Target

# Hand their (first) input on, as far as rows of class scores go.
_IDENTITIES = {"Identity", "Dropout", "Cast"}
# These too if the values per record stay as they are, which the shapes must show.
_RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
# Last parts of names that TensorFlow and its converters give to what reads a variable.
_BEFORE_PIECE = re.compile(r"(?=[/:])")
_TAIL = re.compile(
    r"(ReadVariableOp|Cast|resource|Read|Identity|(Stateful)?PartitionedCall)(_\d+)?"
)
_BETWEEN = {*_IDENTITIES, *_RESHAPES, "Transpose", "Slice"}
_LINEAR = {"MatMul", "Gemm", "Conv", "BatchNormalization", "Add"}
_ENDINGS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "linear"}


class Binding(NamedTuple):
    """What the values of a graph stand for.

    Attributes:
      x: the input that takes the records.
      params: name of a trainable variable -> the graph's value that it feeds.
      state: the same for other variables.
      outputs: name of an output -> the graph's value, in the model's order.
      layers: name of a layer -> the graph's value of its output, in the model's order.
    """

    x: str
    params: dict[str, str]
    state: dict[str, str]
    outputs: dict[str, str]
    layers: dict[str, str]


def from_graph(
    graph: Graph,
    binding: Binding,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    *,
    constants: Mapping[str, np.ndarray] = {},  # noqa: B006 (never written to)
    shape: tuple[int | None, ...],
    dtype: str,
    one_by_one: bool = False,
    original: Callable[[np.ndarray], Mapping[str, Any] | None],
    output: Any,
    source: Source,
) -> Target:
    """A target that evaluates a graph.

    Args:
      graph: the graph.
      binding: what its values stand for.
      params: the trainable variables' values by name.
      state: the other variables' values by name.
      constants: values of further inputs of the graph.
      shape: shape of a record, None for an open dimension.
      dtype: what records are cast to.
      one_by_one: the graph takes a batch of exactly one record, so it is mapped over records.
      original: the original framework's outputs by name for a batch.
      output: which output to audit, see `load_target`.
      source: where the graph came from.
    """
    wanted = list(dict.fromkeys([*binding.outputs.values(), *binding.layers.values()]))
    endings = endings_of(graph, wanted)
    wanted = list(dict.fromkeys([*wanted, *(before for before, _ in endings.values())]))

    def forward(params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> ProbeOutputs:
        fixed = {value: params[name] for name, value in binding.params.items()}
        fixed |= {value: state[name] for name, value in binding.state.items()}

        def values_of(x: Array) -> list[Array]:
            feeds = {**constants, **fixed, binding.x: x}
            return run(graph, feeds, wanted)

        if one_by_one:
            values = jax.vmap(lambda row: [jnp.asarray(v)[0] for v in values_of(row[None])])(x)
        else:
            values = values_of(x)
        found = dict(zip(wanted, map(jnp.asarray, values), strict=True))

        def final(value: str) -> FinalLayer:
            before, ending = endings[value]
            if found[before].size != found[value].size:  # a reshape that mixes records
                before, ending = value, None
            return FinalLayer(found[value], found[before].reshape(found[value].shape), ending)

        return ProbeOutputs(
            outputs={name: final(value) for name, value in binding.outputs.items()},
            layers={name: final(value) for name, value in binding.layers.items()},
            takes_tokens=bool(tables),
        )

    feeds = {value: np.shape(params[name]) for name, value in binding.params.items()}
    tables = [feeds[value][0] for value in tables_of(graph, binding.x) if value in feeds]
    return as_target(
        forward,
        {name: jnp.array(value) for name, value in params.items()},
        {name: jnp.array(value) for name, value in state.items()},
        shape=shape,
        dtype=dtype,
        original=original,
        output=output,
        tokens=min(tables, default=None),
        source=source,
    )


def endings_of(graph: Graph, values: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """The value before a final softmax or sigmoid, and which it was; else the value itself.

    "linear": nothing squashed it since a linear layer, or a log-softmax made it, so that it may be
    logits as it is.
    """
    found: dict[str, tuple[str | None, str | None]] = {}
    for node in graph.nodes:
        for i, value in enumerate(node.outputs):
            ending = _ENDINGS.get(node.op)
            if ending == "softmax" and not _over_last_axis(node):
                found[value] = None, None
            elif ending == "linear" or node.op in _LINEAR:
                found[value] = None, "linear"
            elif ending is not None:
                found[value] = node.inputs[0], ending
            elif node.op in _IDENTITIES | _RESHAPES and i == 0:
                found[value] = found.get(node.inputs[0], (None, None))
    return {
        value: (before if before is not None else value, ending)
        for value in values
        for before, ending in [found.get(value, (None, None))]
    }


def _over_last_axis(node: Node) -> bool:
    # Before opset 13 the default axis was 1, of the input flattened there: the same for [n, c].
    return node.attributes.get("axis", -1) in (-1, 1)


def tables_of(graph: Graph, x: str) -> Iterator[str]:
    """The values that `x` is used as integer indices into: tables of embeddings."""
    same = {x}
    for node in graph.nodes:
        if node.op in _IDENTITIES - {"Dropout"} | _RESHAPES - {"Flatten"}:
            if node.inputs[0] in same:
                same.add(node.outputs[0])
        elif node.op == "Gather" and node.inputs[1] in same:
            yield node.inputs[0]


# --- layers of graphs that have no layers --------------------------------------------------------


def layers_of(graph: Graph, x: str, owners: Mapping[str, str]) -> dict[str, str]:
    """Groups of nodes as layers: name -> the value that the group's last node computes.

    A node belongs to the layer of the first variable that it reads; else to its scope (all of its
    name before the last slash); what converters put between layers, like a transpose, to the layer
    before it. Anything else is a layer of its own, named after itself.

    Args:
      graph: the graph.
      x: the input that takes the records.
      owners: a graph's value that is a variable -> the layer that owns it.
    """
    varying = _varying(graph, x)
    at_end = _Endings(owners.values())
    labels = node_labels(graph)
    derived = dict(owners)  # a transposed or cast variable is still that variable
    group_of: dict[str, str] = {}
    groups: dict[str, str] = {}
    for node in graph.nodes:
        used = list(reads(node))
        owner = next((derived[value] for value in used if value in derived), None)
        if not varying.intersection(used):
            derived.update((out, owner) for out in node.outputs if owner is not None)
            continue
        scope = scope_of(node.name)
        before = next((group_of[value] for value in used if value in group_of), None)
        if owner is None:
            owner = at_end.first(scope) if scope else None
        if owner is None and not scope and before is not None and node.op in _BETWEEN:
            owner = before
        name = owner or scope or plain_name(labels[node.outputs])
        group_of.update((out, name) for out in node.outputs)
        groups.pop(name, None)  # the last output counts, and stands where it was computed
        groups[name] = node.outputs[0]
    return groups


class _Endings:
    """Paths, and which of them another path ends in."""

    def __init__(self, paths: Iterable[str]):
        """The paths as a tree of their parts, from the last on."""
        self._tree: dict[str | None, Any] = {}
        for place, path in enumerate(dict.fromkeys(paths)):
            at = self._tree
            for part in reversed(path.split("/")):
                at = at.setdefault(part, {})
            at[None] = place, path

    def first(self, path: str) -> str | None:
        """The first of the paths that this one ends in, or is."""
        at, found = self._tree, []
        for part in reversed(path.split("/")):
            if (inner := at.get(part)) is None:
                break
            at = inner
            if None in at:
                found.append(at[None])
        return min(found)[1] if found else None


def node_labels(graph: Graph) -> dict[tuple[str, ...], str]:
    """Each node's own name, or its operator and a number if it has none, by its outputs."""
    counts: dict[str, int] = {}
    labels = {}
    for node in graph.nodes:
        counts[node.op] = counts.get(node.op, 0) + 1
        labels[node.outputs] = node.name or f"{node.op}_{counts[node.op]}"
    return labels


def _varying(graph: Graph, x: str) -> set[str]:
    """The values that depend on the data, as opposed to weights, constants and shapes."""
    found = {x}
    for node in graph.nodes:
        if node.op not in ("Shape", "Size") and found.intersection(reads(node)):
            found.update(node.outputs)
    return found


def plain_name(name: str) -> str:
    """A value's or node's name without what converters hang on to it."""
    pieces = _BEFORE_PIECE.split(name)  # once: a name may be as long as a file
    while len(pieces) > 1 and (
        pieces[-1][1:].isdecimal() if pieces[-1].startswith(":") else _TAIL.fullmatch(pieces[-1], 1)
    ):
        pieces.pop()
    name = "".join(pieces)
    for prefix in ("StatefulPartitionedCall/", "PartitionedCall/"):
        name = name.removeprefix(prefix)
    return name.strip("/")


def scope_of(name: str) -> str:
    """The module of a node: TensorFlow's "net/dense/MatMul" is in "net/dense", and PyTorch's
    "/block/block.0/conv/Conv" in "block.0.conv", as its variables are."""
    scope = plain_name(name).rpartition("/")[0]
    if not name.startswith("/"):
        return scope
    path: list[str] = []
    for part in scope.split("/"):
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)
