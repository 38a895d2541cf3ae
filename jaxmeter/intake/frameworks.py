"""What loading a model leaves as it found it: random states, the environment, logs and warnings.

Keras draws seeds from Python's `random` when it builds layers and TensorFlow counts the operations
it makes, so a script that loads a target would otherwise train another model afterwards.
"""

import contextlib
import copy
import importlib
import importlib.util
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxmeter.intake.keras import internals

_EXTRAS = {
    "tensorflow": ("tensorflow", "tf_keras", "tf2onnx", "onnx"),
    "onnx": ("onnx",),
}


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restores the random states of Python, NumPy, Keras and TensorFlow, and silences advice.

    What frameworks warn of while they open an old file (deprecations, missing training
    configurations) is nothing that a user of the target could act upon.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one)
    seeds = internals.global_seed_generator()
    seed = None if seeds is None else np.asarray(seeds.state.value)
    context = internals.tensorflow_context()
    generator = None if context is None else copy.deepcopy(internals.seeds_of(context))
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"), _unlogged():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Explicitly requested dtype")
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            if seeds is not None:
                seeds.state.assign(seed)
            if context is not None:
                internals.set_seeds(context, generator)


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for as long as the context lasts, where they are not set already.

    Afterwards they are what they were before, also where an import has set them.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: values[name] for name, value in before.items() if value is None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def needs(extra: str, what: str) -> None:
    """Raises ImportError naming the extra, if a package of it is not installed."""
    missing = [name for name in _EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{what} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed: pip install 'jaxmeter[{extra}]'."
        )


def keras() -> Any:
    """Keras 3, on its JAX backend if it was not loaded before; the environment is left as it was.

    Raises:
      ImportError: if it is not installed.
      RuntimeError: if an older Keras is loaded in this process.
    """
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
    found = sys.modules["keras"]
    version = str(getattr(found, "__version__", "0"))
    if int(version.split(".")[0]) < 3:
        raise RuntimeError(
            f"Keras {version} is loaded in this process, and it cannot run on JAX. Use Keras 3: "
            "pip install 'keras>=3', and start Python anew."
        )
    return found


def tensorflow(what: str) -> Any:
    """TensorFlow, imported quietly and after Keras, whose backend it would otherwise choose.

    Raises:
      ImportError: if it or what goes with it is not installed; the message names the extra.
    """
    needs("tensorflow", what)
    keras()
    with environment(TF_CPP_MIN_LOG_LEVEL="3"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("tf_keras")
        importlib.import_module("tf2onnx.convert")  # it would be imported late, and set variables
        return importlib.import_module("tensorflow")


def loaded() -> set[str]:
    """The packages that this process has imported."""
    return {name.partition(".")[0] for name in sys.modules}


def registered(first: str = "keras") -> dict[str, Any]:
    """What is registered with Keras and tf_keras, or in scope there, by name; `first` wins."""
    found: dict[str, dict[str, Any]] = {"keras": {}, "tf_keras": {}}
    if new := sys.modules.get("keras.saving"):
        found["keras"] = {**new.get_custom_objects(), **internals.custom_objects_in_scope()}
    if old := sys.modules.get("tf_keras.saving"):
        found["tf_keras"] = {**old.get_custom_objects(), **internals.tf_keras_objects_in_scope()}
    (second,) = found.keys() - {first}
    return {**found[second], **found[first]}


def registered_names() -> set[str]:
    """Names of what users registered with Keras or tf_keras, as against their own classes."""
    return {
        name
        for name, thing in registered().items()
        if getattr(thing, "__module__", "").partition(".")[0] not in ("keras", "tf_keras")
    }


def at_hand(
    framework: str, names: Iterable[str], custom_objects: Mapping[str, Any]
) -> dict[str, Any]:
    """Custom objects under every name that a config has for them.

    What is at hand by name is never looked for by the module that the file names beside it; so
    they are in scope wherever a framework looks, also those that only the other one knows.

    Args:
      framework: "keras" or "tf_keras", whose own registered objects come first.
      names: the texts in the config.
      custom_objects: the user's, by name.
    """
    found = {**registered(framework), **custom_objects}
    packaged = {name: name.rpartition(">")[2] for name in names if ">" in name}
    return {**{name: found[last] for name, last in packaged.items() if last in found}, **found}


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers  # absl adds one when it is first asked to log
