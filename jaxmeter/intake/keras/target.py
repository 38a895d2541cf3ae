"""Keras 3 models on their own JAX backend, as targets.

Nothing is set on the caller's model and none of its arrays is kept. This module imports Keras;
reach it through `jaxmeter.intake`, which sees to the backend first.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import Array

from jaxmeter.intake.adapter import as_target
from jaxmeter.intake.heads import Choice, ProbeOutputs
from jaxmeter.intake.keras import internals
from jaxmeter.intake.keras.forward import ForwardPass, runner
from jaxmeter.intake.keras.model import (
    checked_input,
    layers_of,
    outputs_of,
    smallest_table,
    trained_of,
    variables_of,
)
from jaxmeter.intake.safety.programs import computed
from jaxmeter.target import Source, Target


def from_keras(model: Any, origin: str, output: Choice | None = None) -> Target:
    """A target from a built Keras 3 model whose backend is JAX.

    Functional and Sequential models give every layer of `model.layers` (one called several times:
    its last output; one with several outputs: the first). A nested model's layers stand before it,
    as "inner/dense"; other composite layers (Bidirectional, blocks of one's own) are one layer.
    Subclassed models give the layers they hold as attributes, also in lists and dicts.

    Variables made to be trained are `params` even if their layer was frozen later: whoever has the
    model can differentiate by them all the same. The rest (BatchNorm moments, seeds) is `state`.
    Both are copies: the model may be trained, used or deleted afterwards.

    Args:
      model: the model, with one input.
      origin: what to record as its origin.
      output: what to audit, see `load_target`.

    Raises:
      ValueError: if the model is not a classifier that can be audited; the message says why.
    """
    shape, dtype = checked_input(model)
    layers = layers_of(model)
    variables = variables_of(model, layers)
    made_to_train = trained_of(model)
    params: dict[str, Array] = {}
    state: dict[str, Array] = {}
    for name, variable in variables.items():
        trainable = id(variable) in made_to_train and jnp.issubdtype(variable.dtype, jnp.floating)
        (params if trainable else state)[name] = jnp.array(variable.value)
    names = {id(layer): name for name, layer in layers.items()}
    run = runner(model)
    truncated = _is_truncated(model)
    quiet = _unwarned if truncated else contextlib.nullcontext

    def forward(params: dict[str, Array], state: dict[str, Array], x: Array) -> ProbeOutputs:
        values = [(variables[name], value) for name, value in (*params.items(), *state.items())]
        seen = ForwardPass(names, x)
        with jax.numpy_rank_promotion("allow"), quiet(), keras.StatelessScope(values):
            found = outputs_of(model, run(seen, x))
        return ProbeOutputs(
            outputs={name: seen.final(value) for name, value in found.items()},
            layers={k: seen.final(seen.layers[k]) for k in layers if k in seen.layers},
            takes_tokens=seen.takes_tokens,
        )

    def original(x: np.ndarray) -> dict[str, Array]:
        def run(x: Array) -> dict[str, Array]:
            with keras.StatelessScope():
                return outputs_of(model, model(x, training=False))

        # Keras alone would keep every layer's output until the last is there.
        with jax.numpy_rank_promotion("allow"), quiet():
            return computed(f"Keras' own pass over {len(x)} records", run, jnp.asarray(x))

    return as_target(
        forward,
        params,
        state,
        shape=shape,
        dtype=dtype,
        original=original,
        output=output,
        tokens=smallest_table(model),
        framework="Keras",
        note="; its float64 parts run in float32" if truncated else "",
        source=Source(
            route="keras-jax",
            origin=origin,
            versions=(("keras", keras.__version__), ("jax", jax.__version__)),
        ),
    )


def _is_truncated(model: Any) -> bool:
    """Whether the model asks for float64 where JAX is set to do without."""
    asked = {str(getattr(part, "dtype", "")) for part in internals.all_layers(model)}
    return "float64" in asked and jax.dtypes.canonicalize_dtype("float64") != "float64"


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Without JAX's warning, once an operation, that float64 becomes float32; `Source` says it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype")
        yield
