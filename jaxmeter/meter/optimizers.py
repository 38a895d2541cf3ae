"""The six optimisers of ML Privacy Meter, with the constants that TensorFlow 2.1 gave them."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

_EPSILON = 1e-7  # of all of TensorFlow 2.1's Keras optimisers


class AdamState(NamedTuple):
    """Moments of the gradients, and the number of steps."""

    steps: Array
    mean: Any
    square: Any


def keras_adam(learning_rate: float) -> optax.GradientTransformation:
    """Adam as Keras writes it: epsilon is added to the root of the moment *before* its correction.

    Kingma and Ba 2015 (arXiv:1412.6980), end of section 2. optax adds it after the correction,
    which differs by a factor of 30 in epsilon at the first step, and squared errors of a fresh
    network have gradients that small.
    """

    def init(params: Any) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(gradients: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        count = state.steps + 1
        mean = optax.tree.update_moment(gradients, state.mean, 0.9, 1)
        square = optax.tree.update_moment(gradients, state.square, 0.999, 2)
        rate = learning_rate * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        moves = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + _EPSILON), mean, square)
        return moves, AdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


# Name -> from the learning rate. "momentum" is Nesterov's, without decay: the decay of 0.0005 that
# the tool wrote as SGD's third argument is `nesterov`.
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "adam": keras_adam,
    "adadelta": lambda rate: optax.adadelta(rate, rho=0.95, eps=_EPSILON),
    "adagrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=0.1, eps=_EPSILON),
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.9, eps=_EPSILON, eps_in_sqrt=False),
}


@lru_cache
def optimizer_of(name: str, learning_rate: float) -> optax.GradientTransformation:
    """The optimiser of this name in any case; the same object for the same arguments.

    Raises:
      ValueError: for another name, listing the six, or a learning rate that is not positive.
    """
    made = OPTIMIZERS.get(str(name).lower())
    if made is None:
        raise ValueError(f"there is no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}.")
    if not learning_rate > 0:
        raise ValueError(f"the learning rate is {learning_rate}; it must be positive.")
    return made(learning_rate)
