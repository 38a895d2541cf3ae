"""Gathering and scattering; negative indices count from the end."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeter.intake.onnx.ops.values import Table, backend, cast, is_known, known

# --- gathering ----------------------------------------------------------------------------------


def gather(data: Any, indices: Any, *, axis: int = 0) -> Any:
    """Gather: whole slices along an axis."""
    indices = _from_front(indices, data.shape[axis])
    if is_known(data, indices):
        return np.take(data, indices, axis=axis)
    if indices.ndim == 0 and is_known(indices):
        # A plain slice, which XLA fuses.
        return lax.index_in_dim(data, int(indices), axis % data.ndim, keepdims=False)
    return jnp.take(data, indices, axis=axis, mode="clip")


def gather_elements(data: Any, indices: Any, *, axis: int = 0) -> Any:
    """GatherElements: one entry for each index, elsewhere at the index' own place."""
    xp = backend(data, indices)
    indices = _from_front(indices, data.shape[axis])
    return data[_grid(xp, indices, axis % data.ndim)]


def gather_nd(data: Any, indices: Any, *, batch_dims: int = 0) -> Any:
    """GatherND: each last row of indices is a place, after some shared leading axes."""
    xp = backend(data, indices)
    depth = indices.shape[-1]
    grid = [
        xp.arange(n).reshape([-1 if i == axis else 1 for i in range(indices.ndim - 1)])
        for axis, n in enumerate(indices.shape[:batch_dims])
    ]
    places = [_from_front(indices[..., i], data.shape[batch_dims + i]) for i in range(depth)]
    return data[(*grid, *places)]


def _from_front(indices: Any, length: int) -> Any:
    """Indices with the negative ones counted from the front."""
    if jnp.issubdtype(indices.dtype, jnp.unsignedinteger):
        return indices
    return backend(indices).where(indices < 0, indices + length, indices)


def _grid(xp: Any, indices: Any, axis: int) -> tuple[Any, ...]:
    """The index of each entry's own place, but `indices` along one axis."""
    return tuple(
        indices
        if i == axis
        else xp.arange(n).reshape([-1 if i == j else 1 for j in range(indices.ndim)])
        for i, n in enumerate(indices.shape)
    )


# --- scattering ---------------------------------------------------------------------------------


def scatter_elements(
    data: Any, indices: Any, updates: Any, *, axis: int = 0, reduction: str = "none"
) -> Any:
    """ScatterElements (Scatter before opset 11), the inverse of `gather_elements`."""
    axis = axis % data.ndim
    indices = _from_front(indices, data.shape[axis])
    xp = backend(data, indices, updates)
    return _scattered(data, _grid(xp, indices, axis), updates, reduction)


def scatter_nd(data: Any, indices: Any, updates: Any, *, reduction: str = "none") -> Any:
    """ScatterND, the inverse of `gather_nd`."""
    places = tuple(_from_front(indices[..., i], data.shape[i]) for i in range(indices.shape[-1]))
    return _scattered(data, places, updates, reduction)


def _scattered(data: Any, places: tuple[Any, ...], updates: Any, reduction: str) -> Any:
    if is_known(data, places, updates):
        out = data.copy()
        if reduction == "none":
            out[places] = updates
        else:
            _NUMPY[reduction].at(out, places, updates)
        return out
    data, updates = jnp.asarray(data), cast(jnp.asarray(updates), data.dtype)
    if reduction == "mul":
        return _multiplied(data, places, updates)
    return getattr(data.at[places], _JAX[reduction])(updates)


def _multiplied(data: Any, places: tuple[Any, ...], updates: Any) -> Any:
    """One factor after the other: where several meet, JAX has no gradient for all at once."""
    rows = [place.reshape(-1) for place in jnp.broadcast_arrays(*places)]
    count = rows[0].size
    factors = updates.reshape(count, *data.shape[len(places) :])

    def step(out: Any, row: Any) -> tuple[Any, None]:
        *place, factor = row
        return out.at[tuple(place)].multiply(factor, unique_indices=True), None

    return lax.scan(step, data, (*rows, factors))[0]


_NUMPY = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
_JAX = {"none": "set", "add": "add", "max": "max", "min": "min"}


def tensor_scatter(
    cache: Any, update: Any, start: Any = None, *, axis: int = -2, mode: str = "linear"
) -> Any:
    """TensorScatter: each record's update written into its cache from an index on."""
    axis = axis % cache.ndim
    batch, length = cache.shape[0], cache.shape[axis]
    start = np.zeros(batch, np.int64) if start is None else start
    xp = backend(cache, update, start)
    places = start[:, None] + xp.arange(update.shape[axis])[None, :]
    if mode == "circular":
        places = places % length
    places = places.reshape([n if i in (0, axis) else 1 for i, n in enumerate(update.shape)])
    grid = list(_grid(xp, update, axis))
    grid[axis] = places
    return _scattered(cache, tuple(grid), update, "none")


# --- whose shapes depend on values --------------------------------------------------------------


def compress(x: Any, condition: Any, *, axis: int | None = None) -> Any:
    """Compress: the slices, or entries, at which a known condition holds."""
    kept = np.flatnonzero(known(condition, "condition"))
    if axis is None:
        return x.reshape(-1)[kept]
    return backend(x).take(x, kept, axis=axis)


def non_zero(x: Any) -> np.ndarray:
    """NonZero, of values known before the data."""
    return np.asarray(np.nonzero(known(x, "input")), np.int64)


def unique(
    x: Any, *, axis: int | None = None, sorted: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unique, of values known before the data; unsorted ones in order of appearance."""
    values, first, inverse, counts = np.unique(
        known(x, "input"), return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        rank = np.argsort(order)
        values = values.take(order, axis=0 if axis is None else axis)
        first, inverse, counts = first[order], rank[inverse], counts[order]
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


TABLE: Table = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": non_zero,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "Unique": unique,
}
