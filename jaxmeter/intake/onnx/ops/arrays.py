"""Shapes and layouts: what moves, repeats, joins or makes arrays without computing with numbers."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmeter.intake.onnx.ops.values import (
    Table,
    affordable,
    backend,
    cast,
    ints,
    known,
    numpy_dtype,
    optional_ints,
    positive_axes,
)

# --- shapes -------------------------------------------------------------------------------------


def shape(x: Any, *, start: int = 0, end: int | None = None) -> np.ndarray:
    """Shape, or a part of it; always known before the data."""
    return np.asarray(x.shape, np.int64)[start:end]


def size(x: Any) -> np.ndarray:
    """Size."""
    return np.asarray(x.size, np.int64)


def reshape(x: Any, to: Any = None, *, shape: Any = None, allowzero: int = 0) -> Any:
    """Reshape; 0 keeps a dimension unless `allowzero`, -1 is what is left over."""
    wanted = ints(shape if to is None else to, "shape")
    if not allowzero:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(x: Any, *, axis: int = 1) -> Any:
    """Flatten to a matrix, split before an axis."""
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return x.reshape(rows, int(np.prod(x.shape[axis:], dtype=np.int64)))


def squeeze(x: Any, along: Any = None, *, axes: Any = None) -> Any:
    """Squeeze."""
    chosen = optional_ints(axes if along is None else along, "axes")
    return x.squeeze(None if chosen is None else positive_axes(chosen, x.ndim))


def unsqueeze(x: Any, at: Any = None, *, axes: Any = None) -> Any:
    """Unsqueeze; the axes count in the result."""
    chosen = ints(axes if at is None else at, "axes")
    places = positive_axes(chosen, x.ndim + len(chosen))
    rest = iter(x.shape)
    return x.reshape([1 if i in places else next(rest) for i in range(x.ndim + len(chosen))])


def transpose(x: Any, *, perm: list[int] | None = None) -> Any:
    """Transpose; without `perm` the axes are reversed."""
    return x.transpose(perm)


# --- joining, splitting, slicing ----------------------------------------------------------------


def concat(*values: Any, axis: int | None = None, opset: int) -> Any:
    """Concat; in opset 1 the axis could be left out."""
    if axis is None:
        if opset >= 4:
            raise ValueError("it has no axis.")
        axis = 1
    return backend(*values).concatenate(values, axis=axis)


def split(
    x: Any,
    sizes: Any = None,
    *,
    axis: int = 0,
    split: Any = None,
    num_outputs: int | None = None,
    n_outputs: int,
) -> tuple[Any, ...]:
    """Split, into parts of given sizes or equal ones (the last may be smaller)."""
    parts = optional_ints(split if sizes is None else sizes, "sizes")
    length = x.shape[axis]
    if parts is None:
        each = -(-length // (num_outputs or n_outputs))
        affordable([-(-length // max(1, each))], copies=16)
        parts = [min(each, length - i) for i in range(0, length, each)]
    return tuple(backend(x).split(x, np.cumsum(parts)[:-1], axis=axis))


def slice_array(
    x: Any,
    first: Any = None,
    last: Any = None,
    along: Any = None,
    steps: Any = None,
    *,
    starts: Any = None,
    ends: Any = None,
    axes: Any = None,
) -> Any:
    """Slice; bounds beyond an axis are cut to it. All but the data are attributes in opset 1."""
    start = ints(starts if first is None else first, "starts")
    end = ints(ends if last is None else last, "ends")
    chosen = optional_ints(axes if along is None else along, "axes")
    step = optional_ints(steps, "steps") or [1] * len(start)
    index = [slice(None)] * x.ndim
    places = range(len(start)) if chosen is None else positive_axes(chosen, x.ndim)
    for axis, a, b, by in zip(places, start, end, step, strict=True):
        index[axis] = _slice(a, b, by, x.shape[axis])
    return x[tuple(index)]


def _slice(start: int, end: int, step: int, length: int) -> slice:
    """A Python slice for ONNX' bounds: -1 at the end of a backward slice never means "before 0"."""
    lowest, highest = (0, length) if step > 0 else (-1, length - 1)
    first, last = (v + length if v < 0 else v for v in (start, end))
    first = min(max(first, 0), highest)
    last = min(max(last, lowest), length)
    return slice(first, None if last < 0 else last, step)


def pad(
    x: Any,
    by: Any = None,
    constant: Any = None,
    over: Any = None,
    *,
    mode: str = "constant",
    pads: Any = None,
    paddings: Any = None,
    value: float = 0.0,
) -> Any:
    """Pad, negative pads crop. All but the data are attributes before opset 11."""
    amounts = ints(next(v for v in (by, pads, paddings) if v is not None), "pads")
    axes = optional_ints(over, "axes")
    places = range(x.ndim) if axes is None else positive_axes(axes, x.ndim)
    widths = [(0, 0)] * x.ndim
    for axis, low, high in zip(places, amounts[: len(places)], amounts[len(places) :], strict=True):
        widths[axis] = (low, high)
    x = x[
        tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(widths, x.shape, strict=True))
    ]
    grown = [(max(a, 0), max(b, 0)) for a, b in widths]
    xp = backend(x, constant)
    affordable([n + a + b for n, (a, b) in zip(x.shape, grown, strict=True)], x.dtype)
    if mode == "constant":
        fill = value if constant is None else cast(constant, x.dtype).reshape(())
        return xp.pad(x, grown, constant_values=fill)
    return xp.pad(x, grown, mode={"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode])


def center_crop_pad(x: Any, to: Any, *, axes: list[int] | None = None) -> Any:
    """CenterCropPad: each axis cropped or padded with zeros, about its middle."""
    places = range(x.ndim) if axes is None else positive_axes(axes, x.ndim)
    pads = [[0] * x.ndim, [0] * x.ndim]
    for axis, n in zip(places, ints(to, "shape"), strict=True):
        grow = n - x.shape[axis]
        low = grow // 2 if grow >= 0 else -(-grow // 2)
        pads[0][axis], pads[1][axis] = low, grow - low
    return pad(x, np.asarray(pads[0] + pads[1]))


# --- repeating ----------------------------------------------------------------------------------


def expand(x: Any, to: Any) -> Any:
    """Expand: broadcasting both ways."""
    wanted = np.broadcast_shapes(x.shape, tuple(ints(to, "shape")))
    return backend(x).broadcast_to(x, affordable(wanted, x.dtype))


def tile(x: Any, repeats: Any, axis: Any = None) -> Any:
    """Tile; opset 1 repeats one axis."""
    times = ints(repeats, "repeats")
    if axis is not None:
        (along,) = positive_axes(ints(axis, "axis"), x.ndim)
        times = [times[0] if i == along else 1 for i in range(x.ndim)]
    affordable([n * k for n, k in zip(x.shape, times, strict=True)], x.dtype)
    return backend(x).tile(x, times)


def reverse_sequence(x: Any, lengths: Any, *, batch_axis: int = 1, time_axis: int = 0) -> Any:
    """ReverseSequence: each record's first entries, as many as its length, in reverse."""
    xp = backend(x, lengths)
    moved = xp.moveaxis(x, (batch_axis, time_axis), (0, 1))
    step = xp.arange(moved.shape[1])[None, :]
    length = lengths[:, None]
    source = xp.where(step < length, length - 1 - step, step)
    source = source.reshape(source.shape + (1,) * (x.ndim - 2))
    return xp.moveaxis(xp.take_along_axis(moved, source, axis=1), (0, 1), (batch_axis, time_axis))


# --- making arrays ------------------------------------------------------------------------------


def constant_of_shape(to: Any, *, value: np.ndarray | None = None) -> np.ndarray:
    """ConstantOfShape."""
    value = np.zeros(1, np.float32) if value is None else value
    shape = affordable(ints(to, "shape"), value.dtype)
    return np.full(shape, value.reshape(()), value.dtype)


def arange(start: Any, limit: Any, delta: Any, *, stash_type: int = 1) -> np.ndarray:
    """Range; half precisions are computed in a wider type."""
    first, last, step = (known(v, "bounds").reshape(()) for v in (start, limit, delta))
    dtype = first.dtype
    if dtype.itemsize == 2 and not np.issubdtype(dtype, np.integer):
        wide = numpy_dtype(stash_type)
        first, last, step = (v.astype(wide) for v in (first, last, step))
    # Python's numbers count the steps; NumPy's 32-bit ones could overflow.
    bounds = first.item(), last.item(), step.item()
    affordable([max(0, math.ceil((bounds[1] - bounds[0]) / bounds[2]))])
    return np.arange(*bounds).astype(dtype)


def eye_like(x: Any, *, dtype: int | None = None, k: int = 0) -> np.ndarray:
    """EyeLike."""
    rows, columns = affordable(x.shape)
    return np.eye(rows, columns, k, x.dtype if dtype is None else numpy_dtype(dtype))


def one_hot(indices: Any, depth: Any, values: Any, *, axis: int = -1) -> Any:
    """OneHot; indices out of range have no hot entry, negative ones count from the end."""
    count = int(known(depth, "depth").reshape(-1)[0])
    affordable([indices.size, count])
    xp = backend(indices, values)
    places = indices if jnp.issubdtype(indices.dtype, jnp.integer) else cast(indices, np.int64)
    places = xp.expand_dims(places, axis)
    rank = xp.arange(count, dtype=places.dtype)
    rank = rank.reshape([-1 if i == axis % places.ndim else 1 for i in range(places.ndim)])
    return xp.where((places == rank) | (places + count == rank), values[1], values[0])


def trilu(x: Any, k: Any = None, *, upper: int = 1) -> Any:
    """Trilu: the upper or lower triangle, from the k-th diagonal on."""
    diagonal = 0 if k is None else int(known(k, "diagonal").reshape(()))
    affordable(x.shape[-2:], copies=2)
    rows, columns = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])[None, :]
    kept = columns - rows >= diagonal if upper else columns - rows <= diagonal
    xp = backend(x)
    return xp.where(kept, x, xp.zeros_like(x))


def identity(x: Any) -> Any:
    """Identity."""
    return x


# --- between depth and space --------------------------------------------------------------------


def depth_to_space(x: Any, *, blocksize: int, mode: str = "DCR") -> Any:
    """DepthToSpace, NCHW; the blocks come first among the channels (DCR) or last (CRD)."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Any, *, blocksize: int, mode: str = "DCR") -> Any:
    """SpaceToDepth, the inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    b = blocksize
    x = x.reshape(n, c, h // b, b, w // b, b)
    x = x.transpose((0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return x.reshape(n, c * b**2, h // b, w // b)


TABLE: Table = {
    "CenterCropPad": center_crop_pad,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Identity": identity,
    "OneHot": one_hot,
    "Pad": pad,
    "Range": arange,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Shape": shape,
    "Size": size,
    "Slice": slice_array,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
