"""TensorFlow's models as ONNX and arrays: Keras 3 on TensorFlow, tf_keras, SavedModels.

Each is traced once as a function of a batch whose results are the model's outputs and every
layer's; `graph` makes a graph of it with the variables as inputs. Nothing is set on a model.
This module imports TensorFlow and nothing of JAX: it also runs in the process that opens files.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf2onnx

from jaxmeter.intake.keras import internals
from jaxmeter.intake.naming import unique
from jaxmeter.intake.tensorflow.export import Export
from jaxmeter.intake.tensorflow.graph import Exported, exported

# What runs a model on a batch: its outputs by name, its layers' outputs by name.
_Call = Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
# A model as values, and its own framework's outputs by name for a batch.
Traced = tuple[Export, Callable[[np.ndarray], dict[str, np.ndarray]]]


class _Model(NamedTuple):
    """What the kinds of model have in common."""

    call: _Call
    variables: dict[str, Any]  # "layer/variable" -> tf.Variable
    trainable: set[int]  # ids of those that were made to be trained
    shape: tuple[int | None, ...]
    dtype: Any
    route: str
    versions: tuple[tuple[str, str], ...]


def from_keras(model: Any) -> Traced:
    """A Keras 3 model on its TensorFlow backend.

    Layers and variables have the names that the native route gives them.

    Raises:
      ValueError: if the model does not take one array; the message says what to do.
    """
    names = importlib.import_module("jaxmeter.intake.keras.model")
    passes = importlib.import_module("jaxmeter.intake.keras.forward")
    keras = importlib.import_module("keras")
    shape, dtype = names.checked_input(model)
    layers = names.layers_of(model)
    by_id = {id(layer): name for name, layer in layers.items()}
    run = passes.runner(model)

    def call(x: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        seen = passes.ForwardPass(by_id, x)
        found = run(seen, x)
        outputs = names.outputs_of(model, found)
        return outputs, {name: seen.layers[name] for name in layers if name in seen.layers}

    variables = names.variables_of(model, layers)
    trainable = names.trained_of(model)
    return _traced(
        _Model(
            call,
            {name: variable.value for name, variable in variables.items()},
            {id(v.value) for v in variables.values() if id(v) in trainable},
            shape,
            dtype,
            "keras-tensorflow",
            (("keras", keras.__version__),),
        ),
        lambda x: names.outputs_of(model, model(x, training=False)),
    )


def from_tf_keras(model: Any) -> Traced:
    """A tf_keras (Keras 2) model.

    Layers and variables are named as those of Keras 3 models are.

    Raises:
      ValueError: if the model does not take one array; the message says what to do.
    """
    keras = importlib.import_module("tf_keras")
    shape, dtype = _tf_keras_input(model)
    layers = unique(_tf_keras_layers(keras, model))
    by_id = {id(layer): name for name, layer in layers.items()}

    def named(found: Any) -> dict[str, Any]:
        flat = tf.nest.flatten(found)
        names = list(getattr(model, "output_names", None) or [])
        if len(names) != len(flat):
            names = [f"output_{i}" for i in range(1, len(flat) + 1)]
        return dict(zip(names, flat, strict=True))

    def call(x: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        with _watched(keras.layers.Layer, by_id) as seen:
            found = model(x, training=False)
        return named(found), {name: seen[name] for name in layers if name in seen}

    variables = unique(_tf_keras_variables(model, layers))
    return _traced(
        _Model(
            call,
            variables,
            {id(v) for p in internals.all_layers(model) for v in internals.tf_keras_weights(p)[0]},
            shape,
            dtype,
            "tf-keras",
            (("tf_keras", keras.__version__),),
        ),
        lambda x: named(model(x, training=False)),
    )


def from_saved_model(loaded: Any, folder: str) -> Traced:
    """A loaded SavedModel by its serving signature.

    Variables keep their own names. It has no layers; whoever parses the graph finds some.

    Raises:
      ValueError: if there is no signature that takes one array of numbers.
    """
    signature = _signature(loaded, folder)
    ((name, spec),) = signature.structured_input_signature[1].items()
    with tf.device("CPU"):
        graph = exported(signature)
    variables = unique(_without_model((v.name, v) for v in graph.variables.values()))
    keys = sorted(signature.structured_outputs)

    def original(probe: np.ndarray) -> dict[str, np.ndarray]:
        with tf.device("CPU"):
            found = signature(**{name: tf.constant(probe, spec.dtype)})
        return {key: value.numpy() for key, value in found.items()}

    model = _Model(
        lambda x: ({}, {}),
        variables,
        {id(v) for v in variables.values() if v.trainable},
        tuple(spec.shape[1:]),
        spec.dtype,
        "saved-model",
        (),
    )
    return _bound(graph, model, dict(zip(keys, graph.outputs, strict=True)), None), original


def _without_model(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Variables' names without ":0" and without a model's name, if all begin with one."""
    paths = [(name.partition(":")[0].split("/"), variable) for name, variable in named]
    models = {path[0] for path, _ in paths}
    nested = len(models) == 1 and all(len(path) > 2 for path, _ in paths)
    yield from (("/".join(path[nested:]), variable) for path, variable in paths)


# --- from a call to values ----------------------------------------------------------------------


def _traced(model: _Model, compute: Callable[[Any], dict[str, Any]]) -> Traced:
    """Traces a model, and binds the graph to its names."""
    dtype = tf.as_dtype(model.dtype)
    outputs: list[str] = []
    layers: list[str] = []

    def flat(x: Any) -> list[Any]:
        found, seen = model.call(x)
        outputs[:], layers[:] = found, seen
        # A copy of each: two names may stand for one value, and a value must not be an input.
        return [tf.identity(value) for value in (*found.values(), *seen.values())]

    with tf.device("CPU"):
        spec = tf.TensorSpec((None, *model.shape), dtype, name="x")
        function = tf.function(flat, autograph=False).get_concrete_function(spec)
        graph = exported(function)
    values = iter(graph.outputs)

    def original(probe: np.ndarray) -> dict[str, np.ndarray]:
        with tf.device("CPU"):
            found = compute(tf.constant(probe, dtype))
        return {name: np.asarray(value) for name, value in found.items()}

    bound = {name: next(values) for name in outputs}
    return _bound(graph, model, bound, {name: next(values) for name in layers}), original


def _bound(
    graph: Exported, model: _Model, outputs: dict[str, str], layers: dict[str, str] | None
) -> Export:
    """What the values of a graph stand for."""
    feeds = {id(variable): value for value, variable in graph.variables.items()}
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for name, variable in model.variables.items():
        learned = id(variable) in model.trainable and variable.dtype.is_floating
        (params if learned else state)[name] = variable
    return Export(
        model=graph.model,
        x=graph.inputs[0],
        params={name: variable.numpy() for name, variable in params.items()},
        state={name: variable.numpy() for name, variable in state.items()},
        constants=graph.constants,
        feeds={name: feeds[id(v)] for name, v in model.variables.items() if id(v) in feeds},
        outputs=outputs,
        layers=layers,
        shape=model.shape,
        dtype=np.dtype(tf.as_dtype(model.dtype).as_numpy_dtype).name,
        route=model.route,
        versions=(
            *model.versions,
            ("tensorflow", tf.__version__),
            ("tf2onnx", tf2onnx.__version__),
        ),
    )


# --- tf_keras -----------------------------------------------------------------------------------


@contextmanager
def _watched(layer_class: Any, names: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """Collects what the layers named by id return while the context lasts.

    Every layer's call goes through its base class's `__call__`, nested and subclassed models' too;
    so that is wrapped, for as long as one trace takes, and no model is touched.
    """
    seen: dict[str, Any] = {}
    plain = layer_class.__call__

    @wraps(plain)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        if (name := names.get(id(self))) is not None:
            arrays = [v for v in tf.nest.flatten(out) if isinstance(v, tf.Tensor)]
            if arrays:
                seen[name] = arrays[0]
        return out

    layer_class.__call__ = call
    try:
        yield seen
    finally:
        layer_class.__call__ = plain


def _tf_keras_layers(keras: Any, model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        if internals.is_tf_keras_graph(layer):
            yield from _tf_keras_layers(keras, layer, f"{prefix}{layer.name}/")
        yield prefix + layer.name, layer


def _tf_keras_variables(model: Any, layers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    def owned(layer: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        trained, others = internals.tf_keras_weights(layer)
        for variable in (*trained, *others):
            last = variable.name.partition(":")[0].rpartition("/")[2]
            yield f"{prefix}/{last}".lstrip("/"), variable
        for inner in internals.inner_layers(layer):
            yield from owned(inner, f"{prefix}/{inner.name}")

    for name, layer in layers.items():
        if not internals.is_tf_keras_graph(layer):
            yield from owned(layer, name)
    yield from owned(model, "")


def _tf_keras_input(model: Any) -> tuple[tuple[int | None, ...], Any]:
    """Shape and dtype of a record, of a built model with one input."""
    if not model.built:
        raise ValueError(
            f"the model {model.name!r} is not built: it has no variables yet. Call it once on a "
            "batch of its data, or give it an Input, then load its weights."
        )
    inputs = tf.nest.flatten(model.inputs) if model.inputs else []
    if len(inputs) > 1:
        raise ValueError(
            f"the model {model.name!r} has {len(inputs)} inputs "
            f"({', '.join(model.input_names)}); a record here is one array. Wrap it in a function "
            "that takes one array apart and use jaxmeter.from_function."
        )
    if not inputs:
        shape = internals.tf_keras_built_shape(model)
        saved = model.save_spec() if hasattr(model, "save_spec") else None
        specs = [spec for spec in tf.nest.flatten(saved) if spec is not None]
        if shape is None and len(specs) == 1:
            shape = specs[0].shape
        if shape is None or not hasattr(tf.TensorShape(shape), "rank"):
            raise ValueError(
                f"the shape of a record is not known for {model.name!r}, a subclassed model. Call "
                "it once on one array, a batch of its data."
            )
        return tuple(tf.TensorShape(shape)[1:]), tf.float32
    (x,) = inputs
    _check_spec(x.shape, x.dtype, f"the model {model.name!r}")
    return tuple(x.shape[1:]), x.dtype


# --- signatures ---------------------------------------------------------------------------------


def _signature(loaded: Any, folder: str) -> Any:
    """The function that serves the model, taking one array of numbers."""
    signatures = loaded.signatures
    if not signatures:
        raise ValueError(
            f"{folder} has no serving signature, so it is not known how to call the model. Save it "
            "with signatures={'serving_default': function}, or as .keras."
        )
    key = next((k for k in ("serving_default", "serve") if k in signatures), None)
    if key is None and len(signatures) > 1:
        raise ValueError(
            f"{folder} has the signatures {', '.join(sorted(signatures))} and none is the default. "
            "Save it with signatures={'serving_default': function}."
        )
    signature = signatures[key or next(iter(signatures))]
    arguments = signature.structured_input_signature[1]
    if len(arguments) != 1:
        raise ValueError(
            f"the signature of {folder} takes {len(arguments)} arrays "
            f"({', '.join(sorted(arguments)) or 'none'}); a record here is one array. Save a "
            "function that takes one."
        )
    ((_, spec),) = arguments.items()
    _check_spec(spec.shape, spec.dtype, f"the signature of {folder}")
    return signature


def _check_spec(shape: Any, dtype: Any, what: str) -> None:
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        raise ValueError(
            f"{what} takes {dtype.name}, not numbers, and JAX has no text. Save it without its "
            "text or example parsing and audit it on the arrays behind that."
        )
    if shape.rank is None or shape.rank < 1:
        raise ValueError(
            f"{what} takes an array of shape {shape}; a batch of records is [n, ...], and how many "
            "axes a record has must be known. Save it with the shape of its input."
        )
