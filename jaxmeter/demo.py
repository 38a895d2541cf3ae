"""The demo's target: a small CNN on half of scikit-learn's digits, trained until it overfits."""

from pathlib import Path

import jax
import numpy as np
from sklearn.datasets import load_digits

from jaxmeter.intake.surroundings import keras as loaded_keras

FILES = ("target.keras", "members.npz", "nonmembers.npz")


def train(folder: Path, *, seed: int, epochs: int = 150) -> tuple[Path, Path]:
    """Trains the target and writes target.keras, members.npz and nonmembers.npz into `folder`.

    Initial weights ten times the usual scale: gradient descent then hardly learns features and fits
    the training set by memorising it (train accuracy 1.00, test accuracy about 0.95).

    Returns:
      Paths of the members and of the non-members.
    """
    keras = loaded_keras()
    digits = load_digits()
    x, y = (digits.images[..., None] / 16).astype(np.float32), digits.target
    order = np.random.default_rng(seed).permutation(len(y))
    halves = order[: len(y) // 2], order[len(y) // 2 :]
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
        model.fit(x[halves[0]], y[halves[0]], batch_size=32, epochs=epochs, verbose=0)
    model.save(folder / "target.keras")
    paths = folder / "members.npz", folder / "nonmembers.npz"
    for path, half in zip(paths, halves, strict=True):
        np.savez(path, x=x[half], y=y[half])
    return paths
