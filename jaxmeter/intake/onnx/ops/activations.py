"""Activation functions, each safe to differentiate everywhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmeter.intake.onnx.ops.values import Table


def _negative(x: Any) -> Any:
    """Its negative part, so that exponentials of it are finite, as are their gradients."""
    return jnp.where(x > 0, 0, x)


def relu(x: Any) -> Any:
    """Relu, whose gradient at 0 is 0."""
    return jax.nn.relu(x)


def leaky_relu(x: Any, *, alpha: float = 0.01) -> Any:
    """LeakyRelu."""
    return jnp.where(x >= 0, x, alpha * x)


def prelu(x: Any, slope: Any, *, opset: int) -> Any:
    """PRelu; before opset 7 the slopes belong to axis 1."""
    if opset < 7 and slope.size > 1:
        slope = slope.reshape(slope.shape + (1,) * (x.ndim - 2))
    return jnp.where(x >= 0, x, slope * x)


def elu(x: Any, *, alpha: float = 1.0) -> Any:
    """Elu."""
    return jnp.where(x > 0, x, alpha * jnp.expm1(_negative(x)))


def selu(x: Any, *, alpha: float | None = None, gamma: float | None = None, opset: int) -> Any:
    """Selu; opset 1 rounded the constants."""
    if alpha is None:
        alpha = 1.67326319217681884765625 if opset >= 6 else 1.6732
    if gamma is None:
        gamma = 1.05070102214813232421875 if opset >= 6 else 1.0507
    return gamma * elu(x, alpha=alpha)


def celu(x: Any, *, alpha: float = 1.0) -> Any:
    """Celu."""
    return jnp.where(x > 0, x, alpha * jnp.expm1(_negative(x) / alpha))


def gelu(x: Any, *, approximate: str = "none") -> Any:
    """Gelu, exact or through tanh."""
    return jax.nn.gelu(x, approximate={"none": False, "tanh": True}[approximate])


def hard_sigmoid(x: Any, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    """HardSigmoid."""
    y = alpha * x + beta
    return lax.clamp(jnp.zeros((), y.dtype), jnp.asarray(y), jnp.ones((), y.dtype))


def hard_swish(x: Any) -> Any:
    """HardSwish."""
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def mish(x: Any) -> Any:
    """Mish."""
    return x * jnp.tanh(jax.nn.softplus(x))


def swish(x: Any, *, alpha: float = 1.0) -> Any:
    """Swish."""
    return x * jax.nn.sigmoid(alpha * x)


def swiglu(a: Any, b: Any, *, alpha: float = 1.0) -> Any:
    """SwiGLU: Swish of the gate times the value."""
    return swish(a, alpha=alpha) * b


def shrink(x: Any, *, bias: float = 0.0, lambd: float = 0.5) -> Any:
    """Shrink."""
    shrunk = jnp.where(x > lambd, x - bias, jnp.where(x < -lambd, x + bias, 0))
    return shrunk.astype(x.dtype)


def thresholded_relu(x: Any, *, alpha: float = 1.0) -> Any:
    """ThresholdedRelu."""
    return jnp.where(x > alpha, x, 0)


def _real(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of real numbers that also takes whole ones, in their own type."""

    def apply(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return function(jnp.asarray(x))
        return function(jnp.asarray(x, jnp.float32)).astype(x.dtype)

    return apply


def _over(function: Callable[..., Any]) -> Callable[..., Any]:
    """A softmax of a kind: over one axis, before opset 13 over all axes from one on."""

    def apply(x: Any, *, axis: int | None = None, opset: int) -> Any:
        if opset >= 13:
            return function(x, axis=-1 if axis is None else axis)
        first = (1 if axis is None else axis) % (x.ndim + 1)
        return function(x, axis=tuple(range(first, x.ndim)))

    return apply


def hardmax(x: Any, *, axis: int | tuple[int, ...]) -> Any:
    """Hardmax: 1 at the first largest entry."""
    if isinstance(axis, tuple):
        rows = x.reshape(*x.shape[: x.ndim - len(axis)], -1)
        return hardmax(rows, axis=-1).reshape(x.shape)
    return jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], dtype=x.dtype, axis=axis)


TABLE: Table = {
    "Celu": celu,
    "Elu": elu,
    "Erf": _real(lax.erf),
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Hardmax": _over(hardmax),
    "LeakyRelu": leaky_relu,
    "LogSoftmax": _over(jax.nn.log_softmax),
    "Mish": mish,
    "PRelu": prelu,
    "Relu": relu,
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": jax.nn.sigmoid,
    "Softmax": _over(jax.nn.softmax),
    "Softplus": jax.nn.softplus,
    "Softsign": jax.nn.soft_sign,
    "SwiGLU": swiglu,
    "Swish": swish,
    "ThresholdedRelu": thresholded_relu,
    # No ONNX operator: TensorFlow's, which tf2onnx lacks.
    "jaxmeter.Erfc": _real(lax.erfc),
}
