"""Quantised numbers and products of them; rounding has no gradient."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxmeter.intake.onnx.ops.casting import to_dtype
from jaxmeter.intake.onnx.ops.values import Table, affordable, backend, cast, numpy_dtype

_UINT8 = np.dtype(np.uint8)


def _spread(value: Any, x: Any, axis: int, block_size: int) -> Any:
    """A scale or zero point for all, for each entry of an axis, or for each block of it."""
    if value.size == 1:
        return value.reshape(())
    if block_size:
        affordable((*value.shape, block_size), value.dtype)
        repeated = backend(value).repeat(value, block_size, axis=axis)
        return repeated[(slice(None),) * (axis % x.ndim) + (slice(x.shape[axis]),)]
    return value.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def _rounded(x: Any, zero_point: Any, dtype: np.dtype) -> Any:
    """Numbers rounded to a whole type, beyond its ends to the ends."""
    limits = ml_dtypes.iinfo(dtype)
    xp = backend(x, zero_point)
    whole = xp.rint(x)
    if zero_point is not None:
        whole = whole + cast(zero_point, x.dtype)
    return cast(cast(xp.clip(whole, int(limits.min), int(limits.max)), np.int32), dtype)


def quantize_linear(
    x: Any,
    scale: Any,
    zero_point: Any = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Any:
    """QuantizeLinear: `x / scale + zero_point` in a narrow type."""
    if zero_point is not None:
        dtype = np.dtype(zero_point.dtype)
        zero_point = _spread(zero_point, x, axis, block_size)
    else:
        dtype = numpy_dtype(output_dtype) if output_dtype else _UINT8
    scale = _spread(scale, x, axis, block_size)
    if precision:
        x, scale = (cast(v, numpy_dtype(precision)) for v in (x, scale))
    x = x / scale
    if jnp.issubdtype(dtype, jnp.integer):
        return _rounded(x, zero_point, dtype)
    if zero_point is not None:
        x = x + cast(zero_point, x.dtype)
    return to_dtype(x, dtype, saturate)


def dequantize_linear(
    x: Any,
    scale: Any,
    zero_point: Any = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Any:
    """DequantizeLinear: `(x - zero_point) scale`."""
    accurate = np.float64 if scale.dtype == np.float64 else np.float32
    wide = cast(x, accurate)
    if zero_point is not None:
        wide = wide - cast(_spread(zero_point, x, axis, block_size), accurate)
    dtype = numpy_dtype(output_dtype) if output_dtype else scale.dtype
    return cast(wide * _spread(scale, x, axis, block_size), dtype)


def dynamic_quantize_linear(x: Any) -> tuple[Any, Any, Any]:
    """DynamicQuantizeLinear: to uint8, with scale and zero point from the range of the data."""
    xp = backend(x)
    low, high = xp.minimum(x.min(), 0), xp.maximum(x.max(), 0)
    scale = cast(xp.where(high == low, 1, high - low) / 255, x.dtype)
    zero_point = cast(xp.rint(xp.clip(-low / scale, 0, 255)), np.uint8)
    return _rounded(x / scale, zero_point, _UINT8), scale, zero_point


def matmul_integer(a: Any, b: Any, a_zero_point: Any = None, b_zero_point: Any = None) -> Any:
    """MatMulInteger: in int32; zero points may be one for each row of `a`, column of `b`."""
    left, right = cast(a, np.int32), cast(b, np.int32)
    if a_zero_point is not None:
        zero = cast(a_zero_point, np.int32)
        left = left - (zero[..., None] if zero.ndim == 1 and zero.size > 1 else zero)
    if b_zero_point is not None:
        right = right - cast(b_zero_point, np.int32)
    return backend(left, right).matmul(left, right)


def qlinear_matmul(
    a: Any,
    a_scale: Any,
    a_zero_point: Any,
    b: Any,
    b_scale: Any,
    b_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
) -> Any:
    """QLinearMatMul: a product of quantised matrices, quantised."""
    product = matmul_integer(a, b, a_zero_point, b_zero_point)
    scale = cast(a_scale, np.float32) * cast(b_scale, np.float32) / cast(y_scale, np.float32)
    return _rounded(product * scale, y_zero_point, np.dtype(y_zero_point.dtype))


TABLE: Table = {
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
    "QuantizeLinear": quantize_linear,
}
