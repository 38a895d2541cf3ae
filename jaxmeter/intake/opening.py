"""Which framework opens a file, in which order, and what to say when none can."""

import importlib
import json
import math
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jaxmeter.intake import surroundings
from jaxmeter.intake.configs import (
    check_layers,
    layers_with,
    op_layers,
    strange_parts,
    unknown_advice,
    unknown_classes,
)
from jaxmeter.intake.files import (
    File,
    check_graph,
    check_links,
    check_weights,
    is_legacy_weights,
    line,
)
from jaxmeter.intake.heads import Choice
from jaxmeter.intake.safety import budget
from jaxmeter.intake.safety.building import building, foresee
from jaxmeter.target import Target

# Activations that Keras 3 computes differently from the Keras 2 that wrote the file.
_CHANGED = {"hard_sigmoid"}
# What Keras 1 called arguments that have other names since.
_ARGUMENTS_1 = {
    *("nb_filter", "nb_row", "nb_col", "nb_feature", "subsample", "border_mode", "dim_ordering"),
    *("init", "inner_init", "forget_bias_init", "W_regularizer", "W_constraint", "bias", "p"),
    *("pool_length", "stride", "length", "dropout_W", "dropout_U", "gamma_init", "sigma"),
}


def prepare(path: Path, file: File, weights: Path | None) -> None:
    """Loads the framework that a file needs, and looks at the file of weights that goes with it.

    Raises:
      FileNotFoundError: if there are no such weights.
      ImportError: if the framework is not installed.
      RuntimeError: if Keras runs on a backend that cannot be used.
      ValueError: if the weights are damaged or not safe to open.
    """
    if file.kind == "saved-model":
        surroundings.tensorflow(f"{path}, a SavedModel,")
    else:
        _check_backend(surroundings.keras().backend.backend())
    if weights is not None:
        check_weights(weights)


def from_file(
    path: Path,
    file: File,
    *,
    output: Choice | None,
    weights: Path | None,
    trust: bool,
    custom_objects: dict[str, Any],
) -> Target:
    """A target from a file that has been examined and prepared for.

    Raises:
      ImportError: if only TensorFlow can open it and that is not installed.
      ValueError: if nothing can open it, or it is no classifier that can be audited.
    """
    if file.kind == "saved-model":
        return _from_saved_model(path, output, trust, custom_objects)
    model, of = _opened(path, file, weights, trust, custom_objects)
    return of(model, str(path), output)


def keras_model(path: Path, file: File, *, trust: bool, custom_objects: dict[str, Any]) -> Any:
    """The Keras 3 model in a file that has been examined and prepared for.

    Raises:
      ValueError: if nothing can open it, or only tf_keras.
    """
    model, of = _opened(path, file, None, trust, custom_objects)
    if of is not of_keras:
        raise ValueError(
            f"only tf_keras opens {path}, written by Keras {file.version}, and its models cannot "
            "be trained by JAX; build the architecture in Keras 3 and save that."
        )
    return model


def of_keras(model: Any, origin: str, output: Choice | None) -> Target:
    """A target from a Keras 3 model, by the route that its backend leaves open.

    Raises:
      RuntimeError: if the backend is neither JAX nor TensorFlow.
    """
    backend = surroundings.keras().backend.backend()
    if backend == "jax":
        return importlib.import_module("jaxmeter.intake.keras_jax").from_keras(
            model, origin, output
        )
    _check_backend(backend)
    surroundings.tensorflow("a Keras model on the TensorFlow backend")
    with surroundings.undisturbed():
        return _tf_models().from_keras(model, origin, output)


def of_tf_keras(model: Any, origin: str, output: Choice | None) -> Target:
    """A target from a tf_keras model."""
    surroundings.tensorflow("a tf_keras model")
    with surroundings.undisturbed():
        return _tf_models().from_tf_keras(model, origin, output)


def _tf_models() -> Any:
    return importlib.import_module("jaxmeter.intake.tf_models")


def _check_backend(backend: str) -> None:
    if backend not in ("jax", "tensorflow"):
        raise RuntimeError(
            f"Keras already runs on its {backend} backend in this process, whose models JAX cannot "
            "differentiate. Either set KERAS_BACKEND=jax before Keras is first imported (in a "
            'notebook: restart, os.environ["KERAS_BACKEND"] = "jax" in the first cell), or save '
            "the model as .keras and load that file in a fresh process."
        )


# --- files of Keras -----------------------------------------------------------------------------

_Opened = tuple[Any, Callable[[Any, str, Choice | None], Target]]


def _opened(
    path: Path, file: File, weights: Path | None, trust: bool, custom_objects: dict[str, Any]
) -> _Opened:
    """A model, and what makes a target of it."""
    keras = surroundings.keras()
    old = not file.version.startswith("3")
    reasons: dict[str, BaseException] = {}
    changed = sorted(_CHANGED & set(_strings(file.config))) if old else []
    if not changed:
        try:
            with surroundings.undisturbed():
                foresee(file.config)
                with building(keras) as settle:
                    model = _by_keras(keras, path, file, weights, trust, custom_objects)
                    settle()
                return model, of_keras
        except Exception as error:
            budget.check_refusal()
            reasons[f"Keras {keras.__version__}"] = error
    if old:
        try:
            surroundings.tensorflow(f"{path}, written by Keras {file.version},")
        except ImportError as error:
            if not reasons:
                raise ImportError(
                    f"{error} (Keras 3 computes {', '.join(changed)} differently from the Keras "
                    f"{file.version} that wrote the file, so it cannot stand in.)"
                ) from error
            reasons["tf_keras"] = error
        else:
            if not trust:
                check_op_layers(file.config, str(path))
            try:
                with surroundings.undisturbed(), _bounded_tensorflow():
                    model = _by_tf_keras(path, file, weights, trust, custom_objects)
                return model, of_tf_keras
            except Exception as error:
                budget.check_refusal()
                reasons["tf_keras"] = error
    raise ValueError(_complaint(path, file, reasons, custom_objects)) from list(reasons.values())[0]


@contextmanager
def _bounded_tensorflow() -> Iterator[None]:
    """Refuses variables before tf_keras makes them, once there is no room for more."""
    tf = importlib.import_module("tensorflow")
    found = budget.current()
    room = 2**63 if found is None else found.max_bytes // 2  # the target has copies
    made: list[int] = []

    def create(make: Any, **given: Any) -> Any:
        if given.get("shape") is not None and tf.TensorShape(given["shape"]).is_fully_defined():
            made.append(_bytes(given["shape"], tf.as_dtype(given.get("dtype") or "float32").name))
            _check_room(sum(made), room)
        return make(**given)

    with tf.variable_creator_scope(create):
        yield


def _bytes(shape: Any, dtype: str) -> int:
    return math.prod(int(d) for d in shape) * (8 if "64" in dtype else 4)


def _check_room(made: int, room: int) -> None:
    if made > room:
        raise budget.refuse(
            f"its config asks for variables of {made:,} bytes, far more than the file could hold; "
            f"{budget.advice('max_bytes')}"
        )


def _by_keras(
    keras: Any,
    path: Path,
    file: File,
    weights: Path | None,
    trust: bool,
    custom_objects: dict[str, Any],
) -> Any:
    if weights is None:
        return keras.models.load_model(
            path, custom_objects=custom_objects, compile=False, safe_mode=not trust
        )
    model = _from_json(keras, file.config, trust, custom_objects)
    _load_weights(model, weights)
    return model


def _from_json(keras: Any, config: Any, trust: bool, custom_objects: dict[str, Any]) -> Any:
    return keras.saving.deserialize_keras_object(
        config, custom_objects=custom_objects, safe_mode=not trust
    )


def check_op_layers(config: Any, what: str) -> None:
    """Refuses layers that are single TensorFlow operations which do more than compute."""
    if nodes := op_layers(config):
        graphs = importlib.import_module("jaxmeter.intake.saved_model")
        check_graph(map(graphs.operation, nodes), what, graphs.has_state)


def _by_tf_keras(
    path: Path, file: File, weights: Path | None, trust: bool, custom_objects: dict[str, Any]
) -> Any:
    tf_keras = importlib.import_module("tf_keras")
    tf = importlib.import_module("tensorflow")
    with tf.device("CPU"):
        if weights is not None:
            model = tf_keras.models.model_from_json(json.dumps(file.config), custom_objects)
            _load_weights(model, weights)
            return model
        load = partial(tf_keras.models.load_model, custom_objects=custom_objects, compile=False)
        if file.kind != "keras":
            return load(path)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "model.keras"
            _copy_for_tf_keras(path, file.config, copy)
            return load(copy, safe_mode=not trust)


def _copy_for_tf_keras(path: Path, config: Any, copy: Path) -> None:
    """An archive of Keras 2 whose config names Keras' inner modules as tf_keras calls them."""
    text = re.sub(
        r'"module": "keras\.(src\.)?(\w+(\.\w+)+)"',
        r'"module": "tf_keras.src.\2"',
        json.dumps(config),
    )
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            target.writestr(name, text if name == "config.json" else source.read(name))


def _load_weights(model: Any, weights: Path) -> None:
    """Loads weights whatever their name: Keras tells its formats apart by the file's ending."""
    if weights.with_name(weights.name + ".index").exists():  # the prefix of a checkpoint
        if type(model).__module__.startswith("keras."):
            raise ValueError("a TensorFlow checkpoint is read by tf_keras only")
        model.load_weights(str(weights)).assert_existing_objects_matched().expect_partial()
        return
    if not model.built:
        raise ValueError(
            "the architecture does not say the shape of its input, so it has no variables to load"
        )
    ending = ".h5" if is_legacy_weights(weights) else ".weights.h5"
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{ending}"
        link.symlink_to(weights.absolute())
        model.load_weights(str(link))


def _complaint(
    path: Path, file: File, reasons: dict[str, BaseException], custom_objects: dict[str, Any]
) -> str:
    """Why none could open a file, and what helps."""
    told = "; ".join(f"{who}: {line(error).rstrip('.')}" for who, error in reasons.items())
    unknown = unknown_classes(file.config, lambda *names: _is_known(custom_objects, *names))
    renamed = layers_with(file.config, _ARGUMENTS_1) if file.version.startswith("1.") else {}
    if unknown:
        advice = f"It {unknown_advice(unknown)}"
    elif renamed:
        listing = ", ".join(f"{name!r} ({kind})" for name, kind in renamed.items())
        kinds = ", ".join(f'"{kind}": ...' for kind in sorted(set(renamed.values())))
        advice = (
            f"Keras 1 named the arguments of its layers otherwise: {listing}. Pass classes that "
            f"take the old ones, subclasses of tf_keras' layers, custom_objects={{{kinds}}}; or "
            "build the model in Keras 3 and copy the weights out of the file with h5py "
            "(set_weights)."
        )
    elif "Could not locate" in told or "Unknown" in told:
        advice = "Pass your own classes and functions by name: custom_objects={...}."
    elif file.version.startswith("2."):
        advice = (
            "Where an argument of a layer is what cannot be read, pass custom_objects={class "
            "name: a subclass that drops it}; or build the same model in Keras 3 and copy the "
            "weights (set_weights)."
        )
    else:
        advice = "Open it with the Keras version that wrote it and save it again as .keras."
    return f"{path}, written by Keras {file.version}, cannot be opened. {told}. {advice}"


def _is_known(custom: dict[str, Any], kind: str, module: Any, registered: Any) -> bool:
    if kind in custom or registered in custom:
        return True
    if isinstance(module, str) and module.partition(".")[0] not in ("keras", "tf_keras"):
        return False
    modules = [surroundings.keras()]
    if "tf_keras" in surroundings.loaded():
        modules.append(importlib.import_module("tf_keras"))
    return any(
        hasattr(place, kind) for found in modules for place in (found, found.layers, found.models)
    )


def _strings(config: Any) -> set[str]:
    if isinstance(config, str):
        return {config}
    items = config.values() if isinstance(config, dict) else config
    return (
        {s for item in items for s in _strings(item)} if isinstance(config, dict | list) else set()
    )


# --- SavedModels --------------------------------------------------------------------------------


def _from_saved_model(
    path: Path, output: Choice | None, trust: bool, custom_objects: dict[str, Any]
) -> Target:
    folder = importlib.import_module("jaxmeter.intake.saved_model")
    check_links(path, path.rglob("*"))
    configs = folder.examined(path, lambda ops: check_graph(ops, str(path), folder.has_state))
    custom = {*custom_objects, *surroundings.registered()}
    strange = strange_parts(configs, custom)
    if not trust:
        check_layers(configs, str(path))
        check_op_layers(configs, str(path))
    tf = importlib.import_module("tensorflow")
    with surroundings.undisturbed(), tf.device("CPU"):
        reason: BaseException | None = None
        # Its graph holds what strange layers compute, so their classes are not needed.
        if configs and (trust or not strange):
            try:
                model = folder.by_tf_keras(path, custom_objects)
            except Exception as error:
                reason = error
            else:
                return _tf_models().from_tf_keras(model, str(path), output)
        try:
            loaded = tf.saved_model.load(str(path))
        except Exception as error:
            raise ValueError(
                f"{path} is damaged: {line(error)}. Copy the whole folder again, variables/ too."
            ) from (reason or error)
        return _tf_models().from_saved_model(loaded, str(path), output)
