"""The demo's target: a small CNN on half of scikit-learn's digits, trained until it overfits."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from jaxmeter import disk
from jaxmeter.intake.frameworks import keras as loaded_keras

FILES = ("target.keras", "members.npz", "nonmembers.npz")
EPOCHS = 150

Labelled = tuple[NDArray, NDArray]


def halves(*, seed: int) -> tuple[Labelled, Labelled]:
    """The digits' `(x [n, 8, 8, 1], y [n])` in two halves: members, non-members."""
    digits = load_digits()
    x, y = (digits.images[..., None] / 16).astype(np.float32), digits.target
    order = np.random.default_rng(seed).permutation(len(y))
    inside, outside = order[: len(y) // 2], order[len(y) // 2 :]
    return (x[inside], y[inside]), (x[outside], y[outside])


def classifier(x: NDArray, y: NDArray, *, seed: int, epochs: int = EPOCHS) -> Any:
    """The Keras model, trained on `x` and `y`.

    Initial weights ten times the usual scale: gradient descent then hardly learns features and fits
    the training set by memorising it (train accuracy 1.00, test accuracy about 0.95).
    """
    keras = loaded_keras()
    keras.utils.set_random_seed(seed)

    def large(number: int) -> object:
        return keras.initializers.VarianceScaling(100.0, seed=seed + number)

    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="tanh", kernel_initializer=large(1), name="conv"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(64, activation="tanh", kernel_initializer=large(2), name="hidden"),
            keras.layers.Dense(10, activation="softmax", name="out"),
        ],
        name="digits",
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    with jax.numpy_rank_promotion("allow"):  # Keras relies on it
        model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model


def train(folder: Path, *, seed: int, epochs: int = EPOCHS) -> tuple[Path, Path]:
    """Trains the target and writes target.keras, members.npz and nonmembers.npz into `folder`.

    Returns:
      Paths of the members and of the non-members.
    """
    members, nonmembers = halves(seed=seed)
    with disk.apart(folder / "target.keras") as room:  # Keras writes as the umask has it
        classifier(*members, seed=seed, epochs=epochs).save(room / "target.keras")
        disk.settle(room)
        (room / "target.keras").replace(folder / "target.keras")
    paths = folder / "members.npz", folder / "nonmembers.npz"
    for path, (x, y) in zip(paths, (members, nonmembers), strict=True):
        with disk.replacing(path) as file:
            np.savez(file, x=x, y=y)
    return paths
