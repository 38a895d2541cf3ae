"""Pools, by `lax.reduce_window` with the channels last."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeter.intake.onnx.ops.values import Table, affordable, ints, is_known, jax_dtype
from jaxmeter.intake.onnx.ops.windows import Windows, channels_first, channels_last, windows
from jaxmeter.intake.safety import budget

_REGION = 20 * budget.STEP  # of a region with samples of its own number, traced by itself


def max_pool(
    x: Any,
    *,
    kernel_shape: Sequence[int],
    storage_order: int = 0,
    n_outputs: int,
    **attributes: Any,
) -> Any:
    """MaxPool; its second output says where in the flattened input each maximum was."""
    at = windows(x.shape[2:], kernel_shape, **attributes)
    if n_outputs > 1:
        return _max_and_place(x, at, "F" if storage_order else "C")
    if set(at.dilations) != {1}:
        return _max_and_place(x, at, "C")[0]  # reduce_window has no gradient with dilations
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    lowest = -np.inf if floating else np.iinfo(x.dtype).min
    return _pooled(x, at, np.asarray(lowest, x.dtype)[()], lax.max)


def _max_and_place(x: Any, at: Windows, order: Any) -> tuple[Any, Any]:
    places, inside = _taps(x.shape[2:], at)
    flat = jnp.reshape(x, (*x.shape[:2], -1))
    read = flat[:, :, places]  # [N, C, windows, taps]
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    lowest = -np.inf if floating else np.iinfo(x.dtype).min
    tap = jnp.argmax(jnp.where(inside, read, jnp.asarray(lowest, x.dtype)), axis=-1)[..., None]
    largest = jnp.take_along_axis(read, tap, axis=-1)[..., 0]
    size = int(np.prod(x.shape[2:]))
    # Where a place is in the order asked for: row after row ("C") or column after column ("F").
    index = np.ravel_multi_index(np.unravel_index(places, x.shape[2:]), x.shape[2:], order=order)
    index = index.astype(jax_dtype(np.int64))
    chosen = jnp.take_along_axis(jnp.broadcast_to(index, read.shape), tap, axis=-1)[..., 0]
    maps = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], 1) * size
    chosen = chosen + maps.astype(chosen.dtype)
    shape = (*x.shape[:2], *at.counts)
    return jnp.reshape(largest, shape), jnp.reshape(chosen, shape)


def _taps(sizes: Sequence[int], at: Windows) -> tuple[np.ndarray, np.ndarray]:
    """For each window, the flat places its taps read, and whether they are inside: `[w, taps]`."""
    n = len(sizes)
    affordable((*at.counts, *at.kernel), copies=5)
    places, inside = np.zeros((), int), np.ones((), bool)
    for i, size in enumerate(sizes):
        begins = np.arange(at.counts[i])[:, None] * at.strides[i] - at.padding[i][0]
        along = begins + np.arange(at.kernel[i])[None] * at.dilations[i]
        places = places[..., None, None] * size + along.clip(0, size - 1)
        inside = inside[..., None, None] & (along >= 0) & (along < size)
    order = (*range(0, 2 * n, 2), *range(1, 2 * n, 2))
    shape = (int(np.prod(at.counts)), -1)
    return places.transpose(order).reshape(shape), inside.transpose(order).reshape(shape)


def average_pool(
    x: Any, *, kernel_shape: Sequence[int], count_include_pad: int = 0, **attributes: Any
) -> Any:
    """AveragePool; padding that `ceil_mode` adds is never counted."""
    at = windows(x.shape[2:], kernel_shape, **attributes)
    total = _pooled(x, at, np.zeros((), x.dtype)[()], lax.add)
    counts = np.ones(())
    affordable(at.counts, copies=2)
    for i, size in enumerate(x.shape[2:]):
        low, high = at.padding[i]
        begins = np.arange(at.counts[i])[:, None] * at.strides[i] - low
        along = begins + np.arange(at.kernel[i])[None] * at.dilations[i]
        first, last = (-low, size + high) if count_include_pad else (0, size)
        counts = counts[..., None] * ((along >= first) & (along < last)).sum(axis=1)
    if counts.min() == counts.max():
        counts = counts.reshape(-1)[0]
    return total / counts.astype(x.dtype)


def lp_pool(x: Any, *, kernel_shape: Sequence[int], p: float = 2, **attributes: Any) -> Any:
    """LpPool."""
    at = windows(x.shape[2:], kernel_shape, **attributes)
    return root(_pooled(power(x, p), at, np.zeros((), x.dtype)[()], lax.add), p)


def _pooled(x: Any, at: Windows, start: Any, reduce: Any) -> Any:
    y = lax.reduce_window(
        channels_last(x),
        start,
        reduce,
        (1, *at.kernel, 1),
        (1, *at.strides, 1),
        ((0, 0), *at.needed, (0, 0)),
        window_dilation=(1, *at.dilations, 1),
    )
    return channels_first(y)


def global_average_pool(x: Any) -> Any:
    """GlobalAveragePool."""
    return jnp.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def global_max_pool(x: Any) -> Any:
    """GlobalMaxPool."""
    return jnp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def global_lp_pool(x: Any, *, p: float = 2) -> Any:
    """GlobalLpPool."""
    return root(jnp.sum(power(x, p), axis=tuple(range(2, x.ndim)), keepdims=True), p)


def power(x: Any, p: float) -> Any:
    """`|x|^p`, its gradient at 0 finite."""
    if p == 2:
        return jnp.square(x)
    size = jnp.abs(x)
    return size if p == 1 else jnp.where(size > 0, jnp.where(size > 0, size, 1) ** p, 0)


def root(total: Any, p: float) -> Any:
    """`total^(1/p)`, its gradient 0 where it is 0."""
    safe = jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, jnp.sqrt(safe) if p == 2 else safe ** (1 / p), 0)


def max_unpool(
    x: Any,
    places: Any,
    output_shape: Any = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Any:
    """MaxUnpool: the places count in the shape that the attributes give, not in `output_shape`."""
    n = x.ndim - 2
    strides, pads = strides or (1,) * n, pads or (0,) * 2 * n
    shape = [
        (size - 1) * strides[i] - pads[i] - pads[n + i] + kernel_shape[i]
        for i, size in enumerate(x.shape[2:])
    ]
    shape = [*x.shape[:2], *shape]
    flat = jnp.zeros(int(np.prod(shape)), x.dtype)
    y = jnp.reshape(flat.at[jnp.reshape(places, -1)].set(jnp.reshape(x, -1)), shape)
    if output_shape is None:
        return y
    wanted = ints(output_shape, "output_shape")
    return jnp.pad(y, [(0, after - before) for before, after in zip(shape, wanted, strict=True)])


def roi_align(
    x: Any,
    rois: Any,
    batch_indices: Any,
    *,
    coordinate_transformation_mode: str | None = None,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    opset: int,
) -> Any:
    """RoiAlign: each bin of a region is the mean (or largest) of samples read between pixels."""
    default = "half_pixel" if opset >= 16 else "output_half_pixel"
    half = (coordinate_transformation_mode or default) == "half_pixel"
    shape = (output_height, output_width)
    dtype = x.dtype
    budget.work(len(rois) * _REGION * (sampling_ratio <= 0), "each of its regions by itself")

    def one(roi: Any, image: Any, samples: tuple[int, int]) -> Any:
        roi = roi * np.asarray(spatial_scale, dtype) - np.asarray(0.5 * half, dtype)
        weights = []
        affordable([n * each for n, each in zip(shape, samples, strict=True)], copies=8)
        for axis, low, high in ((0, roi[1], roi[3]), (1, roi[0], roi[2])):
            size = high - low if half else jnp.maximum(high - low, 1)
            steps = np.arange(shape[axis] * samples[axis]) + 0.5
            at = low + (steps / samples[axis] / shape[axis]).astype(dtype) * size
            weights.append(_taps_between(at, image.shape[1 + axis]))
        (top, bottom), (left, right) = weights
        parts = [
            jnp.take(jnp.take(image, row, axis=1), column, axis=2) * (a[:, None] * b[None])
            for row, a in (top, bottom)
            for column, b in (left, right)
        ]
        read = sum(parts[1:], parts[0]) if mode == "avg" else jnp.max(jnp.stack(parts), axis=0)
        bins = jnp.reshape(read, (-1, shape[0], samples[0], shape[1], samples[1]))
        return jnp.mean(bins, axis=(2, 4)) if mode == "avg" else jnp.max(bins, axis=(2, 4))

    images = jnp.take(jnp.asarray(x), batch_indices, axis=0)
    if sampling_ratio > 0:
        ratio = (sampling_ratio, sampling_ratio)
        return jax.vmap(lambda roi, image: one(roi, image, ratio))(jnp.asarray(rois), images)
    if not is_known(rois):
        raise ValueError("without a sampling_ratio its regions must be known when JAX traces.")
    spans = (rois[:, 2:] - rois[:, :2]) * spatial_scale
    spans = np.maximum(spans, 0 if half else 1)[:, ::-1]
    samples = np.maximum(np.ceil(spans / np.asarray(shape)), 1).astype(int)
    each = [one(r, image, tuple(s)) for r, image, s in zip(rois, images, samples, strict=True)]
    return jnp.stack(each)


def _taps_between(at: Any, size: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The two pixels beside each position, with their weights; none beyond one pixel outside."""
    inside = (at >= -1) & (at <= size)
    at = jnp.clip(at, 0, size - 1)
    low = jnp.floor(at)
    far = jnp.where(inside, at - low, 0)
    near = jnp.where(inside, 1 - (at - low), 0)
    row = low.astype(jnp.int32)
    return (row, near), (jnp.minimum(row + 1, size - 1), far)


TABLE: Table = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
    "RoiAlign": roi_align,
}
