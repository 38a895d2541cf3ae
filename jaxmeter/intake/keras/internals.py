"""Every private name of Keras, tf_keras and TensorFlow that jaxmeter uses, and why.

A release of theirs may change any of these without a word. No other file of the package has one,
and `tests/test_keras_internals.py` has a test for each that tells what broke. No framework is
imported here: some names are asked for before one is loaded, or where Keras 3 may not be.
"""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# --- Keras 3: graphs of operations --------------------------------------------------------------


def functional() -> type:
    """`Functional`: the class of `keras.Model(inputs, outputs)`; `keras.Model` is any model's."""
    kind: type = importlib.import_module("keras.src.models.functional").Functional
    return kind


def sequential_graph(model: Any) -> Any:
    """`_functional`: the graph that a `Sequential` model runs; in public it has only layers."""
    return model._functional


def run_graph(graph: Any, inputs: Any, run: Callable[[Any], Callable[..., Any]]) -> Any:
    """`_run_through_graph`: a graph in which `run(operation)` is called; `call` takes no hook."""
    return graph._run_through_graph(inputs, operation_fn=run)


def standardized(graph: Any, inputs: Any) -> Any:
    """`_standardize_inputs`: what `call` does to a graph's inputs first, and only `call` does."""
    return graph._standardize_inputs(inputs)


def takes_training(layer: Any) -> bool:
    """`_call_has_training_arg`: whether Keras passes `training` on; a signature may hide it."""
    return bool(getattr(layer, "_call_has_training_arg", False))  # operations have none


def is_nn_operation(operation: Any) -> bool:
    """The module `keras.src.ops.nn`: the classes of its operations have no public names."""
    return type(operation).__module__ == "keras.src.ops.nn"


def is_tracked_list(value: Any) -> bool:
    """`TrackedList`: what Keras makes of a list that is set on a layer; it has no public name."""
    return type(value).__name__ == "TrackedList"


# --- Keras 3 and tf_keras: layers ---------------------------------------------------------------


def all_layers(model: Any) -> list[Any]:
    """`_flatten_layers`: the model, and layers at any depth; `layers` ends at other layers."""
    return list(model._flatten_layers())


def inner_layers(layer: Any) -> list[Any]:
    """`_flatten_layers`: the layers that a layer holds itself; only models have `layers`."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


# --- Keras 3: variables -------------------------------------------------------------------------


def trained_variables(layer: Any) -> list[Any]:
    """`_trainable_variables`: a layer's own, frozen or not; `trainable_variables` has others."""
    return list(layer._trainable_variables)


def other_variables(layer: Any) -> list[Any]:
    """`_non_trainable_variables`: a layer's own; the public list has inner layers' too."""
    return list(layer._non_trainable_variables)


def seed_generators(layer: Any) -> list[Any]:
    """`_seed_generators`: a layer's own; in public their states are among all other variables."""
    return list(layer._seed_generators)


def built_shapes(model: Any) -> dict[str, Any]:
    """`_build_shapes_dict`: what a model was built on; `get_build_config` may be overridden."""
    return dict(model._build_shapes_dict or {})


def initialiser(variable: Any) -> Any:
    """`_initializer`: what will draw a variable that is not drawn yet; nothing public has it."""
    return variable._initializer


# --- Keras 3: variables and graphs while a model is built ---------------------------------------

DRAW = "_initialize_with_initializer"  # where variables draw their values; no public hook there


def node_maker() -> tuple[Any, str]:
    """`deserialize_node`: where and by what name a graph's nodes are made; no public hook there."""
    return importlib.import_module("keras.src.models.functional"), "deserialize_node"


def declared(variable: Any) -> tuple[tuple[int, ...], str]:
    """`_shape`, `_dtype`: as asked for; the public dtype is that of the scope one asks in."""
    return tuple(variable._shape), str(variable._dtype)


def is_distributed(variable: Any) -> bool:
    """`_layout`: whether a variable is to be spread over devices; nothing public says it."""
    return variable._layout is not None


def set_first_value(variable: Any, value: Any) -> None:
    """`_initialize`: gives a variable its first value; `assign` needs that it has one."""
    variable._initialize(value)


def value_held(variable: Any) -> Any:
    """`_value`: the very array; the public `value` may be a cast of it."""
    return variable._value


@contextmanager
def h5_without_tensorflow() -> Iterator[None]:
    """`json_utils.tf`: how old configs' reader gets at TensorFlow; no setting keeps it away."""
    module: Any = importlib.import_module("keras.src.legacy.saving.json_utils")
    plain = module.tf
    module.tf = types.SimpleNamespace(available=False)
    try:
        yield
    finally:
        module.tf = plain


# --- Keras 3 and tf_keras: global state ---------------------------------------------------------


def custom_objects_in_scope() -> dict[str, Any]:
    """`custom_objects_scope_dict`: what `custom_object_scope` holds; nothing public lists it."""
    return dict(_global_state("custom_objects_scope_dict") or {})


def global_seed_generator() -> Any | None:
    """`global_seed_generator`: where Keras' seed stands, None if unused; it is not public."""
    return _global_state("global_seed_generator")


def _global_state(name: str) -> Any:
    """`get_global_attribute`: an entry of Keras' global state; None before Keras is loaded."""
    module = sys.modules.get("keras.src.backend.common.global_state")
    return None if module is None else module.get_global_attribute(name)


def tf_keras_objects_in_scope() -> dict[str, Any]:
    """`_THREAD_LOCAL_CUSTOM_OBJECTS`: as `custom_objects_in_scope`, of tf_keras."""
    module = sys.modules.get("tf_keras.src.saving.object_registration")
    return {} if module is None else dict(vars(module._THREAD_LOCAL_CUSTOM_OBJECTS))


# --- tf_keras -----------------------------------------------------------------------------------


def tf_keras_weights(layer: Any) -> tuple[list[Any], list[Any]]:
    """`_trainable_weights`, `_non_trainable_weights`: a layer's own, as those of Keras 3 above."""
    own = (getattr(layer, f"_{kind}_weights", ()) for kind in ("trainable", "non_trainable"))
    trained, others = map(list, own)
    return trained, others


def is_tf_keras_graph(layer: Any) -> bool:
    """`_is_graph_network`: whether a model is made of a graph; its class has no public name."""
    return bool(getattr(layer, "_is_graph_network", False)) and hasattr(layer, "layers")


def tf_keras_built_shape(model: Any) -> Any | None:
    """`_build_input_shape`: what a subclassed model was built on; nothing public says it."""
    return getattr(model, "_build_input_shape", None)


def is_revived(model: Any) -> bool:
    """`RevivedNetwork`: the class of what stands in for a model whose own class is not at hand."""
    return any(kind.__name__ == "RevivedNetwork" for kind in type(model).__mro__)


def saved_metadata() -> Any:
    """`SavedMetadata`: the message in `keras_metadata.pb`; no public name, no other reader."""
    return importlib.import_module("tf_keras.protobuf.saved_metadata_pb2").SavedMetadata()


def tf_keras_has(name: str) -> bool:
    """`get_builtin_layer`, the module of metrics: as loading asks; public ones lack names."""
    layers = importlib.import_module("tf_keras.src.layers.serialization")
    metrics = importlib.import_module("tf_keras.src.metrics")
    return layers.get_builtin_layer(name) is not None or hasattr(metrics, name)


# --- TensorFlow ---------------------------------------------------------------------------------


def tensorflow_context() -> Any | None:
    """`context`: TensorFlow's state, None where it has not been loaded or used; see `seeds_of`."""
    module = sys.modules.get("tensorflow.python.eager.context")
    found = None if module is None else module.context()
    return found if hasattr(found, "_rng") else None


def seeds_of(context: Any) -> Any:
    """`_rng`: what draws operations' seeds; in public it can be set, and not read."""
    return context._rng


def set_seeds(context: Any, generator: Any) -> None:
    """`_rng`, put back."""
    context._rng = generator


def frozen(function: Any) -> Any:
    """`convert_variables_to_constants_v2`: a function as one graph; only TF 1's is public."""
    name = "tensorflow.python.framework.convert_to_constants"
    return importlib.import_module(name).convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )


def is_operation(name: str) -> bool:
    """`op_def_registry`: whether TensorFlow has an operation; `raw_ops` lacks some."""
    registry = importlib.import_module("tensorflow.python.framework.op_def_registry")
    return registry.get(name) is not None
