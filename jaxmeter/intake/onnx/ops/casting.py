"""Casts between the types, the narrow ones of ml_dtypes among them."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx
from jax import lax

from jaxmeter.intake.onnx.ops.values import Table, backend, cast, is_known, jax_dtype, numpy_dtype

# Casts to these saturate, if asked to; infinities become the largest numbers too.
SATURATING = {
    np.dtype(getattr(ml_dtypes, f"float8_{name}"))
    for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")
}
_NARROW = {np.dtype(getattr(ml_dtypes, name)) for name in ("int2", "uint2", "int4", "uint4")}
_SCALE = np.dtype(ml_dtypes.float8_e8m0fnu)


def to_dtype(x: Any, dtype: np.dtype, saturate: int = 1, round_mode: str = "up") -> Any:
    """A cast by ONNX' rules."""
    if dtype == _SCALE:
        return _to_scale(x, saturate, round_mode)
    if dtype in SATURATING and saturate:
        limits = ml_dtypes.finfo(dtype)
        x = backend(x).clip(x, float(limits.min), float(limits.max))
    if dtype in _NARROW and not is_known(x):
        # Cut off the high bits, as NumPy does; XLA would clamp.
        x = _low_bits(cast(x, np.int32), dtype)
    return cast(x, dtype)


def _low_bits(x: Any, dtype: np.dtype) -> Any:
    """Whole numbers cut to the low bits that a narrow type has."""
    limits = ml_dtypes.iinfo(dtype)
    x = x & (2**limits.bits - 1)
    return jnp.where(x > int(limits.max), x - 2**limits.bits, x)


def _to_scale(x: Any, saturate: int, round_mode: str) -> Any:
    """A cast to float8_e8m0fnu, an exponent without sign or fraction."""
    bits = bits_as(cast(x, np.float32), np.dtype(np.uint32))
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    up = {
        "up": fraction > 0,
        "down": fraction < 0,
        "nearest": (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0)),
    }[round_mode]
    up &= exponent < (0xFE if saturate else 0xFF)
    return bits_as(cast(exponent + up, np.uint8), _SCALE)


def bits_as(x: Any, dtype: np.dtype) -> Any:
    """The bits of numbers read as another type of the same width."""
    if is_known(x):
        return np.ascontiguousarray(x).reshape(np.shape(x)).view(dtype)
    if np.bool_ in (x.dtype, dtype):  # a byte that is 0 or 1
        return x.astype(dtype)
    return lax.bitcast_convert_type(x, jax_dtype(dtype))


def cast_operator(x: Any, *, to: int | str, saturate: int = 1, round_mode: str = "up") -> Any:
    """Cast; opset 1 names the type."""
    number = onnx.TensorProto.DataType.Value(to.upper()) if isinstance(to, str) else to
    return to_dtype(x, numpy_dtype(number), saturate, round_mode)


def cast_like(x: Any, like: Any, *, saturate: int = 1, round_mode: str = "up") -> Any:
    """CastLike."""
    return to_dtype(x, np.dtype(like.dtype), saturate, round_mode)


def bit_cast(x: Any, *, to: int) -> Any:
    """BitCast."""
    dtype = numpy_dtype(to)
    if dtype.itemsize != x.dtype.itemsize:
        raise ValueError(f"{x.dtype} and {dtype} differ in width.")
    return bits_as(x, dtype)


TABLE: Table = {"BitCast": bit_cast, "Cast": cast_operator, "CastLike": cast_like}
