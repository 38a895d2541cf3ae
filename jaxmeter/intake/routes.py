"""Which framework opens a file, in which order, and what to say when none can."""

import contextlib
import glob
import importlib
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxmeter.intake import frameworks
from jaxmeter.intake.heads import Choice
from jaxmeter.intake.keras import internals
from jaxmeter.intake.safety import allowlist, budget, process
from jaxmeter.intake.safety.building import building, foresee
from jaxmeter.intake.safety.files import (
    File,
    check_built,
    check_links,
    check_weights,
    is_checkpoint,
    is_legacy_weights,
    line,
)
from jaxmeter.intake.safety.keras_config import (
    layers_with,
    strings_in,
    unknown_advice,
    unknown_classes,
    without_compilation,
)
from jaxmeter.intake.tensorflow.export import OutputFile, unpacked
from jaxmeter.target import HERE, Target

_RUNTIME = 2**30  # bytes that TensorFlow takes for itself when it first computes
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
        frameworks.needs("tensorflow", f"{path}, a SavedModel,")
    else:
        _check_backend(frameworks.keras().backend.backend())
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
    return _from_keras_file(path, file, output, weights, trust, custom_objects)


def keras_model(path: Path, file: File, *, trust: bool, custom_objects: dict[str, Any]) -> Any:
    """The Keras 3 model in a file that has been examined and prepared for.

    Raises:
      ValueError: if nothing can open it, or only tf_keras.
    """
    try:
        return _by_keras_3(path, file, None, trust, custom_objects)
    except Exception as error:
        who = {f"Keras {frameworks.keras().__version__}": error}
        raise ValueError(
            f"{_complaint(path, file, who, custom_objects)} Only what Keras 3 opens can be trained "
            "again by JAX."
        ) from error


def of_keras(model: Any, origin: str, output: Choice | None) -> Target:
    """A target from a Keras 3 model, by the route that its backend leaves open.

    Raises:
      RuntimeError: if the backend is neither JAX nor TensorFlow.
    """
    backend = frameworks.keras().backend.backend()
    if backend == "jax":
        return importlib.import_module("jaxmeter.intake.keras.target").from_keras(
            model, origin, output
        )
    _check_backend(backend)
    frameworks.tensorflow("a Keras model on the TensorFlow backend")
    with frameworks.undisturbed():
        return _of_traced(_module("tf_models").from_keras(model), origin, output)


def of_tf_keras(model: Any, origin: str, output: Choice | None) -> Target:
    """A target from a tf_keras model."""
    frameworks.tensorflow("a tf_keras model")
    with frameworks.undisturbed():
        return _of_traced(_module("tf_models").from_tf_keras(model), origin, output)


def _of_traced(
    found: tuple[Any, Any], origin: str, output: Choice | None, process: str = HERE
) -> Target:
    """A target from a model as values and what its framework computes of a batch."""
    export, original = found
    target: Target = _module("tf_target").of_export(
        export, original, origin=origin, process=process, output=output
    )
    return target


def _module(name: str) -> Any:
    """A module that imports TensorFlow or ONNX; its name is spelt out for the test of imports."""
    return {
        "tf_files": lambda: importlib.import_module("jaxmeter.intake.tensorflow.files"),
        "tf_models": lambda: importlib.import_module("jaxmeter.intake.tensorflow.models"),
        "tf_target": lambda: importlib.import_module("jaxmeter.intake.tensorflow.target"),
    }[name]()


def _check_backend(backend: str) -> None:
    if backend not in ("jax", "tensorflow"):
        raise RuntimeError(
            f"Keras already runs on its {backend} backend in this process, whose models JAX cannot "
            "differentiate. Either set KERAS_BACKEND=jax before Keras is first imported (in a "
            'notebook: restart, os.environ["KERAS_BACKEND"] = "jax" in the first cell), or save '
            "the model as .keras and load that file in a fresh process."
        )


# --- files of Keras -----------------------------------------------------------------------------


def _by_keras_3(
    path: Path, file: File, weights: Path | None, trust: bool, custom_objects: dict[str, Any]
) -> Any:
    """The Keras 3 model in a file; the reason as an exception if Keras 3 cannot make it."""
    keras = frameworks.keras()
    with frameworks.undisturbed(), _alone(file):
        foresee(file.config)
        with building(keras) as settle:
            model = _by_keras(keras, path, file, weights, trust, custom_objects)
            settle()
        return model


def _from_keras_file(
    path: Path,
    file: File,
    output: Choice | None,
    weights: Path | None,
    trust: bool,
    custom_objects: dict[str, Any],
) -> Target:
    """A target by Keras 3, or else by tf_keras for what an older Keras wrote."""
    reasons: dict[str, BaseException] = {}
    old = not file.version.startswith("3")
    changed = sorted(_CHANGED & set(strings_in(file.config))) if old else []
    if not changed:
        try:
            model = _by_keras_3(path, file, weights, trust, custom_objects)
        except Exception as error:
            budget.check_refusal()
            reasons[f"Keras {frameworks.keras().__version__}"] = error
        else:
            return of_keras(model, str(path), output)
    if old:
        try:
            frameworks.needs("tensorflow", f"{path}, written by Keras {file.version},")
        except ImportError as error:
            if not reasons:
                raise ImportError(
                    f"{error} (Keras 3 computes {', '.join(changed)} differently from the Keras "
                    f"{file.version} that wrote the file, so it cannot stand in.)"
                ) from error
            reasons["tf_keras"] = error
        else:
            try:
                return _from_tf_keras_file(path, file, output, weights, trust, custom_objects)
            except _NotLoaded as error:
                reasons["tf_keras"] = error.__cause__ or error
    raise ValueError(_complaint(path, file, reasons, custom_objects)) from list(reasons.values())[0]


class _NotLoaded(Exception):
    """A framework could not read a file; its cause says why."""


def _from_tf_keras_file(
    path: Path,
    file: File,
    output: Choice | None,
    weights: Path | None,
    trust: bool,
    custom_objects: dict[str, Any],
) -> Target:
    """A target by tf_keras: in a process without rights, unless code at hand is to be run."""
    with _as_tf_keras_reads(path, file, weights) as (place, weights_place):
        request = {
            "kind": file.kind,
            "path": str(place.absolute()),
            "what": str(path),
            "config": without_compilation(file.config),
            "checked": True,
            "weights": None if weights_place is None else str(weights_place.absolute()),
            "room": _budget().max_bytes // 2,  # the target has copies
        }
        names = frameworks.registered_names() & strings_in(file.config)
        if not (trust or custom_objects or names):
            files = [place] if weights is None else _weight_files(weights)
            return _apart(request, files, path, output)
        frameworks.tensorflow(f"{path}, written by Keras {file.version},")
        with frameworks.undisturbed():
            opener = _module("tf_files")
            given = frameworks.at_hand("tf_keras", strings_in(file.config), custom_objects)
            try:
                found = opener.keras_file(request, trust=trust, custom_objects=given)
            except Exception as error:
                raise _NotLoaded from error
            return _of_traced(opener.export_of(found), str(path), output)


def _apart(
    request: dict[str, Any],
    readable: list[Path],
    path: Path,
    output: Choice | None,
    writable: Sequence[int] = (),
) -> Target:
    """A target from a file that a process without rights opens."""
    most = _budget()
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(
                process.opened(
                    request,
                    readable,
                    memory=_RUNTIME + most.max_bytes,
                    seconds=most.max_seconds,
                    writable=writable,
                    written=most.max_bytes,
                )
            )
        except process.Refused as error:
            # The message may speak of a copy.
            told = ValueError(str(error).replace(request["path"], str(path)))
            if error.stage == "load":
                raise _NotLoaded from told
            raise told from error
        export = unpacked(found.head, found.arrays)
        with frameworks.undisturbed():
            held = f"in a process of its own: {found.held}"
            return _of_traced((export, found.original), str(path), output, held)


def _budget() -> budget.OpeningBudget:
    found = budget.current()
    assert found is not None, "files are opened within a budget"
    return found


@contextmanager
def _as_tf_keras_reads(
    path: Path, file: File, weights: Path | None
) -> Iterator[tuple[Path, Path | None]]:
    """The file and its weights under names, and with module names, that tf_keras understands."""
    with tempfile.TemporaryDirectory() as folder:
        if file.kind == "keras":
            copy = Path(folder) / "model.keras"
            _copy_for_tf_keras(path, file.config, copy)
            yield copy, None
        elif weights is None or is_checkpoint(weights):
            yield path, weights
        else:
            yield path, _linked(weights, Path(folder))


def _weight_files(weights: Path) -> list[Path]:
    """The file, or all files of a checkpoint by its prefix."""
    if not is_checkpoint(weights):
        return [weights]
    return list(weights.parent.glob(f"{glob.escape(weights.name)}.*"))


@contextmanager
def _alone(file: File) -> Iterator[None]:
    """Has Keras read an `.h5` without TensorFlow, which it would import to look for its types.

    That takes seconds, and more memory than most models.
    """
    needed = {"TensorShape", "TypeSpec", "CompositeTensor"} & strings_in(file.config)
    with contextlib.nullcontext() if needed else internals.h5_without_tensorflow():
        yield


def _by_keras(
    keras: Any,
    path: Path,
    file: File,
    weights: Path | None,
    trust: bool,
    custom_objects: dict[str, Any],
) -> Any:
    given = frameworks.at_hand("keras", strings_in(file.config), custom_objects)
    with keras.saving.custom_object_scope(given):
        if weights is None:
            return keras.models.load_model(
                path, custom_objects=given, compile=False, safe_mode=not trust
            )
        model = keras.saving.deserialize_keras_object(
            without_compilation(file.config), custom_objects=given, safe_mode=not trust
        )
    if is_checkpoint(weights):
        raise ValueError("a TensorFlow checkpoint is read by tf_keras only")
    check_built(model)
    with tempfile.TemporaryDirectory() as folder:
        model.load_weights(str(_linked(weights, Path(folder))))
    return model


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


def _linked(weights: Path, folder: Path) -> Path:
    """A link to weights by which Keras, which goes by the ending, knows their format."""
    ending = ".h5" if is_legacy_weights(weights) else ".weights.h5"
    link = folder / f"model{ending}"
    link.symlink_to(weights.absolute())
    return link


def _complaint(
    path: Path, file: File, reasons: Mapping[str, BaseException], custom_objects: dict[str, Any]
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
    if kind in allowlist.LAYERS:
        return True
    keras = frameworks.keras()
    return any(hasattr(place, kind) for place in (keras, keras.layers, keras.models))


# --- SavedModels --------------------------------------------------------------------------------


def _from_saved_model(
    path: Path, output: Choice | None, trust: bool, custom_objects: dict[str, Any]
) -> Target:
    check_links(path, path.rglob("*"))
    with _places(path) as places:
        if not (trust or custom_objects or _names_registered(path)):
            request = {
                "kind": "saved-model",
                "path": str(path.absolute()),
                "folders": [place.folder for place in places],
                "checked": True,
            }
            files = [path, *(Path(place.folder) for place in places)]
            writable = [place.graph for place in places]
            try:
                return _apart(request, files, path, output, writable)
            except _NotLoaded as error:
                raise ValueError(str(error.__cause__)) from error.__cause__
        frameworks.tensorflow(f"{path}, a SavedModel,")
        with frameworks.undisturbed():
            opener = _module("tf_files")
            found = opener.saved_model_folder(
                path,
                places,
                trust=trust,
                custom_objects=custom_objects,
            )
            return _of_traced(opener.export_of(found), str(path), output)


@contextmanager
def _places(path: Path) -> Iterator[list[OutputFile]]:
    """Two folders with links to all that TensorFlow reads of a SavedModel but its graph."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        places = []
        for name in ("layers", "signature"):
            place = Path(folder) / name
            place.mkdir()
            for part in ("variables", "assets", "keras_metadata.pb"):
                if (path / part).exists():
                    (place / part).symlink_to((path / part).absolute())
            file = stack.enter_context(open(place / "saved_model.pb", "wb"))
            places.append(OutputFile(str(place), file.fileno()))
        yield places


def _names_registered(path: Path) -> bool:
    """Whether a SavedModel names classes that its user registered with Keras, which are here."""
    names = [name.encode() for name in frameworks.registered_names()]
    found = [file.read_bytes() for file in path.glob("*.pb*") if names]
    return any(name in data for name in names for data in found)
