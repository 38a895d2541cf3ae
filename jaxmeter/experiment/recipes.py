"""Targets that a study trains itself, as configs that train themselves."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.intake.surroundings import keras as loaded_keras


@dataclass(frozen=True, kw_only=True)
class Variance:
    """Initial weights of a variance of `scale / inputs` (Keras' `VarianceScaling`).

    Attributes:
      scale: 1 keeps the signal's size; far more makes a network that memorises.
    """

    scale: float = 1.0

    def initializer(self, seed: int) -> Any:
        """Keras' object."""
        return loaded_keras().initializers.VarianceScaling(self.scale, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Normal:
    """Initial weights of one standard deviation in all layers.

    Attributes:
      deviation: that standard deviation.
    """

    deviation: float = 0.01

    def initializer(self, seed: int) -> Any:
        """Keras' object."""
        return loaded_keras().initializers.RandomNormal(stddev=self.deviation, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a target is trained.

    Attributes:
      epochs: passes over the members.
      batch_size: records a step.
      optimizer: Keras' name of it.
      learning_rate: constant.
      weight_decay: decoupled; 0 for none.
    """

    epochs: int = 50
    batch_size: int = 32
    optimizer: Literal["adam", "sgd", "rmsprop"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0

    def train(self, model: Any, x: NDArray, y: NDArray) -> None:
        """Trains a built classifier, whose output is a softmax."""
        keras = loaded_keras()
        named = {
            "adam": keras.optimizers.Adam,
            "sgd": keras.optimizers.SGD,
            "rmsprop": keras.optimizers.RMSprop,
        }
        decay = self.weight_decay or None
        optimizer = named[self.optimizer](self.learning_rate, weight_decay=decay)
        model.compile(optimizer, "sparse_categorical_crossentropy")
        with jax.numpy_rank_promotion("allow"):  # Keras relies on it
            model.fit(
                x.astype(np.float32), y, batch_size=self.batch_size, epochs=self.epochs, verbose=0
            )


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """A network of Dense layers `hidden_1`, ..., `out`.

    Attributes:
      widths: units of the hidden layers.
      activation: of the hidden layers.
      initial: the scale of the initial weights.
      training: how it is trained.
    """

    widths: tuple[int, ...] = (64,)
    activation: Literal["tanh", "relu"] = "tanh"
    initial: Variance | Normal = Variance()
    training: Training = Training()

    def built(self, shape: tuple[int, ...], *, n_classes: int, seed: int) -> Any:
        """A Keras model for records of this shape, not trained yet."""
        keras = loaded_keras()
        layers = [keras.layers.Input(shape)]
        layers += [keras.layers.Flatten(name="flatten")] if len(shape) > 1 else []
        return keras.Sequential(layers + _dense(self, n_classes, seed), name="mlp")

    def trained(self, x: NDArray, y: NDArray, *, n_classes: int, seed: int) -> Any:
        """A Keras model, trained on all of `x` `[n, ...]` and `y` `[n]`."""
        model = self.built(x.shape[1:], n_classes=n_classes, seed=seed)
        self.training.train(model, x, y)
        return model


@dataclass(frozen=True, kw_only=True)
class Cnn:
    """A network of convolutions `conv_1`, ... and Dense layers `hidden_1`, ..., `out`.

    Attributes:
      filters: channels of the convolutions.
      kernel: width of their square kernels.
      pooling: max-pooling after each, over so many positions each way; 1 for none.
      widths: units of the hidden Dense layers.
      activation: of all but the last layer.
      initial: the scale of the initial weights.
      training: how it is trained.
    """

    filters: tuple[int, ...] = (16,)
    kernel: int = 3
    pooling: int = 1
    widths: tuple[int, ...] = (64,)
    activation: Literal["tanh", "relu"] = "tanh"
    initial: Variance | Normal = Variance()
    training: Training = Training()

    def built(self, shape: tuple[int, ...], *, n_classes: int, seed: int) -> Any:
        """A Keras model for records of this shape, not trained yet."""
        if len(shape) != 3:
            raise ValueError(
                f"records have shape {shape}, and a Cnn takes (height, width, channels). Use an "
                "Mlp, or give the records their channels' axis."
            )
        keras = loaded_keras()
        layers = [keras.layers.Input(shape)]
        for i, channels in enumerate(self.filters, start=1):
            layers.append(
                keras.layers.Conv2D(
                    channels,
                    self.kernel,
                    activation=self.activation,
                    kernel_initializer=self.initial.initializer(seed + i),
                    name=f"conv_{i}",
                )
            )
            if self.pooling > 1:
                layers.append(keras.layers.MaxPooling2D(self.pooling, name=f"pool_{i}"))
        layers.append(keras.layers.Flatten(name="flatten"))
        dense = _dense(self, n_classes, seed + len(self.filters))
        return keras.Sequential(layers + dense, name="cnn")

    def trained(self, x: NDArray, y: NDArray, *, n_classes: int, seed: int) -> Any:
        """A Keras model, trained on all of `x` `[n, height, width, channels]` and `y` `[n]`."""
        model = self.built(x.shape[1:], n_classes=n_classes, seed=seed)
        self.training.train(model, x, y)
        return model


def _dense(recipe: Mlp | Cnn, n_classes: int, seed: int) -> list[Any]:
    keras = loaded_keras()
    return [
        keras.layers.Dense(
            width,
            activation=activation,
            kernel_initializer=recipe.initial.initializer(seed + i),
            name=name,
        )
        for i, (width, activation, name) in enumerate(
            [
                *((w, recipe.activation, f"hidden_{i}") for i, w in enumerate(recipe.widths, 1)),
                (n_classes, "softmax", "out"),
            ],
            start=1,
        )
    ]
