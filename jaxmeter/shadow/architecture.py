"""What reference models are made of: fresh variables, a training step's forward pass, a target."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxmeter.intake.loading import open_keras
from jaxmeter.target import Target, from_flax, from_function

Params = dict[str, Array]
State = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """A kind of model, as pure functions. Made by `of_keras`, `of_flax` and `of_functions`.

    Attributes:
      init: `key -> (params, state)`, fresh variables by the names of `target`.
      forward: `(params, state, x, key) -> (logits, state, penalty)`: the pass of a training step,
        with whatever training mode draws (from `key` or from seeds in the state), the state after
        it, and a scalar that is added to the mean loss (weight decay of regularisers).
      target: one model of this kind; what references have in common with it is its `apply` and
        `spec`.
      frozen: names of parameters that are not trained.
      project: what a step's parameters are put through (constraints); None for nothing.
    """

    init: Callable[[Array], tuple[Params, State]] = field(repr=False)
    forward: Callable[[Params, State, Array, Array], tuple[Array, State, Array]] = field(repr=False)
    target: Target = field(repr=False)
    frozen: tuple[str, ...] = ()
    project: Callable[[Params], Params] | None = field(default=None, repr=False)


def of_keras(model: Any) -> Architecture:
    """The architecture of a built Keras 3 model on the JAX backend; its weights do not count.

    Every reference draws its initial weights by the model's own initialisers, whatever seeds they
    were given. Layers that are frozen (`trainable = False`) or were adapted to data
    (`Normalization`) keep the model's values. Training mode is Keras' own: BatchNorm moments are
    updated, Dropout draws, regularisers and `add_loss` add to the loss, constraints hold.

    Raises:
      TypeError: if it is not a Keras 3 model.
      RuntimeError: if Keras runs on another backend.
      ValueError: if it cannot be audited, made again from its config, or run in training mode.

    >>> from jaxmeter.intake.frameworks import keras  # keras, on JAX if it is not loaded yet
    >>> out = keras().layers.Dense(3, "softmax", name="out")
    >>> net = keras().Sequential([keras().Input((4,)), out])
    >>> of_keras(net).target.spec.variables
    ('out/kernel', 'out/bias')
    """
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(model, getattr(keras, "Model", ())):
        raise TypeError(
            f"of_keras was given a {type(model).__name__}; it takes a live, built Keras 3 model. "
            "For a Flax module there is of_flax, for JAX functions of_functions."
        )
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            f"Keras runs on {keras.backend.backend()} in this process, and references are trained "
            "by JAX. Set KERAS_BACKEND=jax before Keras is imported."
        )
    made = importlib.import_module("jaxmeter.intake.keras.retraining").anew(model)
    return Architecture(**made._asdict())


def of_file(
    path: str | PathLike[str],
    *,
    trust: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
) -> Architecture:
    """The architecture of the Keras 3 model in a `.keras` or `.h5` file; its weights do not count.

    Args:
      path: the file, such as the target's own.
      trust: as for `jaxmeter.load_target`.
      custom_objects: likewise.
      max_bytes: likewise.
      max_seconds: likewise.

    Raises:
      FileNotFoundError: if there is no such file.
      RuntimeError, ValueError: as `of_keras`; or if Keras 3 cannot open it.

    >>> of_file("model.keras")
    Traceback (most recent call last):
    FileNotFoundError: there is no file model.keras...
    """
    return of_keras(
        open_keras(
            path,
            trust=trust,
            custom_objects=custom_objects,
            max_bytes=max_bytes,
            max_seconds=max_seconds,
        )
    )


def of_flax(
    module: Any,
    *,
    input_shape: Sequence[int],
    training: Mapping[str, Any] | None = None,
    inference: Mapping[str, Any] | None = None,
    rngs: Sequence[str] = ("dropout",),
    input_dtype: str = "float32",
) -> Architecture:
    """The architecture of a `flax.linen` module.

    Args:
      module: called as `module.apply(variables, x, **mode)`, giving logits `[n, classes]`.
      input_shape: shape of one record.
      training: keywords of the call in training mode, e.g. `{"train": True}`.
      inference: keywords of the call in inference mode, e.g. `{"train": False}`.
      rngs: names of the random streams that training mode draws from.
      input_dtype: what records are cast to.

    >>> import flax.linen as nn
    >>> of_flax(nn.Dense(3), input_shape=(4,)).target.spec.variables
    ('kernel', 'bias')
    """
    training, inference = dict(training or {}), dict(inference or {})
    one = jnp.zeros((1, *input_shape), input_dtype)

    def variables_of(key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, 1 + len(rngs))
        return dict(module.init(dict(zip(("params", *rngs), keys, strict=True)), one, **inference))

    variables = variables_of(jax.random.key(0))
    target = from_flax(
        module, variables, input_shape=input_shape, input_dtype=input_dtype, **inference
    )
    collections = [name for name in variables if name != "params"]

    def init(key: Array) -> tuple[Params, State]:
        drawn = variables_of(key)
        flat = flatten_dict(drawn["params"], sep="/")
        return flat, {name: drawn[name] for name in collections}

    def forward(params: Params, state: State, x: Array, key: Array) -> tuple[Array, State, Array]:
        keys = dict(zip(rngs, jax.random.split(key, max(1, len(rngs))), strict=False))
        nested = {"params": unflatten_dict(params, sep="/"), **state}
        logits, after = module.apply(nested, x, **training, rngs=keys, mutable=collections)
        return logits, {name: after.get(name, state[name]) for name in collections}, jnp.zeros(())

    return Architecture(init=init, forward=forward, target=target)


def of_functions(
    init: Callable[[Array], Any],
    apply: Callable[..., Any],
    *,
    train: Callable[..., tuple[Array, State, Array]] | None = None,
    input_shape: Sequence[int],
    input_dtype: str = "float32",
) -> Architecture:
    """The architecture of JAX functions.

    Args:
      init: `key -> params`, or `key -> (params, state)`; (nested) dicts of arrays.
      apply: `(params, state, x) -> logits` in inference mode, as for `jaxmeter.from_function`.
      train: `(params, state, x, key) -> (logits, state, penalty)` in training mode; None if that
        is the same as inference.
      input_shape: shape of one record.
      input_dtype: what records are cast to.

    >>> net = of_functions(lambda key: {"w": jax.random.normal(key, (4, 3))},
    ...                    lambda params, state, x: x @ params["w"], input_shape=(4,))
    >>> net.target.spec.n_classes
    3
    """

    def pair(key: Array) -> tuple[Any, State]:
        made = init(key)
        return made if isinstance(made, tuple) else (made, {})

    params, state = pair(jax.random.key(0))
    target = from_function(apply, params, state, input_shape=input_shape, input_dtype=input_dtype)
    nested = any(isinstance(value, Mapping) for value in params.values())

    def drawn(key: Array) -> tuple[Params, State]:
        params, state = pair(key)
        return flatten_dict(params, sep="/") if nested else dict(params), state

    def forward(params: Params, state: State, x: Array, key: Array) -> tuple[Array, State, Array]:
        if train is None:
            return target.apply(params, state, x).logits, state, jnp.zeros(())
        return train(unflatten_dict(params, sep="/") if nested else params, state, x, key)

    return Architecture(init=drawn, forward=forward, target=target)
