"""A target from a model file or a live model."""

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmeter.intake import frameworks
from jaxmeter.intake.heads import Choice
from jaxmeter.intake.safety.budget import files_of, within
from jaxmeter.intake.safety.files import ACCEPTED, boundary, examined
from jaxmeter.target import Target
from jaxmeter.terminal import printable_messages


@printable_messages()
def load_target(
    source: Any,
    *,
    output: Choice | None = None,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
) -> Target:
    """A target from a model file or a live model.

    Opening a model file runs no code of the file's, reads no other file, writes none, opens no
    network connection and unpickles nothing, unless `trust` or `custom_objects` are given; the
    project's SECURITY.md says what that rests on. The target's arrays are copies.
    `target.spec.source` records the route taken, the versions, in which process the file was
    opened, and the largest difference from the original framework's own output on a probe batch.

    Args:
      source: path of a `.keras`, `.h5`, `.hdf5` or `.onnx` file, of a SavedModel folder or of a
        `.json` architecture; or a built Keras 3 model (on JAX or TensorFlow) or tf_keras model.
        Keras 3 on JAX opens what it can; what only older Kerases read, SavedModels and models on
        TensorFlow go through ONNX and need `jaxmeter[tensorflow]`; `.onnx` needs `jaxmeter[onnx]`.
      output: what to audit; None for the model's only output. See below.
      weights: for a `.json` architecture, its weights: `.h5` or a TensorFlow checkpoint's prefix.
      trust: open also what names more than the layers, functions and operations known to compute
        only: Lambda layers and their like, which run Python code from the file.
      custom_objects: classes and functions of your own that the file names.
      max_bytes: memory that opening the file may take, beyond what this process has; None for a
        limit that grows with the file's size and no usual model comes near. Not for live models.
      max_seconds: time that it may take, likewise. It is counted in operations before they run, as
        a slow computer's (`jaxmeter.intake.safety.budget`), and the clock is looked at too.

    Raises:
      FileNotFoundError: if there is no such file.
      TypeError: for an object that is not a model.
      ImportError: if the format needs a package that is not installed; it names the extra.
      ValueError: if the file cannot be opened or is not safe to open, or the model is not a
        classifier that can be audited (several inputs, regression, or one of several outputs,
        labels or time steps is to be chosen first).
      RuntimeError: if Keras runs on a backend that cannot be used in this process.

    An audit is of one classifier, a row of class scores for each record. Where a model gives more,
    `output` chooses:

    - `output="diagnosis"`: the output of that name, or any layer of that name ("inner/dense" too).
      A softmax in which it ends is taken off.
    - `output=2`: the second output.
    - `output=("tags", 3)`: a part of a record's row of it, by 0-based indices as in NumPy. Of
      sigmoid units, one is a classifier of two classes; so is one unit of a softmax, its class
      against all others.
    - `output=("words", -1)`: the last time step; `output=("mask", 12, 7)`: one pixel.

    The layers of the target stay those of the whole model. Variables on which the chosen part does
    not depend are in `state`, because it has no gradient by them.

    >>> load_target("model.pb")
    Traceback (most recent call last):
    FileNotFoundError: there is no file model.pb...
    """
    if not isinstance(source, str | os.PathLike):
        if weights is not None:
            raise ValueError(
                "weights= is for .json architectures; give a live model its weights with "
                "model.load_weights."
            )
        return _from_live(source, output)
    path = Path(source)
    given = dict(custom_objects or {})
    file = examined(path, trust, {**frameworks.registered(), **given})
    if (weights is None) != (file.kind != "json"):
        raise ValueError(
            f"{path} is an architecture without weights; pass weights=, the file that "
            "model.save_weights wrote."
            if weights is None
            else f"{path} has its own weights; weights= is for .json architectures."
        )
    if file.kind == "onnx":
        frameworks.needs("onnx", f"{path}, an ONNX model,")
        onnx_file = _module("onnx_file")
        with boundary(path), within([path], max_bytes, max_seconds):
            return onnx_file.from_onnx(path, output)
    beside = None if weights is None else Path(weights)
    _module("opening").prepare(path, file, beside)
    with boundary(path), within(files_of(path, beside), max_bytes, max_seconds):
        return _module("opening").from_file(
            path, file, output=output, weights=beside, trust=trust, custom_objects=given
        )


@printable_messages()
def open_keras(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
) -> Any:
    """The live Keras 3 model in a file, on the JAX backend: to be trained again.

    Its arguments are those of `load_target`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: as `load_target`; or if Keras 3 itself does not open it.
      RuntimeError: if Keras runs on another backend than JAX.
    """
    path, given = Path(path), dict(custom_objects or {})
    file = examined(path, trust, {**frameworks.registered(), **given})
    if file.kind in ("onnx", "json", "saved-model"):
        raise ValueError(
            f"{path} cannot be trained again: that takes a .keras or .h5 file that Keras 3 opens, "
            "with its architecture and initialisers. For other models use jaxmeter.shadow.of_flax "
            "or of_functions."
        )
    opening = _module("opening")
    opening.prepare(path, file, None)
    with boundary(path), within(files_of(path), max_bytes, max_seconds):
        return opening.keras_model(path, file, trust=trust, custom_objects=given)


def _module(name: str) -> Any:
    """A module that imports a framework; its name is spelt out for the test of imports."""
    return {
        "onnx_file": lambda: importlib.import_module("jaxmeter.intake.onnx.file"),
        "opening": lambda: importlib.import_module("jaxmeter.intake.routes"),
    }[name]()


def _from_live(source: Any, output: Choice | None) -> Target:
    """A target from a live model; otherwise says what the object is and what to do with it."""
    keras = sys.modules.get("keras")
    old = sys.modules.get("tf_keras")
    opening = _module("opening")
    origin = f"live {type(source).__name__} {getattr(source, 'name', '')!r}"
    if keras is not None and isinstance(source, getattr(keras, "Model", ())):
        return opening.of_keras(source, origin, output)
    if old is not None and isinstance(source, old.Model):
        return opening.of_tf_keras(source, origin, output)
    roots = {kind.__module__.partition(".")[0] for kind in type(source).__mro__}
    what = f"{type(source).__module__}.{type(source).__qualname__}"
    kinds = [getattr(k, "Layer", None) for k in (keras, old and old.layers) if k is not None]
    if isinstance(source, tuple(kind for kind in kinds if kind is not None)):
        advice = "Wrap the layer: keras.Sequential([keras.Input(shape), layer])."
    elif roots & {"tf_keras", "tensorflow"}:
        advice = (
            "Of TensorFlow it takes tf_keras models and SavedModel folders: save yours with "
            "tf.saved_model.save(module, folder, signatures={'serving_default': function})."
        )
    elif "flax" in roots:
        advice = "Use jaxmeter.from_flax(module, variables)."
    elif "torch" in roots:
        advice = "Export it with torch.onnx.export and load that .onnx file."
    elif "onnx" in roots:
        advice = "Save it with onnx.save(model, 'model.onnx') and load that file."
    elif callable(source):
        advice = "For a JAX function use jaxmeter.from_function(apply, params)."
    else:
        advice = (
            "For anything that computes logits with JAX use jaxmeter.from_function(apply, params); "
            "for a Flax module jaxmeter.from_flax(module, variables)."
        )
    raise TypeError(f"load_target was given a {what}; it takes {ACCEPTED}. {advice}")
