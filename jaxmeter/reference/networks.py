"""Small networks fitted on batches that are drawn as they are needed, from arrays of any size."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray


def logistic(outputs: Array, truth: Array) -> Array:
    """Cross-entropy of the first output, a logit."""
    return jax.nn.softplus(outputs[:, 0]) - truth * outputs[:, 0]


_CHUNK = 64  # steps a program; its batches are drawn on the host
_ROWS = 4096  # records scored at once
_SAMPLE = 1 << 14  # draws that the features' scale is taken from
_FARTHEST = 10.0  # standard deviations; beyond, features are cut off

Draw = Callable[[np.random.Generator, int], tuple[NDArray, NDArray]]
Loss = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A dense network with ReLU and how it is fitted: AdamW, cosine decay to zero.

    Attributes:
      widths: hidden layers.
      steps: of the optimiser; nothing is chosen on other records.
      batch_size: records a step.
      learning_rate: at the start.
      weight_decay: of AdamW.

    >>> NetworkConfig(steps=100).widths
    (64, 64)
    """

    widths: tuple[int, ...] = (64, 64)
    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        """Checks the ranges."""
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.steps < 1 or self.batch_size < 2 or any(width < 1 for width in self.widths):
            raise ValueError(f"steps, batch_size or widths are too small: {self}.")


class _Perceptron(nn.Module):
    widths: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)


class Network(NamedTuple):
    """A fitted network; `network(features)` is `[n, outputs]`, float64."""

    params: Any
    mean: NDArray
    scale: NDArray
    config: NetworkConfig
    outputs: int

    def __call__(self, features: NDArray) -> NDArray:
        """Applies it in blocks of rows."""
        n = len(features)
        found = np.empty((n, self.outputs))
        for start in range(0, n, _ROWS):
            block = self._scaled(features[start : start + _ROWS])
            rows = len(block)
            if rows < min(n, _ROWS):  # the last block, as long as the others: one compilation
                block = np.concatenate([block, np.zeros((_ROWS - rows, block.shape[1]), "f")])
            scored = _applied(self.params, block, config=self.config, outputs=self.outputs)
            found[start : start + rows] = np.asarray(scored)[:rows]
        return found

    def _scaled(self, features: NDArray) -> NDArray:
        standard = (features.astype(np.float64) - self.mean) / self.scale
        return np.clip(standard, -_FARTHEST, _FARTHEST).astype(np.float32)


def fitted(key: Array, draw: Draw, loss: Loss, *, outputs: int, config: NetworkConfig) -> Network:
    """A network that minimises the mean of `loss(outputs [b, o], truth [b, ...])` over draws.

    Args:
      key: PRNG key, consumed: initial weights and draws.
      draw: `(generator, size) -> (features [size, d], truth [size, ...])`.
      loss: one number a record; the same function object for the same loss, or it is compiled anew.
      outputs: of the network.
      config: its shape and its fitting.

    Raises:
      ValueError: if the loss is not finite in the end.
    """
    weights, draws = jax.random.split(key)
    random = np.random.default_rng(np.asarray(jax.random.key_data(draws)))
    features, _ = draw(random, _SAMPLE)
    mean = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1), scale, 1.0)
    network = Network(None, mean, scale, config, outputs)
    options: dict[str, Any] = {"config": config, "outputs": outputs}
    carry = _started(weights, jnp.zeros((1, len(mean))), **options)
    value = jnp.nan
    for start in range(0, config.steps, _CHUNK):
        steps = min(_CHUNK, config.steps - start)
        features, truth = draw(random, steps * config.batch_size)
        split = (steps, config.batch_size)
        batches = network._scaled(features).reshape(*split, -1)
        truth = truth.astype(np.float32).reshape(*split, *truth.shape[1:])
        carry, value = _advanced(carry, batches, truth, loss=loss, **options)
    if not np.isfinite(value):
        raise ValueError(
            f"fitting diverged: the loss is {value}. Lower the learning rate, or check the "
            "features for extreme values."
        )
    return network._replace(params=carry[0])


def _optimizer(config: NetworkConfig) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return optax.adamw(schedule, weight_decay=config.weight_decay)


@partial(jax.jit, static_argnames=("config", "outputs"))
def _started(key: Array, x: Array, *, config: NetworkConfig, outputs: int) -> tuple[Any, Any]:
    params = _Perceptron(config.widths, outputs).init(key, x)
    return params, _optimizer(config).init(params)


@partial(jax.jit, static_argnames=("config", "outputs"))
def _applied(params: Any, x: Array, *, config: NetworkConfig, outputs: int) -> Array:
    return _Perceptron(config.widths, outputs).apply(params, x)  # type: ignore[return-value]


@partial(jax.jit, static_argnames=("loss", "config", "outputs"))
def _advanced(
    carry: tuple[Any, Any],
    features: Array,
    truth: Array,
    *,
    loss: Loss,
    config: NetworkConfig,
    outputs: int,
) -> tuple[tuple[Any, Any], Array]:
    """Steps `[s]` on batches `[s, b, ...]`; the last batch's loss."""
    optimizer = _optimizer(config)

    def mean_loss(params: Any, x: Array, t: Array) -> Array:
        return loss(_applied(params, x, config=config, outputs=outputs), t).mean()

    def step(carry: tuple[Any, Any], batch: tuple[Array, Array]) -> tuple[tuple[Any, Any], Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(mean_loss)(params, *batch)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    carry, values = jax.lax.scan(step, carry, (features, truth))
    return carry, values[-1]
