"""Arithmetic, comparisons, logic and bits, element by element.

Values known before the data are computed in NumPy, for they may be shapes. Before opset 7 a second
operand was only broadcast where `broadcast=1` said so, from the axis `axis` on.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeter.intake.onnx.ops.values import Table, backend, cast, is_known


def _unary(name: str) -> Callable[..., Any]:
    """An operator that NumPy and JAX have under one name."""

    def apply(x: Any) -> Any:
        return getattr(backend(x), name)(x)

    return apply


def _binary(compute: str | Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """An operator on two operands: a name that NumPy and JAX share, or a function."""

    def apply(a: Any, b: Any, *, opset: int, broadcast: int = 0, axis: int | None = None) -> Any:
        if opset < 7 and broadcast and axis is not None:
            b = b.reshape(b.shape + (1,) * (a.ndim - axis % a.ndim - b.ndim))
        return getattr(backend(a, b), compute)(a, b) if isinstance(compute, str) else compute(a, b)

    return apply


def _variadic(name: str) -> Callable[..., Any]:
    """An operator on any number of operands."""

    def apply(*values: Any) -> Any:
        return reduce(getattr(backend(*values), name), values)

    return apply


# --- arithmetic ---------------------------------------------------------------------------------


def divide(a: Any, b: Any) -> Any:
    """Div; whole numbers are divided towards zero."""
    if not jnp.issubdtype(a.dtype, jnp.integer):
        return backend(a, b).true_divide(a, b)
    if not is_known(a, b):
        return lax.div(*jnp.broadcast_arrays(a, b))
    quotient = np.floor_divide(a, b)
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(quotient.dtype)


def modulo(a: Any, b: Any, *, fmod: int = 0) -> Any:
    """Mod: with the sign of the divisor, or with `fmod=1` of the dividend."""
    xp = backend(a, b)
    return xp.fmod(a, b) if fmod else xp.mod(a, b)


def power(x: Any, y: Any) -> Any:
    """Pow, of the type of the base.

    A known whole exponent is repeated multiplication, which has a gradient at negative bases too.
    """
    if is_known(x, y):
        whole = all(np.issubdtype(v.dtype, np.integer) for v in (x, y)) and np.all(y >= 0)
        return np.power(x, y if whole else y.astype(np.float64)).astype(x.dtype)
    if is_known(y) and y.size == 1 and y.ndim <= x.ndim:
        exponent = float(y.reshape(()))
        if exponent == 0.5 and jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.sqrt(x)
        if exponent.is_integer() and 0 <= exponent <= 16:
            return lax.integer_pow(x, int(exponent))
    return cast(jnp.power(x, y), x.dtype)


def reciprocal(x: Any) -> Any:
    """Reciprocal."""
    return 1 / x


def mean(*values: Any) -> Any:
    """Mean of its operands."""
    return _variadic("add")(*values) / len(values)


def sign(x: Any) -> Any:
    """Sign; 0 for 0."""
    return backend(x).sign(x)


def clip(x: Any, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """Clip; the bounds are attributes before opset 11. No gradient at the bounds, as for Relu."""
    low, high = (min if low is None else low), (max if high is None else high)
    xp = backend(x, low, high)
    if low is not None:
        low = cast(xp.asarray(low), x.dtype)
        x = xp.where(x <= low, low, x)
    if high is not None:
        high = cast(xp.asarray(high), x.dtype)
        x = xp.where(x >= high, high, x)
    return x


def round_half_even(x: Any) -> Any:
    """Round, halves to the even neighbour."""
    return backend(x).round(x)


# --- tests and choices --------------------------------------------------------------------------


def is_inf(x: Any, *, detect_negative: int = 1, detect_positive: int = 1) -> Any:
    """IsInf."""
    xp = backend(x)
    infinite = xp.isinf(x)
    if not detect_negative:
        infinite = infinite & (x > 0)
    return infinite if detect_positive else infinite & (x < 0)


def where(condition: Any, x: Any, y: Any) -> Any:
    """Where."""
    return backend(condition, x, y).where(condition, x, y)


# --- bits ---------------------------------------------------------------------------------------


def bit_shift(x: Any, y: Any, *, direction: str) -> Any:
    """BitShift; shifted by a negative number or its width or more, the sign's fill is left."""
    name = {"LEFT": "left_shift", "RIGHT": "right_shift"}[direction]
    xp = backend(x, y)
    width = x.dtype.itemsize * 8
    outside = (y < 0) | (y >= width)
    shifted = getattr(xp, name)(x, xp.where(outside, xp.zeros_like(y), y))
    fill = xp.right_shift(x, xp.asarray(width - 1, x.dtype))
    return xp.where(outside, fill if direction == "RIGHT" else xp.zeros_like(x), shifted)


TABLE: Table = {
    **{
        name.capitalize(): _unary(name)
        for name in (
            *("abs", "ceil", "floor", "exp", "log", "sqrt", "sin", "cos", "tan"),
            *("sinh", "cosh", "tanh"),
        )
    },
    **{
        name: _unary(f"arc{name[1:]}")
        for name in ("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh")
    },
    "Add": _binary("add"),
    "And": _binary("logical_and"),
    "BitShift": bit_shift,
    "BitwiseAnd": _binary("bitwise_and"),
    "BitwiseNot": _unary("bitwise_not"),
    "BitwiseOr": _binary("bitwise_or"),
    "BitwiseXor": _binary("bitwise_xor"),
    "Clip": clip,
    "Div": _binary(divide),
    "Equal": _binary("equal"),
    "Greater": _binary("greater"),
    "GreaterOrEqual": _binary("greater_equal"),
    "IsInf": is_inf,
    "IsNaN": _unary("isnan"),
    "Less": _binary("less"),
    "LessOrEqual": _binary("less_equal"),
    "Max": _variadic("maximum"),
    "Mean": mean,
    "Min": _variadic("minimum"),
    "Mod": modulo,
    "Mul": _binary("multiply"),
    "Neg": _unary("negative"),
    "Not": _unary("logical_not"),
    "Or": _binary("logical_or"),
    "Pow": _binary(power),
    "Reciprocal": reciprocal,
    "Round": round_half_even,
    "Sign": sign,
    "Sub": _binary("subtract"),
    "Sum": _variadic("add"),
    "Where": where,
    "Xor": _binary("logical_xor"),
}
