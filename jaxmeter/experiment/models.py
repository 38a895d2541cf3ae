"""Targets that a study trains itself, as configs that train themselves."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.intake.frameworks import keras as loaded_keras
from jaxmeter.jaxpr.lowering import lowered


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
      epochs: passes over the members, at most.
      batch_size: records a step.
      optimizer: Keras' name of it.
      learning_rate: at the start.
      weight_decay: decoupled; 0 for none.
      drops: `(epoch, learning rate)` pairs: from this epoch on, counted from 1, this rate.
      until: training ends with the first epoch whose accuracy, over its own steps, is this; 1 or
        more to train all epochs.
    """

    epochs: int = 50
    batch_size: int = 32
    optimizer: Literal["adam", "sgd", "rmsprop"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    drops: tuple[tuple[int, float], ...] = ()
    until: float = 1.0

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1.

        >>> [Training(drops=((3, 1e-4), (5, 1e-5))).rate(epoch) for epoch in (2, 3, 5)]
        [0.001, 0.0001, 1e-05]
        """
        begun = [(first, rate) for first, rate in self.drops if first <= epoch]
        return max(begun)[1] if begun else self.learning_rate

    def train(self, model: Any, x: NDArray, y: NDArray, *, quick: bool = False) -> None:
        """Trains a built classifier, whose output is a softmax.

        Args:
          model: a Keras model; its variables are changed.
          x: records `[n, ...]`.
          y: labels `[n]`.
          quick: convolutions take the forms of `lowering`. Equal but for rounding, and on CPU
            several times faster where images are smaller than kernels.
        """
        keras = loaded_keras()
        named = {
            "adam": keras.optimizers.Adam,
            "sgd": keras.optimizers.SGD,
            "rmsprop": keras.optimizers.RMSprop,
        }
        decay = self.weight_decay or None
        optimizer = named[self.optimizer](self.rate(1), weight_decay=decay)
        watched = self.until < 1
        model.compile(
            optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"] if watched else None
        )
        callbacks = []
        if self.drops:
            schedule = keras.callbacks.LearningRateScheduler(lambda i, _: self.rate(i + 1))
            callbacks.append(schedule)
        if watched:
            callbacks.append(_learnt(keras, self.until))
        if quick:
            plain = model.compute_loss_and_updates

            def compute(*args: Any, training: bool = False, **kwargs: Any) -> Any:
                return lowered(partial(plain, training=training))(*args, **kwargs)

            model.compute_loss_and_updates = compute
        with jax.numpy_rank_promotion("allow"):  # Keras relies on it
            model.fit(
                x.astype(np.float32),
                y,
                batch_size=self.batch_size,
                epochs=self.epochs,
                callbacks=callbacks,
                verbose=0,
            )
        if quick:
            del model.compute_loss_and_updates


def _learnt(keras: Any, accuracy: float) -> Any:
    """A callback that ends training when an epoch's accuracy is this."""

    def after(epoch: int, logs: Any) -> None:
        if logs["accuracy"] >= accuracy:
            callback.model.stop_training = True

    callback = keras.callbacks.LambdaCallback(on_epoch_end=after)
    return callback


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


@dataclass(frozen=True, kw_only=True)
class AlexNet:
    """AlexNet for 32x32 images as ML Privacy Meter's tutorial has it: 5 convolutions, one Dense.

    Layers `conv_1`, `pool_1`, `conv_2`, `pool_2`, `conv_3`, `conv_4`, `conv_5`, `pool_5`,
    `flatten`, `dropout`, `out`. The defaults are a recipe that memorises some 10,000 images in 20
    to 30 epochs; `AlexNet.tutorial()` has the tutorial's own.

    Attributes:
      dropout: before the last layer.
      l2: of all kernels, added to the loss.
      initial: the initial kernels.
      training: how it is trained.
    """

    dropout: float = 0.3
    l2: float = 0.0
    initial: Variance | Normal = Variance(scale=2.0)
    training: Training = Training(
        epochs=40, batch_size=128, learning_rate=5e-4, drops=((21, 5e-5),), until=0.99
    )

    @classmethod
    def tutorial(cls) -> Self:
        """The recipe of ML Privacy Meter's `tutorials/alexnet.py` (2020), for some 40,000 images.

        Adam at 1e-4, and 1e-5 after 26 epochs, for 100 epochs in batches of 128; kernels from N(0,
        0.01), L2 of 5e-4. A third rate in its schedule is in a branch that is never taken.
        """
        training = Training(epochs=100, batch_size=128, learning_rate=1e-4, drops=((27, 1e-5),))
        return cls(l2=5e-4, initial=Normal(deviation=0.01), training=training)

    def built(self, shape: tuple[int, ...], *, n_classes: int, seed: int) -> Any:
        """A Keras model for records of this shape, not trained yet."""
        if len(shape) != 3 or min(shape[:2]) < 29:
            raise ValueError(
                f"records have shape {shape}, and an AlexNet takes (height, width, channels) "
                "of at least 29x29 pixels: its strides and poolings leave nothing of less."
            )
        keras = loaded_keras()
        layers = keras.layers

        def settings(i: int) -> dict[str, Any]:
            return {
                "kernel_initializer": self.initial.initializer(seed + i),
                "kernel_regularizer": keras.regularizers.L2(self.l2) if self.l2 else None,
            }

        stack = [layers.Input(shape)]
        for i, (channels, kernel, stride, pooled) in enumerate(
            [(64, 11, 4, True), (192, 5, 1, True), (384, 3, 1, False), (256, 3, 1, False)]
            + [(256, 3, 1, True)],
            start=1,
        ):
            stack.append(
                layers.Conv2D(
                    channels,
                    kernel,
                    strides=stride,
                    padding="same",
                    activation="relu",
                    name=f"conv_{i}",
                    **settings(i),
                )
            )
            if pooled:
                stack.append(layers.MaxPooling2D(2, name=f"pool_{i}"))
        stack.append(layers.Flatten(name="flatten"))
        if self.dropout:
            stack.append(layers.Dropout(self.dropout, seed=seed, name="dropout"))
        stack.append(layers.Dense(n_classes, "softmax", name="out", **settings(6)))
        return keras.Sequential(stack, name="alexnet")

    def trained(self, x: NDArray, y: NDArray, *, n_classes: int, seed: int) -> Any:
        """A Keras model, trained on all of `x` `[n, height, width, channels]` and `y` `[n]`."""
        model = self.built(x.shape[1:], n_classes=n_classes, seed=seed)
        self.training.train(model, x, y, quick=True)
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
