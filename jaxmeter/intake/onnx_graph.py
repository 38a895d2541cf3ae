"""ONNX graphs as pure JAX functions: parsed once, then walked, one small function an operator.

What is known before the data are (initialisers that are no weights, shapes and all that is computed
from them) stays NumPy and is computed while tracing; what depends on the data or the weights is
JAX. So a `Reshape` to a computed shape, or a `Loop` with a computed trip count, is static when JAX
traces it. The walk knows nothing of where a graph came from.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, numpy_helper

from jaxmeter.intake.onnx_ops import OPERATORS
from jaxmeter.intake.onnx_ops.values import LARGEST, affordable
from jaxmeter.shapes import TooExpensive

_MOST_EVALUATIONS = 100_000  # of operators in one pass: what loops multiply has to end


@dataclass
class _Budget:
    """What is left of a pass, and the elements that an array in it may have."""

    evaluations: int
    largest: int | None


_budget: ContextVar[_Budget] = ContextVar("_budget")


class Node(NamedTuple):
    """One operation of a graph; an input "" is an optional one left out."""

    op: str  # "Conv"; with its domain, "ai.onnx.ml.Scaler", outside the standard ones
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    name: str
    opset: int

    @property
    def label(self) -> str:
        """Its kind and name, for messages."""
        return f"{self.op} {self.name!r}" if self.name else self.op


@dataclass(frozen=True, eq=False)
class Graph:
    """A parsed graph; `needed` prunes it to what some values need."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]  # initialisers and what `Constant` nodes hold
    initialisers: frozenset[str] = frozenset()
    _pruned: dict[tuple[str, ...], tuple[Node, ...]] = field(default_factory=dict, repr=False)

    def needed(self, wanted: Sequence[str]) -> tuple[Node, ...]:
        """The nodes that `wanted` depends on, in order."""
        wanted = tuple(wanted)
        if wanted not in self._pruned:
            names, kept = set(wanted), []
            for node in reversed(self.nodes):
                if names.intersection(node.outputs):
                    kept.append(node)
                    names.update(reads(node))
            self._pruned[wanted] = tuple(reversed(kept))
        return self._pruned[wanted]

    def reads(self, wanted: Sequence[str]) -> set[str]:
        """The names that `wanted` depends on, its own among them."""
        names = set(wanted)
        for node in self.needed(wanted):
            names.update(reads(node))
        return names

    def fed(self, names: Iterable[str]) -> "Graph":
        """The same with some of its values as further inputs, computed no more."""
        names = set(names)
        nodes = tuple(node for node in self.nodes if names.isdisjoint(node.outputs))
        return Graph((*self.inputs, *sorted(names)), self.outputs, nodes, self.constants)

    def producer(self, value: str) -> Node | None:
        """The node that computes a value."""
        return next((node for node in self.nodes if value in node.outputs), None)

    @property
    def operators(self) -> set[str]:
        """Every operator in the graph and in the graphs inside it."""
        found = {node.op for node in self.nodes}
        for node in self.nodes:
            for value in node.attributes.values():
                if isinstance(value, Graph):
                    found |= value.operators
        return found


class Body:
    """A graph inside a node (the body of a `Loop`), callable with the values around it in reach."""

    def __init__(self, graph: Graph, outer: Mapping[str, Any]):
        """`outer` holds the values of the graphs around it."""
        self.graph, self.outer = graph, outer

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Its outputs, in order."""
        return self.values(dict(zip(self.graph.inputs, inputs, strict=True)), self.graph.outputs)

    def values(self, feeds: Mapping[str, Any], wanted: Sequence[str]) -> tuple[Any, ...]:
        """Some of its values, computing no more than they need."""
        return tuple(_walk(self.graph, {**self.outer, **feeds}, wanted))


class UnsupportedOperator(ValueError):
    """A graph has an operator, or a form of one, that cannot be evaluated."""


def parse(model: onnx.ModelProto) -> Graph:
    """A model's graph, its own functions inlined.

    Raises:
      UnsupportedOperator: if it has operators that `onnx_ops` does not; all are named.
      ValueError: if it reads values that nothing computes.
    """
    if model.functions:
        _check_functions(model)
        model = onnx.inliner.inline_local_functions(model)
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    graph = _parsed(model.graph, opsets)
    if missing := sorted(graph.operators - OPERATORS.keys()):
        raise UnsupportedOperator(
            f"the graph has operators that jaxmeter does not know: {', '.join(missing)}."
        )
    _check_order(graph)
    return graph


def run(
    graph: Graph, feeds: Mapping[str, Any], wanted: Sequence[str], *, few: bool = False
) -> list[Any]:
    """Values of a graph. Feeds that are NumPy arrays count as known before the data.

    With `few` records, arrays that no model computes of so few are refused before they are made.
    """
    before = _budget.set(_Budget(_MOST_EVALUATIONS, LARGEST if few else None))
    try:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return _walk(graph, dict(feeds), wanted)
    finally:
        _budget.reset(before)


def _walk(graph: Graph, env: dict[str, Any], wanted: Sequence[str]) -> list[Any]:
    env = {**env, **{k: v for k, v in graph.constants.items() if k not in env}}
    for node in graph.needed(wanted):
        outputs = _evaluate(node, env)
        env.update((k, v) for k, v in zip(node.outputs, outputs, strict=False) if k)
    return [env[name] for name in wanted]


def _evaluate(node: Node, env: Mapping[str, Any]) -> Sequence[Any]:
    budget = _budget.get()
    budget.evaluations -= 1
    if budget.evaluations < 0:
        raise TooExpensive(
            f"the graph takes more than {_MOST_EVALUATIONS:,} operations to trace: its loops go "
            "round too often before the data are known."
        )
    function = OPERATORS[node.op]
    inputs = [env[name] if name else None for name in node.inputs]
    attributes = {
        name: Body(value, env) if isinstance(value, Graph) else value
        for name, value in node.attributes.items()
    }
    asked = _parameters(function)
    if "opset" in asked:
        attributes["opset"] = node.opset
    if "n_outputs" in asked:
        attributes["n_outputs"] = len(node.outputs)
    static = all(v is None or isinstance(v, np.ndarray) for v in inputs)
    try:
        if static and not any(isinstance(v, Body) for v in attributes.values()):
            _check_growth(function, inputs, attributes)
            with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
                out = jax.tree.map(np.asarray, function(*inputs, **attributes))
        else:
            out = function(*inputs, **attributes)
        if static or budget.largest is not None:
            for value in jax.tree.leaves(out):
                affordable(np.shape(value))
    except (UnsupportedOperator, TooExpensive):
        raise
    except Exception as error:
        shapes = ", ".join(str(getattr(v, "shape", None)) for v in inputs)
        raise UnsupportedOperator(
            f"{node.label} (opset {node.opset}) cannot be computed on inputs of shapes {shapes}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        ) from error
    return out if isinstance(out, tuple) else (out,)


def _check_growth(function: Any, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> None:
    """Refuses to compute constants that are larger than any model's by broadcasting others."""
    if sum(np.size(v) for v in inputs if v is not None) < LARGEST**0.5:
        return
    try:
        shapes = jax.eval_shape(lambda *values: function(*values, **attributes), *inputs)
    except Exception:  # it needs to know its inputs
        return
    for shape in jax.tree.leaves(shapes):
        affordable(shape.shape)


def _check_functions(model: onnx.ModelProto) -> None:
    """Refuses functions that call themselves, or become too many nodes when they are inlined."""
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], float] = {}

    def size(nodes: Iterable[onnx.NodeProto], inside: frozenset[Any]) -> float:
        total = 0.0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += 1
            if key in functions:
                if key in inside:
                    raise ValueError(f"the function {node.op_type!r} calls itself.")
                if key not in sizes:
                    sizes[key] = size(functions[key].node, inside | {key})
                total += sizes[key]
            for attribute in node.attribute:
                total += size(attribute.g.node, inside)
        return total

    if (total := size(model.graph.node, frozenset())) > _MOST_EVALUATIONS:
        raise ValueError(f"its functions written out are {total:.0e} operations: too many.")


def _check_order(graph: Graph) -> None:
    known = {*graph.inputs, *graph.constants}
    for node in graph.nodes:
        if missing := sorted(set(reads(node)) - known):
            raise ValueError(
                f"the graph is damaged: {node.label} reads {missing[0]!r}, which nothing before it "
                "computes."
            )
        made = [name for name in node.outputs if name]
        if twice := sorted(known.intersection(made)) or len(set(made)) < len(made):
            raise ValueError(f"the graph is damaged: {node.label} computes {made} again ({twice}).")
        known.update(made)
        for value in node.attributes.values():
            if isinstance(value, Graph):
                _check_once(value)
    if missing := sorted(set(graph.outputs) - known):
        raise ValueError(f"the graph is damaged: nothing computes its output {missing[0]!r}.")


def _check_once(graph: Graph) -> None:
    """Refuses graphs inside nodes that compute a value twice; walks along values would not end."""
    made = [*graph.inputs, *graph.constants, *(v for n in graph.nodes for v in n.outputs if v)]
    if len(set(made)) < len(made):
        raise ValueError("the graph is damaged: a graph inside it computes a value twice.")
    for node in graph.nodes:
        for value in node.attributes.values():
            if isinstance(value, Graph):
                _check_once(value)


@cache
def _parameters(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def reads(node: Node) -> Iterable[str]:
    """The names a node reads; a graph inside it also reads names of the graphs around it."""
    yield from (name for name in node.inputs if name)
    for value in node.attributes.values():
        if isinstance(value, Graph):
            inside = {*value.inputs, *value.constants}
            for inner in value.nodes:
                yield from (name for name in reads(inner) if name not in inside)
                inside.update(inner.outputs)
            yield from (name for name in value.outputs if name not in inside)


# --- from the protocol buffer -------------------------------------------------------------------


_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _parsed(proto: onnx.GraphProto, opsets: Mapping[str, int]) -> Graph:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
    for sparse in proto.sparse_initializer:
        constants[sparse.values.name] = _dense(sparse)
    nodes: list[Node] = []
    made: set[str] = set()
    for entry in proto.node:
        domain = _domain(entry.domain)
        node = Node(
            op=f"{domain}.{entry.op_type}" if domain else entry.op_type,
            inputs=tuple(entry.input),
            outputs=tuple(entry.output),
            # `consumed_inputs` is a hint of opset 1 about memory.
            attributes={
                a.name: _attribute(a, opsets)
                for a in entry.attribute
                if a.name != "consumed_inputs"
            },
            name=entry.name,
            opset=opsets.get(domain, 1),
        )
        if node.op == "Constant":
            if len(node.attributes) != 1 or not node.outputs:
                raise ValueError(f"the graph is damaged: {node.label} holds not one value.")
            ((kind, value),) = node.attributes.items()
            constants[node.outputs[0]] = np.asarray(value, _CONSTANTS.get(kind))
            made.add(node.outputs[0])
        else:
            nodes.append(node)
    fed = [value.name for value in proto.input]
    return Graph(
        inputs=tuple(name for name in fed if name not in constants),
        outputs=tuple(value.name for value in proto.output),
        nodes=tuple(nodes),
        constants=constants,
        initialisers=frozenset(constants) - made,
    )


def _attribute(attribute: AttributeProto, opsets: Mapping[str, int]) -> Any:
    kinds = AttributeProto
    if attribute.type == kinds.GRAPH:
        return _parsed(attribute.g, opsets)
    if attribute.type == kinds.TENSOR:
        return numpy_helper.to_array(attribute.t)
    if attribute.type == kinds.SPARSE_TENSOR:
        return _dense(attribute.sparse_tensor)
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == kinds.STRING:
        return value.decode("utf-8", "replace")
    if attribute.type == kinds.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    return list(value) if attribute.type in (kinds.FLOATS, kinds.INTS) else value


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    dense = np.zeros(affordable(tuple(sparse.dims)), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
