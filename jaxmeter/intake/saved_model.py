"""What is in a SavedModel folder, read from its protocol buffers before TensorFlow loads it."""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError
from tensorflow.core.framework import node_def_pb2, variable_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.framework import op_def_registry

from jaxmeter.intake.files import line


def examined(path: Path, check: Callable[[Iterable[str]], None]) -> list[Any]:
    """Checks the folder's graphs, and gives the Keras configs that it holds; [] if it has none.

    Args:
      path: the folder.
      check: is given the operations that loading or calling the model can run.

    Raises:
      ValueError: if the folder is damaged; and what `check` raises.
    """
    proto = saved_model_pb2.SavedModel()
    try:
        binary = path / "saved_model.pb"
        if binary.is_file():
            proto.ParseFromString(binary.read_bytes())
        else:
            text_format.Parse((path / "saved_model.pbtxt").read_text(), proto)
        if not proto.meta_graphs:
            raise ValueError("it holds no graph")
        configs = list(_configs(path, proto))
    except Exception as error:
        raise ValueError(
            f"{path} is damaged: saved_model.pb cannot be read, {line(error)}. Copy the whole "
            "folder again."
        ) from error
    check(_operations(proto))
    return configs


def by_tf_keras(path: Path, custom_objects: dict[str, Any]) -> Any:
    """The folder's Keras model."""
    models = importlib.import_module("tf_keras").models
    model = models.load_model(path, custom_objects=custom_objects, compile=False)
    if not isinstance(model, models.Model):
        raise ValueError("the folder does not hold a Keras model")
    if any(kind.__name__ == "RevivedNetwork" for kind in type(model).__mro__):
        # Its class is not at hand; what stands in for it can be called, but has no layers to see.
        raise ValueError(f"its class is not known, pass custom_objects={{{model.name!r}: ...}}")
    return model


def has_state(name: str) -> bool:
    """Whether an operation of TensorFlow's does more than compute its outputs from its inputs."""
    known = op_def_registry.get(name)
    return known is not None and known.is_stateful


def operation(node: Any) -> str:
    """The operation of a node definition, as Keras wrote it into a layer's config."""
    if isinstance(node, dict):
        return str(json_format.ParseDict(node, node_def_pb2.NodeDef()).op)
    return str(node_def_pb2.NodeDef.FromString(str(node).encode()).op)


# --- what can run -------------------------------------------------------------------------------


def _operations(proto: saved_model_pb2.SavedModel) -> Iterator[str]:
    """The operations that loading or calling a model can run.

    TensorFlow writes functions beside the model's that save and restore it. They have operations
    that write files, under names that anyone can give; what tells them from others is that nothing
    leads to them but the graph, and of the graph only its functions are loaded.
    """
    for meta in proto.meta_graphs:
        functions = {f.signature.name: f for f in meta.graph_def.library.function}
        gradients = {g.function_name: g.gradient_func for g in meta.graph_def.library.gradient}
        waiting = [*meta.object_graph_def.concrete_functions, *gradients.values()]
        waiting += [g.gradient_func for g in meta.graph_def.library.registered_gradients]
        if len(proto.meta_graphs) > 1 or not meta.HasField("object_graph_def"):
            nodes = list(_of_graph(meta))
            yield from (node.op for node in nodes)
            for node in nodes:
                waiting += _calls(node)
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in functions:
                continue
            seen.add(name)
            for node in functions[name].node_def:
                yield node.op
                waiting += _calls(node)


def _calls(node: node_def_pb2.NodeDef) -> Iterator[str]:
    """The functions that a node may call, its own operation among them."""
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (inner.name for inner in value.list.func)
        for inner in (value.func, *value.list.func):  # functions with functions as attributes
            yield from (nested.func.name for nested in inner.attr.values())


def _of_graph(meta: meta_graph_pb2.MetaGraphDef) -> Iterator[node_def_pb2.NodeDef]:
    """The nodes that TensorFlow can run of a graph of TensorFlow 1.

    Not the saver's own: those that only saving leads to, and those that restore from the file name
    that is fed when the model is loaded.
    """
    nodes = {node.name: node for node in meta.graph_def.node}
    starts = [info.name for s in meta.signature_def.values() for info in s.outputs.values()]
    starts += [info.name for s in meta.signature_def.values() for info in s.inputs.values()]
    for collection in meta.collection_def.values():
        starts += collection.node_list.value
        for packed in collection.bytes_list.value:
            try:
                variable = variable_pb2.VariableDef.FromString(packed)
            except DecodeError:
                continue
            starts += [variable.initializer_name, variable.variable_name]
            starts += [variable.initial_value_name, variable.snapshot_name]
    run = set(_ancestors(nodes, starts))
    restored = set(_ancestors(nodes, [meta.saver_def.restore_op_name])) - run
    fed = _node_name(meta.saver_def.filename_tensor_name)
    yield from (nodes[name] for name in run)
    for name in restored:
        node = nodes[name]
        if node.op != "RestoreV2" or _node_name(node.input[0]) != fed:
            yield node


def _ancestors(nodes: dict[str, node_def_pb2.NodeDef], names: Iterable[str]) -> Iterator[str]:
    waiting, seen = list(names), set()
    while waiting:
        name = _node_name(waiting.pop())
        if name in nodes and name not in seen:
            seen.add(name)
            yield name
            waiting += nodes[name].input


def _node_name(value: str) -> str:
    return value.lstrip("^").partition(":")[0]


# --- configs ------------------------------------------------------------------------------------


def _configs(path: Path, proto: saved_model_pb2.SavedModel) -> Iterator[Any]:
    """The layers' configs: beside the graph since TF 2.5, in its objects' metadata before."""
    texts: list[str] = []
    beside = path / "keras_metadata.pb"
    if beside.is_file():
        metadata = importlib.import_module("tf_keras.protobuf.saved_metadata_pb2").SavedMetadata()
        metadata.ParseFromString(beside.read_bytes())
        texts += [node.metadata for node in metadata.nodes]
    for meta in proto.meta_graphs:
        for node in meta.object_graph_def.nodes:
            if node.user_object.identifier.startswith("_tf_keras_"):
                texts.append(node.user_object.metadata)
    yield from (json.loads(text) for text in texts if text)
