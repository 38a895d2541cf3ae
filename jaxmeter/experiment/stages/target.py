"""The stage "target": a recipe trains its model, which is saved in the same bytes every time."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeter.data.records import Records
from jaxmeter.disk import replace
from jaxmeter.intake.frameworks import keras as loaded_keras
from jaxmeter.intake.frameworks import undisturbed
from jaxmeter.prng import stream

FILE = "target.keras"


def train(folder: Path, *, recipe: Any, members: Records, n_classes: int, seed: int) -> None:
    """Writes target.keras, trained by `recipe.trained(x, y, n_classes=..., seed=...)`.

    Raises:
      RuntimeError: if Keras runs on another backend in this process.
      ValueError: if the trained weights are not finite.
    """
    keras = loaded_keras()
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            f"Keras runs on {keras.backend.backend()} in this process, and targets are trained on "
            "JAX, so that they are the same whoever trains them. Set KERAS_BACKEND=jax before "
            "Keras is imported."
        )
    key = stream(jax.random.key(seed), "target")
    number = int(jax.random.bits(key, (), "uint32")) % 2**31  # room for a layer's own offset
    with undisturbed():
        keras.utils.clear_session(free_memory=False)  # layers are numbered from 1 again
        keras.utils.set_random_seed(number)
        model = recipe.trained(
            np.array(members.x), np.array(members.y), n_classes=n_classes, seed=number
        )
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"{type(recipe).__name__}.trained gave a {type(model).__name__}; it must give a "
                "Keras model. For models of other frameworks save a file and use TargetFile."
            )
        for variable in model.weights:
            if not np.isfinite(np.asarray(variable)).all():
                raise ValueError(
                    f"the target's training diverged: {variable.path} is not finite, so nothing "
                    "can be measured on it. Lower the learning rate, or look at the data."
                )
        model.save(folder / FILE)
    path = folder / FILE
    replace(path, settled(path.read_bytes()))


def settled(saved: bytes) -> bytes:
    """A .keras file without what differs between equal models: dates and addresses in memory."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(out, "w") as new:
        for name in sorted(old.namelist()):
            content = old.read(name)
            if name == "metadata.json":
                content = _dumped({**json.loads(content), "date_saved": "1980-01-01@00:00:00"})
            elif name == "config.json":
                content = _dumped(_numbered(json.loads(content), {}))
            new.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def _numbered(value: Any, ids: dict[int, int]) -> Any:
    """Ids of shared objects, which Keras takes from their addresses, by first appearance."""
    if isinstance(value, list):
        return [_numbered(item, ids) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: ids.setdefault(item, len(ids) + 1)
        if name == "shared_object_id"
        else _numbered(item, ids)
        for name, item in value.items()
    }


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()
