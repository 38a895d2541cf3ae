"""The native and the ONNX route give the same target for the same Keras 3 model."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import architectures
import jax
import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES
from conftest import REPOSITORY

import jaxmeter as jm

pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with each model, and what another process computed by the ONNX route."""
    folder = tmp_path_factory.mktemp("models")
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in ARCHITECTURES.items():
            keras.utils.set_random_seed(3)
            architectures.grown(make()).save(folder / f"{name}.keras")
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(REPOSITORY)}
    program = REPOSITORY / "tests" / "architectures.py"
    subprocess.run([sys.executable, program, folder], check=True, env=environment)
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_routes_agree(models, name):
    with jax.numpy_rank_promotion("allow"):
        model = keras.models.load_model(models / f"{name}.keras", compile=False)
    target = jm.load_target(models / f"{name}.keras")
    x, y = architectures.records(model)
    native = architectures.answers(target, x, y)
    with np.load(models / f"{name}.npz") as found:
        other = dict(found)
    assert "error" not in other, str(other["error"])
    assert str(other.pop("route")) == "keras-tensorflow"
    assert target.spec.source.route == "keras-jax"
    assert float(other.pop("difference")) < 1e-5
    assert list(other.pop("order")) == [*target.spec.layers, "|", *target.spec.variables]
    assert other.keys() == native.keys()
    # Rounding is relative to what is back-propagated, so a gradient that cancels has a floor.
    largest = max(np.abs(v).max(initial=0) for k, v in native.items() if k.startswith("gradient"))
    for key, expected in native.items():
        tolerance, floor = (1e-4, 0.01 * largest) if key.startswith("gradient") else (1e-5, 1.0)
        scale = max(floor, float(np.abs(expected).max(initial=0.0)))
        np.testing.assert_allclose(
            other[key] / scale, expected / scale, atol=tolerance, rtol=0, err_msg=key
        )


def test_there_are_at_least_forty():
    assert len(ARCHITECTURES) >= 40
