"""What the operators share: NumPy or JAX, static values, axes, dtypes."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from jaxmeter.intake.safety import budget

Table = dict[str, Callable[..., Any]]


def is_known(*values: Any) -> bool:
    """Whether values are all known before the data are."""
    return not any(isinstance(v, jax.Array) for v in jax.tree.leaves(values))


def affordable(shape: Iterable[int], dtype: Any = np.float64, copies: int = 1) -> tuple[int, ...]:
    """A shape, if there is room for an array of it, or for several; to be asked before it is made.

    Raises:
      TooExpensive: if there is none.
    """
    shape = tuple(int(d) for d in shape)
    nbytes = copies * math.prod(max(d, 0) for d in shape) * np.dtype(dtype).itemsize
    budget.room(nbytes, f"an array of shape {shape}")
    return shape


def backend(*values: Any) -> Any:
    """`numpy` for values known before the data, so that int64 stays exact; else `jax.numpy`."""
    return np if is_known(*values) else jnp


def known(value: Any, what: str) -> np.ndarray:
    """An input that has to be known before the data are."""
    if not is_known(value):
        raise ValueError(f"its {what} depends on the data; it must be known when JAX traces.")
    return np.asarray(value)


def ints(value: Any, what: str) -> list[int]:
    """A known input or attribute (axes, a shape, pads) as Python integers."""
    return [int(v) for v in known(value, what).reshape(-1)]


def optional_ints(value: Any, what: str) -> list[int] | None:
    """`ints` of a value that may be left out."""
    return None if value is None else ints(value, what)


def positive_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Axes counted from the front."""
    wrong = [axis for axis in axes if not -ndim <= axis < ndim]
    if wrong:
        raise ValueError(f"axis {wrong[0]} is out of range for {ndim} dimensions.")
    return tuple(axis % ndim for axis in axes)


def numpy_dtype(element_type: int) -> np.dtype:
    """The dtype of a number out of `onnx.TensorProto`."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type))


def jax_dtype(dtype: Any) -> np.dtype:
    """A dtype as JAX has it: 32 bits where 64 are switched off."""
    return jax.dtypes.canonicalize_dtype(dtype)


def cast(value: Any, dtype: Any) -> Any:
    """A value in another dtype; known ones exactly, also without JAX's 64-bit mode."""
    if is_known(value):
        return np.asarray(value).astype(dtype)
    return value.astype(jax_dtype(dtype))
