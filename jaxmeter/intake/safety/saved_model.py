"""What is in a SavedModel folder, read from its protocol buffers before TensorFlow loads it."""

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tensorflow.core.framework import node_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from jaxmeter.intake.keras import internals
from jaxmeter.intake.safety.files import line


def read(path: Path) -> tuple[meta_graph_pb2.MetaGraphDef, list[Any]]:
    """The folder's graph, and the Keras configs that it holds; [] if it has none.

    Raises:
      ValueError: if the folder is damaged, or it has several graphs and none is the served one.
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
        if len(proto.meta_graphs) == 1:
            return proto.meta_graphs[0], list(_configs(path, proto.meta_graphs[0]))
    except Exception as error:
        raise ValueError(
            f"{path} is damaged: saved_model.pb cannot be read, {line(error)}. Copy the whole "
            "folder again."
        ) from error
    tags = [sorted(meta.meta_info_def.tags) for meta in proto.meta_graphs]
    if tags.count(["serve"]) != 1:
        listing = "; ".join(", ".join(one) or "none" for one in tags)
        raise ValueError(
            f"{path} holds {len(tags)} graphs, with the tags {listing}, and not one with the tag "
            "serve alone: it is not known which to audit. Save one of them by itself."
        )
    return proto.meta_graphs[tags.index(["serve"])], []  # Keras writes one graph


def write(meta: meta_graph_pb2.MetaGraphDef, file: int) -> None:
    """Writes a graph as the `saved_model.pb` of a folder, whose descriptor this is."""
    proto = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[meta])
    with os.fdopen(os.dup(file), "wb") as stream:
        stream.write(proto.SerializeToString())


def by_tf_keras(path: Path, custom_objects: dict[str, Any]) -> Any:
    """The folder's Keras model."""
    models = importlib.import_module("tf_keras").models
    model = models.load_model(path, custom_objects=custom_objects, compile=False)
    if not isinstance(model, models.Model):
        raise ValueError("the folder does not hold a Keras model")
    if internals.is_revived(model):
        # Its class is not at hand; what stands in for it can be called, but has no layers to see.
        raise ValueError(f"its class is not known, pass custom_objects={{{model.name!r}: ...}}")
    return model


def by_tensorflow(path: Path, meta: meta_graph_pb2.MetaGraphDef) -> Any:
    """The object in a folder with this graph.

    What its checkpoint holds for others stays there, and nothing is read where nothing is needed.
    """
    tf = importlib.import_module("tensorflow")
    nodes = meta.object_graph_def.nodes
    holds = any(node.WhichOneof("kind") == "variable" or node.saveable_objects for node in nodes)
    options = tf.saved_model.LoadOptions(
        allow_partial_checkpoint=True,
        experimental_skip_checkpoint=meta.HasField("object_graph_def") and not holds,
    )
    return tf.saved_model.load(str(path), options=options)


def operation(node: Any) -> str:
    """The operation of a node definition, as Keras wrote it into a layer's config."""
    if isinstance(node, dict):
        return str(json_format.ParseDict(node, node_def_pb2.NodeDef()).op)
    return str(node_def_pb2.NodeDef.FromString(str(node).encode()).op)


# --- configs ------------------------------------------------------------------------------------


def _configs(path: Path, meta: meta_graph_pb2.MetaGraphDef) -> Iterator[Any]:
    """The layers' configs: beside the graph since TF 2.5, in its objects' metadata before."""
    texts: list[str] = []
    beside = path / "keras_metadata.pb"
    if beside.is_file():
        metadata = internals.saved_metadata()
        metadata.ParseFromString(beside.read_bytes())
        texts += [node.metadata for node in metadata.nodes]
    for node in meta.object_graph_def.nodes:
        if node.user_object.identifier.startswith("_tf_keras_"):
            texts.append(node.user_object.metadata)
    yield from (json.loads(text) for text in texts if text)
