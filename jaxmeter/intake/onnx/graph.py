"""ONNX graphs as pure JAX functions: parsed once, then walked, one small function an operator.

What is known before the data are (initialisers that are no weights, shapes and all that is computed
from them) stays NumPy and is computed while tracing; what depends on the data or the weights is
JAX. So a `Reshape` to a computed shape, or a `Loop` with a computed trip count, is static when JAX
traces it. The walk knows nothing of where a graph came from.
"""

import inspect
import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, numpy_helper

from jaxmeter.intake.onnx.ops.table import OPERATORS
from jaxmeter.intake.onnx.ops.values import affordable
from jaxmeter.intake.safety import budget, programs
from jaxmeter.jaxpr.shapes import TooExpensive

_MOST_INLINED = 100_000  # operations that a model's own functions may be when written out
_SMALL = 1024  # elements: shapes, axes, bounds, whatever else has to be known to trace an operator
_EVALUATED = budget.STEP / 10  # of a small one with NumPy
_TRACED = budget.STEP / 2  # of one that depends on the data, once in a pass
_INLINED = 20 * budget.STEP  # of one that a function writes out once more
_PASSES = 3  # of tracing, in loading a model
_PLANNED = 5e4  # each node, in finding out what is needed for a value
# What makes no more of small arrays than they could be broadcast to: no use in tracing it first.
_PLAIN = {
    *("Abs", "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Flatten", "Floor", "Gather"),
    *("Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul"),
    *("Neg", "Not", "Or", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Shape"),
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceLength"),
    *("Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where", "Xor"),
}


class Node(NamedTuple):
    """One operation of a graph; an input "" is an optional one left out."""

    op: str  # "Conv"; with its domain, "ai.onnx.ml.Scaler", outside the standard ones
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    name: str
    opset: int
    captured: tuple[str, ...] = ()  # names that graphs inside it read of the graphs around it

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
    _plans: dict[tuple[str, ...], tuple[tuple[Node, tuple[str, ...]], ...]] = field(
        default_factory=dict, repr=False
    )

    def plan(self, wanted: Sequence[str]) -> tuple[tuple[Node, tuple[str, ...]], ...]:
        """The nodes that `wanted` depends on, in order, each with the names read no more then."""
        wanted = tuple(wanted)
        if wanted not in self._plans:
            budget.work(len(self.nodes) * _PLANNED, "finding out what its values need")
            names, kept = set(wanted), []
            for node in reversed(self.nodes):
                if names.intersection(node.outputs):
                    used = {*reads(node), *(name for name in node.outputs if name)}
                    kept.append((node, tuple(used - names)))
                    names |= used
            self._plans[wanted] = tuple(reversed(kept))
        return self._plans[wanted]

    def needed(self, wanted: Sequence[str]) -> tuple[Node, ...]:
        """The nodes that `wanted` depends on, in order."""
        return tuple(node for node, _ in self.plan(wanted))

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

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that computes each value."""
        return {value: node for node in self.nodes for value in node.outputs if value}

    @cached_property
    def origins(self) -> dict[str, str]:
        """What values are that `Identity` hands on: the value behind each."""
        found: dict[str, str] = {}
        for node in self.nodes:
            if node.op == "Identity":
                found[node.outputs[0]] = found.get(node.inputs[0], node.inputs[0])
        return found

    @cached_property
    def size(self) -> int:
        """How many nodes there are in the graph and in the graphs inside it."""
        inner = (v for node in self.nodes for v in node.attributes.values())
        return len(self.nodes) + sum(v.size for v in inner if isinstance(v, Graph))

    @property
    def operators(self) -> set[str]:
        """Every operator in the graph and in the graphs inside it."""
        found = {node.op for node in self.nodes}
        for node in self.nodes:
            for value in node.attributes.values():
                if isinstance(value, Graph):
                    found |= value.operators
        return found


class SubgraphBody:
    """A graph inside a node (the body of a `Loop`), callable with the values around it in reach."""

    def __init__(self, graph: Graph, outer: "ChainMap[str, Any]"):
        """`outer` holds the values of the graphs around it."""
        self.graph, self.outer = graph, outer

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Its outputs, in order."""
        return self.values(dict(zip(self.graph.inputs, inputs, strict=True)), self.graph.outputs)

    def values(self, feeds: Mapping[str, Any], wanted: Sequence[str]) -> tuple[Any, ...]:
        """Some of its values, computing no more than they need."""
        return tuple(_walk(self.graph, self.outer.new_child(dict(feeds)), wanted))


class _NamedNode(TooExpensive):
    """It says which operator is too expensive: the innermost."""


class UnsupportedOperator(ValueError):
    """A graph has an operator, or a form of one, that cannot be evaluated."""


def parse(model: onnx.ModelProto) -> Graph:
    """A model's graph, its own functions inlined.

    Raises:
      UnsupportedOperator: if it has operators that `table` does not; all are named.
      ValueError: if it reads values that nothing computes.
    """
    model = inlined(model)
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    graph = _parsed(model.graph, opsets)
    if missing := sorted(graph.operators - OPERATORS.keys()):
        raise UnsupportedOperator(
            f"the graph has operators that jaxmeter does not know: {', '.join(missing)}."
        )
    _check_order(graph)
    inside = sum(v.size for n in graph.nodes for v in n.attributes.values() if isinstance(v, Graph))
    budget.foresee(
        _PASSES * (len(graph.nodes) * _TRACED + inside * budget.TRACED_AGAIN),
        f"tracing its {len(graph.nodes):,} operations and the {inside:,} in branches and loops",
    )
    return graph


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions written out.

    Raises:
      ValueError: if they call themselves, or would become too much.
    """
    if not model.functions:
        return model
    _check_functions(model)
    return onnx.inliner.inline_local_functions(model)


def pruned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the nodes alone that its outputs depend on, also in the graphs inside nodes."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    _prune(found.graph)
    return found


def _prune(graph: onnx.GraphProto) -> set[str]:
    """Takes out what a graph does not need; returns the names that it reads."""
    read, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if read.intersection(filter(None, node.output)):
            kept.append(node)
            read.update(node.input)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    if inner.output:
                        read |= _prune(inner)
    if len(kept) < len(graph.node):
        bare = onnx.GraphProto()
        bare.node.extend(reversed(kept))
        del graph.node[:]
        graph.node.extend(bare.node)
    return read


def run(graph: Graph, feeds: Mapping[str, Any], wanted: Sequence[str]) -> list[Any]:
    """Values of a graph. Feeds that are NumPy arrays count as known before the data.

    Raises:
      TooExpensive: if what is known before the data takes more than the file that is being opened
        may.
    """
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return _walk(graph, ChainMap(dict(feeds)), wanted)


def _walk(graph: Graph, env: "ChainMap[str, Any]", wanted: Sequence[str]) -> list[Any]:
    """Values of a graph, given those in reach; what is read no more is given up."""
    own = env.maps[0]
    own.update((k, v) for k, v in graph.constants.items() if k not in env)
    for node, dying in graph.plan(wanted):
        outputs = _evaluate(node, env)
        own.update((k, v) for k, v in zip(node.outputs, outputs, strict=False) if k)
        del outputs
        for name in dying:
            own.pop(name, None)
    return [env[name] for name in wanted]


def _evaluate(node: Node, env: "ChainMap[str, Any]") -> Sequence[Any]:
    function = OPERATORS[node.op]
    inputs = [env[name] if name else None for name in node.inputs]
    attributes = {
        name: SubgraphBody(value, env) if isinstance(value, Graph) else value
        for name, value in node.attributes.items()
    }
    asked = _parameters(function)
    if "opset" in asked:
        attributes["opset"] = node.opset
    if "n_outputs" in asked:
        attributes["n_outputs"] = len(node.outputs)
    static = all(v is None or isinstance(v, np.ndarray) for v in inputs)
    try:
        again = len(env.maps) > 1
        if static and not any(isinstance(v, SubgraphBody) for v in attributes.values()):
            budget.work(budget.EVALUATED_AGAIN if again else _EVALUATED, node.label)
            _charge(node, function, inputs, attributes)
            with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
                out = jax.tree.map(np.asarray, function(*inputs, **attributes))
        else:
            budget.work(budget.TRACED_AGAIN if again else _TRACED, node.label)
            out = function(*inputs, **attributes)
            for value in jax.tree.leaves(out):
                if isinstance(value, jax.Array):
                    affordable(value.shape, value.dtype)
    except (UnsupportedOperator, _NamedNode):
        raise
    except TooExpensive as error:
        raise _NamedNode(f"{node.label}: {error}") from error
    except Exception as error:
        shapes = ", ".join(str(getattr(v, "shape", None)) for v in inputs)
        raise UnsupportedOperator(
            f"{node.label} (opset {node.opset}) cannot be computed on inputs of shapes {shapes}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        ) from error
    return budget.hold(out if isinstance(out, tuple) else (out,))


def _charge(
    node: Node, function: Callable[..., Any], inputs: Sequence[Any], attributes: dict[str, Any]
) -> None:
    """Charges what computing a constant takes, before it is computed.

    It is traced for that: its larger inputs, and where that will do the smaller ones too, stand
    for any of their shape. Operators that make arrays as large as their inputs say (of known ones
    there is nothing to trace) ask for room themselves, by `affordable`.
    """
    given = [v for v in inputs if v is not None]
    if any(v.dtype.kind in "OSUT" for v in given):
        raise UnsupportedOperator(f"{node.label} takes text, and JAX has no strings.")
    if budget.current() is None:
        return
    size = sum(v.size for v in given)
    if node.op in _PLAIN and size <= _SMALL and len(given) <= 3 or node.op in ("Shape", "Size"):
        return
    small = {i for i, v in enumerate(inputs) if v is None or v.size <= _SMALL}
    for known in ((), small):
        try:
            jaxpr = _traced(function, inputs, attributes, set(known))
        except TooExpensive:
            raise
        except Exception:  # it has to know more of its inputs
            continue
        # Numbers of 64 bits are of 32 in JAX, unless it is told otherwise.
        programs.charge(node.label, jaxpr, copies=2)
        return
    # Of larger inputs that have to be known, what is kept, sorted or counted of them is computed.
    budget.room(32 * size * max((v.ndim for v in given), default=1), node.label)
    budget.work(100 * size * math.log2(size + 2), node.label)


def _traced(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    attributes: dict[str, Any],
    known: set[int],
) -> Any:
    places = [i for i, v in enumerate(inputs) if v is not None and i not in known]

    def run(*values: Any) -> Any:
        merged = [*inputs]
        for i, value in zip(places, values, strict=True):
            merged[i] = value
        return function(*merged, **attributes)

    shapes = [jax.ShapeDtypeStruct(inputs[i].shape, inputs[i].dtype) for i in places]
    return jax.make_jaxpr(run)(*shapes).jaxpr


def _check_functions(model: onnx.ModelProto) -> None:
    """Refuses functions that call themselves, or become too much when they are inlined."""
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], tuple[float, float]] = {}

    def size(nodes: Iterable[onnx.NodeProto], inside: frozenset[Any]) -> tuple[float, float]:
        """Operations, and bytes."""
        count = total = 0.0
        for node in nodes:
            key = (node.domain, node.op_type)
            count, total = count + 1, total + node.ByteSize()
            if key in functions:
                if key in inside:
                    raise ValueError(f"the function {node.op_type!r} calls itself.")
                if key not in sizes:
                    sizes[key] = size(functions[key].node, inside | {key})
                count, total = count + sizes[key][0], total + sizes[key][1]
            for attribute in node.attribute:
                if attribute.g.node:
                    more = size(attribute.g.node, inside)
                    count, total = count + more[0], total + more[1]
        return count, total

    count, total = size(model.graph.node, frozenset())
    if count > _MOST_INLINED:
        raise ValueError(f"its functions written out are {count:.0e} operations: too many.")
    more = count - len(model.graph.node)
    budget.foresee(more * _INLINED, f"writing its functions out as {count:,.0f} operations")
    budget.room(int(total), "writing its functions out")


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
    yield from node.captured


def _captured(graphs: Iterable[Any]) -> tuple[str, ...]:
    """The names that graphs read and do not compute, in order."""
    found: dict[str, None] = {}
    for graph in graphs:
        inside = {*graph.inputs, *graph.constants}
        for node in graph.nodes:
            found.update((name, None) for name in reads(node) if name not in inside)
            inside.update(node.outputs)
        found.update((name, None) for name in graph.outputs if name not in inside)
    return tuple(found)


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
    constants = {tensor.name: _array(tensor) for tensor in proto.initializer}
    for sparse in proto.sparse_initializer:
        constants[sparse.values.name] = _dense(sparse)
    nodes: list[Node] = []
    made: set[str] = set()
    for entry in proto.node:
        domain = _domain(entry.domain)
        # `consumed_inputs` is a hint of opset 1 about memory.
        attributes = {
            a.name: _attribute(a, opsets) for a in entry.attribute if a.name != "consumed_inputs"
        }
        node = Node(
            op=f"{domain}.{entry.op_type}" if domain else entry.op_type,
            inputs=tuple(entry.input),
            outputs=tuple(entry.output),
            attributes=attributes,
            name=entry.name,
            opset=opsets.get(domain, 1),
            captured=_captured(v for v in attributes.values() if isinstance(v, Graph)),
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
        return _array(attribute.t)
    if attribute.type == kinds.SPARSE_TENSOR:
        return _dense(attribute.sparse_tensor)
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == kinds.STRING:
        return value.decode("utf-8", "replace")
    if attribute.type == kinds.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    return list(value) if attribute.type in (kinds.FLOATS, kinds.INTS) else value


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor's numbers, which may be packed: four bits each, or bytes that are sent as words."""
    stored, claimed = tensor.ByteSize(), budget.sizes(tensor.dims)
    if min(tensor.dims, default=0) < 0 or claimed > 8 * stored:  # no type packs more than bits
        raise ValueError(
            f"the array {tensor.name!r} is damaged: it claims to have the shape "
            f"{tuple(tensor.dims)}, and there are {stored:,} bytes."
        )
    budget.room(8 * claimed, f"the array {tensor.name!r}")
    return budget.hold(numpy_helper.to_array(tensor))


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    values, indices = _array(sparse.values), _array(sparse.indices)
    dense = np.zeros(affordable(tuple(sparse.dims), values.dtype), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return budget.hold(dense)
