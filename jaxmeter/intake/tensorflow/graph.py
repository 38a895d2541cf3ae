"""TensorFlow functions as ONNX graphs whose inputs are the data *and the variables*.

tf2onnx alone would fold the variables into constants, and nothing could be differentiated by them.
So each variable that a function captured becomes an input of the graph, under a name that says
which variable it is; other captured values become constants.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf2onnx
from tensorflow.core.framework import graph_pb2, node_def_pb2

from jaxmeter.intake.keras import internals

_OPSET = 18  # the newest that tf2onnx writes
# What marks a function for XLA or against inlining; tf2onnx sees only what is inlined. (Keras
# compiles grouped convolutions with XLA.)
_MARKS = ("_XlaMustCompile", "_XlaScope", "_XlaCompile", "_noinline")


class Held(NamedTuple):
    """A variable that TensorFlow 1 kept inside its graph, as what is needed of a `tf.Variable`."""

    name: str
    value: np.ndarray
    trainable: bool

    @property
    def dtype(self) -> tf.DType:
        """As of a `tf.Variable`."""
        return tf.as_dtype(self.value.dtype)

    def numpy(self) -> np.ndarray:
        """Its value."""
        return self.value


class Exported(NamedTuple):
    """A function as a graph; all names are names of values in it."""

    model: bytes  # an ONNX model
    inputs: list[str]  # the function's own arguments
    variables: dict[str, tf.Variable | Held]  # graph input -> the variable it stands for
    constants: dict[str, np.ndarray]  # graph input -> a value the function captured
    outputs: list[str]  # the function's results, flattened, in order


def exported(function: Any) -> Exported:
    """A concrete function as a graph in which nothing of its variables is folded.

    Raises:
      ValueError: if it has operations that tf2onnx cannot write.
    """
    captured = {inner.name: outer for outer, inner in function.graph.captures}
    owners = {id(variable.handle): variable for variable in function.graph.variables}
    frozen = internals.frozen(function)
    graph_def = _inlinable(frozen.graph.as_graph_def())
    inputs = [value.name for value in frozen.inputs]
    # Freezing leaves each variable behind as a constant with the name of the captured handle.
    frozen_constants = {f"{n.name}:0": n for n in graph_def.node if n.op == "Const"}
    variables: dict[str, tf.Variable | Held] = {}
    constants: dict[str, np.ndarray] = {}
    for name, outer in captured.items():
        variable = owners.get(id(outer))
        node = frozen_constants.get(name)
        if variable is not None and node is not None:
            _make_placeholder(node, variable.shape)
            variables[name] = variable
        elif variable is None and name in inputs and hasattr(outer, "numpy"):
            constants[name] = outer.numpy()
    for name, held in _held(function.graph, frozen_constants).items():
        _make_placeholder(frozen_constants[name], tf.TensorShape(held.value.shape))
        variables[name] = held
    outputs = [value.name for value in frozen.outputs]
    model = _converted(graph_def, [*dict.fromkeys([*inputs, *variables])], outputs)
    inputs = [name for name in inputs if name not in constants]
    return Exported(model, inputs, variables, constants, outputs)


def _held(graph: Any, frozen: dict[str, node_def_pb2.NodeDef]) -> dict[str, Held]:
    """What freezing made constants of variables inside the graph: by the name of their value."""
    learned = {v.name for v in graph.get_collection("trainable_variables")}
    found: dict[str, Held] = {}
    for operation in graph.get_operations():
        name = f"{operation.name}:0"
        if operation.type in ("VariableV2", "Variable", "VarHandleOp") and name in frozen:
            value = tf.make_ndarray(frozen[name].attr["value"].tensor)
            moment = re.search(r"moving_(mean|variance)|global_step", name)
            found[name] = Held(name, value, name in learned if learned else moment is None)
    return found


def _inlinable(graph_def: graph_pb2.GraphDef) -> graph_pb2.GraphDef:
    for node in _nodes(graph_def):
        for mark in _MARKS:
            node.attr.pop(mark, None)
    for function in graph_def.library.function:
        for mark in _MARKS:
            function.attr.pop(mark, None)
    return graph_def


def _nodes(graph_def: graph_pb2.GraphDef) -> Iterator[node_def_pb2.NodeDef]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _make_placeholder(node: node_def_pb2.NodeDef, shape: tf.TensorShape) -> None:
    dtype = node.attr["dtype"].type
    node.op = "Placeholder"
    node.ClearField("attr")
    node.attr["dtype"].type = dtype
    node.attr["shape"].shape.CopyFrom(shape.as_proto())


def _converted(
    graph_def: graph_pb2.GraphDef, inputs: Iterable[str], outputs: Iterable[str]
) -> bytes:
    try:
        # What its log says of unknown operators, which callers silence, is said by whoever parses.
        model, _ = tf2onnx.convert.from_graph_def(
            graph_def, input_names=list(inputs), output_names=list(outputs), opset=_OPSET
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"tf2onnx {tf2onnx.__version__} cannot convert the model's graph: {reason[:300]}."
        ) from error
    return bytes(model.SerializeToString())
