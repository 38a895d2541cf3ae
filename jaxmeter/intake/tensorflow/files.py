"""Files that tf_keras and TensorFlow open: in this process, or in one without rights.

This module imports TensorFlow and nothing of JAX, so that it can run in either.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf2onnx.convert  # noqa: F401 (late it would be imported where nothing can be read)
import tf_keras

from jaxmeter.intake import frameworks
from jaxmeter.intake.keras import internals
from jaxmeter.intake.safety import saved_model, served
from jaxmeter.intake.safety.files import check_built, check_graph, is_checkpoint, line
from jaxmeter.intake.safety.keras_config import UnknownParts, check_config, op_layers, strings_in
from jaxmeter.intake.tensorflow.export import OutputFile, packed
from jaxmeter.intake.tensorflow.models import Traced, from_saved_model, from_tf_keras

_Call = Callable[[np.ndarray], dict[str, np.ndarray]]


class Loaded(NamedTuple):
    """What a framework made of a file.

    Attributes:
      model: a tf_keras model, or a SavedModel as TensorFlow loads it.
      folder: of a SavedModel without a Keras model, for messages; else None.
    """

    model: Any
    folder: str | None


def loaded(file: Mapping[str, Any], descriptors: Sequence[int]) -> Loaded:
    """Opens a file.

    Args:
      file: "kind", "path" and "checked"; for the rest see `keras_file`, and of SavedModels the
        places' "folders".
      descriptors: of the places' graphs.
    """
    if file["kind"] == "saved-model":
        places = [OutputFile(*place) for place in zip(file["folders"], descriptors, strict=True)]
        return saved_model_folder(Path(file["path"]), places, checked=file["checked"])
    return keras_file(file)


def traced(found: Loaded) -> tuple[dict[str, Any], dict[str, np.ndarray], _Call]:
    """The model as JSON and arrays, and its own outputs by name for a batch."""
    export, original = export_of(found)
    return (*packed(export), original)


def export_of(found: Loaded) -> Traced:
    """The model as values, and its own outputs by name for a batch.

    Raises:
      ValueError: if it does not take one array, or has operations without a form in ONNX.
    """
    if found.folder is None:
        return from_tf_keras(found.model)
    return from_saved_model(found.model, found.folder)


# --- Keras 2 ------------------------------------------------------------------------------------


def keras_file(
    file: Mapping[str, Any],
    *,
    trust: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
) -> Loaded:
    """The tf_keras model in a file.

    Args:
      file: "path"; an archive names Keras' modules as tf_keras does. "what": the file's name for
        messages. "kind": "hdf5", "keras" or "json". "config": the architecture. "weights": those of
        a `.json`, else None. "room": bytes that its variables may have. "checked": look first at
        operations; only a test of what the process holds without that does not.
      trust: let operations and Lambda layers run, whatever they do.
      custom_objects: what the file names and tf_keras does not have.
    """
    models = tf_keras.models
    given = dict(custom_objects or {})
    if file["checked"] and not trust:
        check_op_layers(file["config"], file["what"])
    blank = not (trust or given)
    with (
        tf.device("CPU"),
        _bounded(file["room"], blank=blank),
        tf_keras.utils.custom_object_scope(given),
    ):
        if file["weights"] is not None:
            model = models.model_from_json(json.dumps(file["config"]), given)
            _load_weights(model, Path(file["weights"]))
            return Loaded(model, None)
        load = partial(models.load_model, file["path"], custom_objects=given, compile=False)
        return Loaded(load(safe_mode=not trust) if file["kind"] == "keras" else load(), None)


def _load_weights(model: Any, weights: Path) -> None:
    if is_checkpoint(weights):
        model.load_weights(str(weights)).assert_existing_objects_matched().expect_partial()
    else:
        check_built(model)
        model.load_weights(str(weights))


@contextmanager
def _bounded(room: float, *, blank: bool) -> Iterator[None]:
    """Refuses a config's variables before they are made, once no file could fill them.

    With `blank` they are zeros until their values are read: an orthogonal matrix, say, takes a
    minute to draw, and the file has another.
    """
    made = 0

    def create(make: Any, **given: Any) -> Any:
        nonlocal made
        shape = tf.TensorShape(given.get("shape"))
        if shape.is_fully_defined():
            dtype = tf.as_dtype(given.get("dtype") or "float32")
            size = 8 if "64" in dtype.name else 4
            made += size * math.prod(shape)
            if made > room:
                raise ValueError(
                    f"its config asks for variables of {made:,} bytes, far more than the file "
                    "could hold"
                )
            is_number = dtype.is_floating or dtype.is_integer
            if blank and is_number and callable(given.get("initial_value")):
                given["initial_value"] = partial(tf.zeros, shape, dtype)
        return make(**given)

    with tf.variable_creator_scope(create):
        yield


# --- SavedModels --------------------------------------------------------------------------------


def saved_model_folder(
    path: Path,
    places: Sequence[OutputFile],
    *,
    checked: bool = True,
    trust: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
) -> Loaded:
    """The Keras model in a folder; without one that tf_keras can make, the graph.

    Args:
      path: the folder.
      places: two to put the parts of the graph into that are handed to TensorFlow.
      checked: look first whether what loading and calling it run does more than compute. Only a
        test of what the process holds without that does not.
      trust: let what its layers and operations run pass.
      custom_objects: classes and functions that its layers name.

    Raises:
      ValueError: if it is damaged or not safe to open.
    """
    if not checked:
        return Loaded(tf.saved_model.load(str(path)), str(path))
    what = str(path)
    meta, configs = saved_model.read(path)
    given = frameworks.at_hand("tf_keras", strings_in(configs), custom_objects or {})
    signature = served.served(meta)
    known = bool(configs)
    try:
        check_config(configs, what, trust, {**_revived(configs), **given})
    except UnknownParts:
        known = False  # its graph holds what they compute, so their classes are not needed
    if not trust:
        check_graph(served.operations(signature), what)
        check_op_layers(configs, what)
    with tf.device("CPU"):
        reason: BaseException | None = None
        if known:
            layers = served.of_layers(meta)
            try:
                if not trust:
                    check_graph(served.operations(layers), what)
                saved_model.write(layers, places[0].graph)
                with _bounded(math.inf, blank=not (trust or custom_objects)):
                    return Loaded(saved_model.by_tf_keras(Path(places[0].folder), given), None)
            except Exception as error:
                reason = error
        saved_model.write(signature, places[1].graph)
        try:
            return Loaded(saved_model.by_tensorflow(Path(places[1].folder), signature), what)
        except Exception as error:
            told = line(error).replace(places[1].folder, what)
            raise ValueError(
                f"{path} is damaged: {told}. Copy the whole folder again, variables/ too."
            ) from (reason or error)


def check_op_layers(config: Any, what: str) -> None:
    """Refuses layers that are single TensorFlow operations which do more than compute."""
    if nodes := op_layers(config):
        check_graph(map(saved_model.operation, nodes), what)


def _revived(configs: list[Any]) -> dict[str, None]:
    """Classes that tf_keras has nowhere, so that it makes their layers of the graph's functions."""
    names = {str(config.get("class_name")) for config in configs if isinstance(config, dict)}
    return {name: None for name in names if not internals.tf_keras_has(name)}
