"""Normalisations, and Dropout, which is the identity here."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeter.intake.onnx.ops.pooling import power, root
from jaxmeter.intake.onnx.ops.values import (
    Table,
    affordable,
    is_known,
    jax_dtype,
    known,
    numpy_dtype,
)


def batch_normalization(
    x: Any,
    scale: Any,
    bias: Any,
    mean: Any,
    var: Any,
    *,
    consumed_inputs: Sequence[int] = (),
    epsilon: float = 1e-5,
    is_test: int = 0,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
    n_outputs: int,
    opset: int,
) -> Any:
    """BatchNormalization with the moments it has; in training mode, with those of the batch.

    Before opset 14 the mode is told by the number of outputs.
    """
    shape = (-1, *(1,) * (x.ndim - 2)) if spatial else x.shape[1:]
    if not (training_mode if opset >= 14 else n_outputs > 1):
        return _normalized(x, mean, var, scale, bias, epsilon, shape)
    axes = (0, *range(2, x.ndim)) if spatial else (0,)
    here, spread = jnp.mean(x, axis=axes), jnp.var(x, axis=axes)
    y = _normalized(x, here, spread, scale, bias, epsilon, shape)
    running = [
        (before * momentum + now * (1 - momentum)).astype(before.dtype)
        for before, now in ((jnp.asarray(mean), here), (jnp.asarray(var), spread))
    ]
    return (y, *running) if opset >= 14 else (y, *running, here, spread)


def _normalized(
    x: Any, mean: Any, var: Any, scale: Any, bias: Any, epsilon: float, shape: Sequence[int]
) -> Any:
    factor = scale * lax.rsqrt(jnp.asarray(var) + np.asarray(epsilon, var.dtype))
    y = (x - jnp.reshape(mean, shape)) * jnp.reshape(factor, shape) + jnp.reshape(bias, shape)
    return y.astype(x.dtype)


def instance_normalization(
    x: Any, scale: Any, bias: Any, *, consumed_inputs: Sequence[int] = (), epsilon: float = 1e-5
) -> Any:
    """InstanceNormalization: each map of each example by its own moments."""
    y = _standard(x, tuple(range(2, x.ndim)), epsilon)[0]
    shape = (-1, *(1,) * (x.ndim - 2))
    return y * jnp.reshape(scale, shape) + jnp.reshape(bias, shape)


def layer_normalization(
    x: Any,
    scale: Any,
    bias: Any = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Any, Any, Any]:
    """LayerNormalization; also its mean and one over its standard deviation."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    y, mean, inverse = _standard(_stashed(x, stash_type), axes, epsilon)
    y = y.astype(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_normalization(
    x: Any, scale: Any, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Any:
    """RMSNormalization."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = _stashed(x, stash_type)
    square = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
    return (wide * lax.rsqrt(square + np.asarray(epsilon, wide.dtype))).astype(x.dtype) * scale


def group_normalization(
    x: Any,
    scale: Any,
    bias: Any,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: int = 1,
    opset: int,
) -> Any:
    """GroupNormalization; its scale and bias are a group's until opset 21, then a channel's."""
    n, channels, *spatial = x.shape
    grouped = jnp.reshape(x, (n, num_groups, channels // num_groups, *spatial))
    wide = _stashed(grouped, stash_type) if opset >= 21 else grouped
    y = _standard(wide, tuple(range(2, grouped.ndim)), epsilon)[0].astype(x.dtype)
    each = (1, num_groups, -1, *(1,) * len(spatial))
    return jnp.reshape(y * jnp.reshape(scale, each) + jnp.reshape(bias, each), x.shape)


def mean_variance_normalization(x: Any, *, axes: Sequence[int] = (0, 2, 3)) -> Any:
    """MeanVarianceNormalization."""
    centred = x - jnp.mean(x, axis=tuple(axes), keepdims=True)
    deviation = root(jnp.mean(jnp.square(centred), axis=tuple(axes), keepdims=True), 2)
    return centred / (deviation + np.asarray(1e-9, x.dtype))


def lrn(x: Any, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int) -> Any:
    """LRN: by the squares of the channels around."""
    before, rest = (size - 1) // 2, [(0, 0)] * (x.ndim - 2)
    around = lax.reduce_window(
        jnp.square(x),
        np.zeros((), x.dtype)[()],
        lax.add,
        (1, size, *(1,) * (x.ndim - 2)),
        (1,) * x.ndim,
        ((0, 0), (before, size - 1 - before), *rest),
    )
    return x / (bias + alpha / size * around) ** beta


def lp_normalization(x: Any, *, axis: int = -1, p: int = 2) -> Any:
    """LpNormalization; what has norm 0 stays 0."""
    norm = root(jnp.sum(power(x, p), axis=axis, keepdims=True), p)
    return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1), 0).astype(x.dtype)


def dropout(
    x: Any,
    ratio: Any = None,
    training_mode: Any = None,
    *,
    consumed_inputs: Sequence[int] = (),
    is_test: int = 0,
    seed: int = 0,
    n_outputs: int,
    opset: int,
) -> Any:
    """Dropout in inference: its input. In training, where it drops anything, it is refused.

    The ratio was an attribute until opset 12; before that the mode was the caller's affair.
    """
    training = training_mode is not None and bool(known(training_mode, "training_mode"))
    if training and (ratio is None or not is_known(ratio) or ratio != 0):
        raise ValueError("it is in training mode, and so random.")
    if n_outputs == 1:
        return x
    dtype = bool if opset >= 10 else x.dtype
    return x, np.ones(affordable(x.shape, dtype), dtype)


def _standard(x: Any, axes: Sequence[int], epsilon: float) -> tuple[Any, Any, Any]:
    """Centred and scaled; the mean; one over the standard deviation."""
    mean = jnp.mean(x, axis=axes, keepdims=True)
    centred = x - mean
    var = jnp.mean(jnp.square(centred), axis=axes, keepdims=True)
    inverse = lax.rsqrt(var + np.asarray(epsilon, x.dtype))
    return centred * inverse, mean, inverse


def _stashed(x: Any, stash_type: int) -> Any:
    """In the precision that moments are to be computed in, at least its own."""
    dtype = jax_dtype(numpy_dtype(stash_type))
    return jnp.asarray(x).astype(jnp.promote_types(x.dtype, dtype))


TABLE: Table = {
    "BatchNormalization": batch_normalization,
    "Dropout": dropout,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
