"""A model of TensorFlow's that was exported to plain values, as a target."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import onnx

from jaxmeter.intake.heads import Choice
from jaxmeter.intake.onnx.graph import parse
from jaxmeter.intake.onnx.ops.table import OPERATORS
from jaxmeter.intake.onnx.target import Binding, from_graph, layers_of
from jaxmeter.intake.tensorflow.export import Export
from jaxmeter.target import Source, Target, layer_of

# TensorFlow operators that tf2onnx does not know and `table` computes under their own names.
_PASSED_ON = {name.removeprefix("jaxmeter.") for name in OPERATORS if name.startswith("jaxmeter.")}


def of_export(
    export: Export,
    original: Callable[[np.ndarray], Mapping[str, Any]],
    *,
    origin: str,
    process: str,
    output: Choice | None,
) -> Target:
    """The target that an exported model is, compared with the original on a probe batch.

    Args:
      export: the model.
      original: the framework's outputs by name for a batch.
      origin: the file, or what kind of live object it was.
      process: which process opened it, see `Source`.
      output: what to audit, see `load_target`.

    Raises:
      ValueError: if it has operators that are not known, or is no classifier that can be audited.
    """
    graph = parse(_named(onnx.ModelProto.FromString(export.model)))
    owners = {value: layer_of(name) for name, value in export.feeds.items()}
    layers = export.layers
    if layers is None:
        layers = _joined(layers_of(graph, export.x, owners), set(owners.values()))
    return from_graph(
        graph,
        Binding(
            x=export.x,
            params={name: export.feeds[name] for name in export.params if name in export.feeds},
            state={name: export.feeds[name] for name in export.state if name in export.feeds},
            outputs=export.outputs,
            layers=layers,
        ),
        export.params,
        export.state,
        constants=export.constants,
        shape=export.shape,
        dtype=str(jax.dtypes.canonicalize_dtype(export.dtype)),
        original=original,
        output=output,
        source=Source(
            route=export.route,
            origin=origin,
            versions=(*export.versions, ("jax", jax.__version__)),
            process=process,
        ),
    )


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with TensorFlow's own operators in the domain that `table` has them in."""
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.op_type in _PASSED_ON and not node.domain:
                node.domain = "jaxmeter"
                kept = [a for a in node.attribute if not re.match(r"_|T$|.*type$", a.name)]
                del node.attribute[:]
                node.attribute.extend(kept)
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _joined(layers: Mapping[str, str], owners: set[str]) -> dict[str, str]:
    """Layers by the names of their variables' owners, also where tracing numbered the scopes.

    Keras 3 exports the variables "net/conv/kernel" beside the scope "net_1/conv_1".
    """
    joined: dict[str, str] = {}
    for name, value in layers.items():
        last = re.sub(r"_\d+$", "", name.rpartition("/")[2])
        owner = last if "/" in name and last in owners else name
        joined.pop(owner, None)  # the last output counts, and stands where it was computed
        joined[owner] = value
    return joined
