"""Model formats in, targets out: the only code that knows Keras.

Keras is imported when a model is loaded, not before, and on its JAX backend.
"""

import difflib
import importlib
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxmeter.target import Target

_ACCEPTED = "a path to a .keras, .h5 or .hdf5 file, or a live Keras 3 model on the JAX backend"
_HDF5 = b"\x89HDF\r\n\x1a\n"
# What runs code of the file's own when it is opened or called.
_FOREIGN = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"}


def load_target(
    source: Any, *, trust: bool = False, custom_objects: Mapping[str, Any] | None = None
) -> Target:
    """A target from a model file or a live Keras 3 model.

    Loading runs no code from the file and reads no pickles. The target's arrays are copies.
    `target.spec.source` records the largest difference from Keras' own output on a probe batch.

    Args:
      source: path of a `.keras`, `.h5` or `.hdf5` file, or a built Keras 3 model.
      trust: open a file with Lambda layers and their like, which run Python code from the file.
      custom_objects: classes and functions of your own that the file names.

    Raises:
      FileNotFoundError: if there is no such file.
      TypeError: for an object that is not a Keras 3 model.
      ValueError: if Keras cannot open the file, or the model is not a classifier that can be
        audited (several inputs or outputs, multi-label, regression).
      RuntimeError: if Keras runs on another backend in this process.

    >>> load_target("model.pb")
    Traceback (most recent call last):
    FileNotFoundError: there is no file model.pb...
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        versions = _checked(path, trust)
        model = _opened(path, versions, trust, dict(custom_objects or {}))
        return _from_keras(model, str(path))
    _check_live(source)
    return _from_keras(source, f"live {type(source).__name__} {source.name!r}")


def _from_keras(model: Any, origin: str) -> Target:
    return importlib.import_module("jaxmeter.intake.keras_jax").from_keras(model, origin)


def _keras() -> Any:
    """Keras on its JAX backend; the environment is left as it was."""
    if "keras" not in sys.modules:
        before = os.environ.get("KERAS_BACKEND")
        os.environ["KERAS_BACKEND"] = "jax"
        try:
            importlib.import_module("keras")
        except ImportError as error:
            raise ImportError(
                f"loading a model needs Keras 3, which cannot be imported: {error}. "
                "pip install 'keras>=3'."
            ) from error
        finally:
            del os.environ["KERAS_BACKEND"]
            if before is not None:
                os.environ["KERAS_BACKEND"] = before
    keras = sys.modules["keras"]
    version = str(getattr(keras, "__version__", "0"))
    if int(version.split(".")[0]) < 3:
        raise RuntimeError(
            f"Keras {version} is loaded in this process, and it cannot run on JAX. Use Keras 3: "
            "pip install 'keras>=3', and start Python anew."
        )
    backend = keras.backend.backend()
    if backend != "jax":
        raise RuntimeError(
            f"Keras already runs on its {backend} backend in this process, whose models JAX cannot "
            "differentiate. Either set KERAS_BACKEND=jax before Keras is first imported (in a "
            'notebook: restart, os.environ["KERAS_BACKEND"] = "jax" in the first cell), or save '
            "the model as .keras and load that file in a fresh process. Live models on the "
            "TensorFlow backend are planned, not supported yet."
        )
    return keras


# --- live objects -------------------------------------------------------------------------------


def _check_live(source: Any) -> None:
    """Passes Keras 3 models on JAX; otherwise says what the object is and what to do with it."""
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(source, getattr(keras, "Model", ())):
        _keras()
        return
    roots = {kind.__module__.partition(".")[0] for kind in type(source).__mro__}
    what = f"{type(source).__module__}.{type(source).__qualname__}"
    if roots & {"tf_keras", "tensorflow"}:
        advice = (
            "Keras 2 and TensorFlow models are planned, not supported yet. If Keras 3 can rebuild "
            'it, save it with model.save("model.h5") and load that path.'
        )
    elif keras is not None and isinstance(source, getattr(keras, "Layer", ())):
        advice = "Wrap the layer: keras.Sequential([keras.Input(shape), layer])."
    elif "flax" in roots:
        advice = "Use jaxmeter.from_flax(module, variables)."
    elif "torch" in roots:
        advice = "Rewrite its forward pass in JAX and use jaxmeter.from_function(apply, params)."
    elif callable(source):
        advice = "For a JAX function use jaxmeter.from_function(apply, params)."
    else:
        advice = (
            "For anything that computes logits with JAX use jaxmeter.from_function(apply, params); "
            "for a Flax module jaxmeter.from_flax(module, variables)."
        )
    raise TypeError(f"load_target was given a {what}; it takes {_ACCEPTED}. {advice}")


# --- files --------------------------------------------------------------------------------------


def _checked(path: Path, trust: bool) -> str:
    """Checks a file before Keras sees it; the Keras version that wrote it."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}. {_neighbours(path)}")
    if path.is_dir():
        kind = "a SavedModel folder" if (path / "saved_model.pb").exists() else "a folder"
        raise ValueError(
            f"{path} is {kind}, which is not supported yet. Open it in TensorFlow with the Keras "
            'that wrote it and save it as one file, model.save("model.keras").'
        )
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        raise ValueError(
            f"{path}: .onnx files are planned, not supported yet. Load the model's Keras file, or "
            "write its forward pass in JAX and use jaxmeter.from_function."
        )
    if suffix not in {".keras", ".h5", ".hdf5"}:
        raise ValueError(
            f"{path} ends in {suffix or 'no suffix'}, so its format is not known; load_target "
            f"takes {_ACCEPTED}."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; copy or save it again.")
    try:
        config, version = _read_keras(path) if suffix == ".keras" else _read_hdf5(path)
    except (OSError, KeyError, json.JSONDecodeError, UnicodeDecodeError, zipfile.BadZipFile) as e:
        raise ValueError(
            f"{path} is damaged: {_line(e)}. Copy or download it again and compare its size."
        ) from e
    foreign = dict(_foreign(config))
    if foreign and not trust:
        listing = ", ".join(f"{name!r} ({kind})" for name, kind in foreign.items())
        raise ValueError(
            f"{path} has layers that run Python code from the file: {listing}. Opening it could do "
            "anything on this machine, so it is refused. If you trust who wrote it, pass "
            "trust=True."
        )
    return version


def _read_keras(path: Path) -> tuple[Any, str]:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a Keras 3 file: those are zip archives, and this is cut short or "
            "something else. If it is HDF5, name it .h5; otherwise copy it again."
        )
    with zipfile.ZipFile(path) as archive:
        missing = {"config.json", "metadata.json", "model.weights.h5"} - set(archive.namelist())
        if missing:
            raise ValueError(
                f"{path} is a zip archive but no Keras model: it lacks {', '.join(sorted(missing))}"
                '. Save the model with model.save("model.keras").'
            )
        version = json.loads(archive.read("metadata.json")).get("keras_version", "?")
        return json.loads(archive.read("config.json")), str(version)


def _read_hdf5(path: Path) -> tuple[Any, str]:
    h5py = importlib.import_module("h5py")
    if not h5py.is_hdf5(path):
        raise ValueError(
            f"{path} is not an HDF5 file: it is cut short or something else. If it is a Keras 3 "
            "archive, name it .keras; otherwise copy it again."
        )
    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
        version = file.attrs.get("keras_version", "?")
    if config is None:
        raise ValueError(
            f"{path} holds weights without their architecture. Build the model in Keras, "
            "model.load_weights(path), and give load_target the live model."
        )
    text = [v.decode() if isinstance(v, bytes) else str(v) for v in (config, version)]
    return json.loads(text[0]), text[1]


def _foreign(config: Any, owner: str = "?") -> Iterator[tuple[str, str]]:
    """Names and kinds of the layers in a config that bring code with them."""
    if isinstance(config, dict):
        inner = config.get("config")
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            owner = inner["name"]
        if config.get("class_name") in _FOREIGN:
            yield owner, config["class_name"]
            return
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _foreign(item, owner)


def _opened(path: Path, version: str, trust: bool, custom_objects: dict[str, Any]) -> Any:
    keras = _keras()
    try:
        with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
            # About Keras' own code and its files; nothing a user could act upon.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "Explicitly requested dtype")
            return keras.models.load_model(
                path, custom_objects=custom_objects, compile=False, safe_mode=not trust
            )
    except Exception as error:
        reason = _line(error)
        if "Could not locate" in reason or "Unknown" in reason:
            advice = "Pass your own classes and functions by name: custom_objects={...}."
        elif version[:2] in {"1.", "2."}:
            advice = (
                "Keras 3 does not read every older file. Where an argument of a layer is what it "
                "cannot read, pass custom_objects={class name: a subclass that drops it}; or open "
                "the file with tf_keras, build the same model in Keras 3 and copy the weights "
                "(set_weights)."
            )
        else:
            advice = "Open it with the Keras version that wrote it and save it again as .keras."
        raise ValueError(
            f"Keras {keras.__version__} cannot open {path}, written by Keras {version}: "
            f"{reason.rstrip('.')}. {advice}"
        ) from error


def _line(error: BaseException) -> str:
    """An error's reason in one line; Keras puts it last, after the layer's whole config."""
    text = str(error).rpartition("Exception encountered:")[2].strip() or type(error).__name__
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"Its folder {folder.absolute()} does not exist either."
    names = sorted(p.name for p in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    if near:
        return f"Nearest in that folder: {', '.join(near)}."
    return f"{folder.absolute()} holds nothing with a name like it."
