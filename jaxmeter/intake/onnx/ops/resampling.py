"""Images in other sizes, and read between their pixels."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmeter.intake.onnx.ops.values import Table, affordable, ints, known, positive_axes


def resize(
    x: Any,
    *inputs: Any,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    opset: int,
) -> Any:
    """Resize, one axis after the other, by scales or to sizes.

    Opset 10 takes scales only, and a pixel of its output begins where one of its input does.
    """
    if opset < 11:
        return _upsampled(x, inputs[0], mode)
    roi, scales, sizes = (*inputs, None, None, None)[:3]
    chosen = positive_axes(axes or range(x.ndim), x.ndim)
    factors, counts = _factors(x.shape, chosen, scales, sizes, keep_aspect_ratio_policy)
    region = np.zeros(0) if roi is None else known(roi, "roi").astype(np.float64)
    for i, axis in enumerate(chosen):
        size, count, factor = x.shape[axis], counts[i], factors[i]
        part = (region[i], region[len(chosen) + i]) if region.size else (0.0, 1.0)
        cropped = coordinate_transformation_mode == "tf_crop_and_resize"
        affordable((count,), copies=8)
        if size == count and factor == 1 and not (cropped and part != (0.0, 1.0)):
            continue
        at = _positions(coordinate_transformation_mode, size, count, factor, part)
        if mode == "nearest":
            y = _taken(x, axis, _nearest(at, nearest_mode).clip(0, size - 1))
        else:
            shrunk = min(factor, 1.0) if antialias else 1.0
            taps = _taps(at, mode, cubic_coeff_a, shrunk)
            y = _weighted(x, axis, _matrix(*taps, size, exclude_outside))
        outside = (at < 0) | (at > size - 1)
        if cropped and outside.any():
            outside = outside.reshape(-1, *(1,) * (x.ndim - 1 - axis))
            y = jnp.where(outside, jnp.asarray(extrapolation_value, y.dtype), y)
        x = y
    return x


def upsample(
    x: Any,
    scales_input: Any = None,
    *,
    height_scale: float | None = None,
    mode: str = "nearest",
    scales: Sequence[float] | None = None,
    width_scale: float | None = None,
) -> Any:
    """Upsample: scales for height and width in opset 1, for all axes in 7, as an input in 9."""
    if scales_input is None:
        scales_input = np.asarray(scales or (1, 1, height_scale, width_scale), np.float32)
    return _upsampled(x, scales_input, "nearest" if mode == "nearest" else "linear")


def _upsampled(x: Any, scales: Any, mode: str) -> Any:
    return resize(
        x,
        None,
        scales,
        coordinate_transformation_mode="asymmetric",
        mode=mode,
        nearest_mode="floor",
        opset=11,
    )


def _factors(
    shape: Sequence[int], axes: Sequence[int], scales: Any, sizes: Any, policy: str
) -> tuple[list[float], list[int]]:
    """For each axis, how much larger it becomes, and how large."""
    old = [shape[axis] for axis in axes]
    if scales is not None and np.size(scales):
        factors = [float(v) for v in known(scales, "scales")]
        return factors, [int(factor * size) for factor, size in zip(factors, old, strict=True)]
    new = ints(sizes, "sizes")
    factors = [after / before for after, before in zip(new, old, strict=True)]
    if policy == "stretch":
        return factors, new
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(old), [int(factor * size + 0.5) for size in old]


def _positions(
    mode: str, size: int, count: int, factor: float, part: tuple[float, float]
) -> np.ndarray:
    """Where each output lies among the inputs."""
    i = np.arange(count, dtype=np.float64)
    length = factor * size
    if mode == "align_corners":
        return np.zeros(count) if length == 1 else i * (size - 1) / (length - 1)
    if mode == "asymmetric":
        return i / factor
    if mode == "tf_crop_and_resize":
        low, high = part
        if length == 1:
            return np.full(count, (high + low) * (size - 1) / 2)
        return low * (size - 1) + i * (high - low) * (size - 1) / (length - 1)
    if mode == "pytorch_half_pixel" and length == 1:
        return np.zeros(count)
    if mode in {"half_pixel", "pytorch_half_pixel"}:
        return (i + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - count / length) + (i + 0.5) / factor - 0.5
    raise ValueError(f"its coordinate_transformation_mode {mode!r} is unknown.")


def _nearest(at: np.ndarray, mode: str) -> np.ndarray:
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }[mode]()
    return rounded.astype(int)


def _taken(x: Any, axis: int, places: np.ndarray) -> Any:
    """`take`; where each place comes equally often, a broadcast, whose gradient is a sum."""
    size = x.shape[axis]
    times, rest = divmod(len(places), size)
    if rest or not np.array_equal(places, np.repeat(np.arange(size), times)):
        return jnp.take(x, places, axis=axis)
    shape = x.shape
    spread = (*shape[: axis + 1], times, *shape[axis + 1 :])
    y = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), spread)
    return jnp.reshape(y, (*shape[:axis], size * times, *shape[axis + 1 :]))


def _taps(at: np.ndarray, mode: str, a: float, shrunk: float) -> tuple[np.ndarray, np.ndarray]:
    """Places each output reads and their weights, `[outputs, taps]`.

    Where the size shrinks, antialiasing makes the kernel wider by as much.
    """
    reach = {"linear": 1, "cubic": 2}[mode]
    base = np.ceil(at) - 1  # strictly left of the position
    half = reach if shrunk == 1 else -int(np.floor(-reach / shrunk))
    affordable((len(at), 2 * half), copies=6)
    places = base[:, None] + np.arange(1 - half, half + 1)
    distance = np.abs(places - at[:, None]) * shrunk
    weights = np.clip(1 - distance, 0, None) if mode == "linear" else _cubic(distance, a, np)
    return places.astype(int), weights / weights.sum(axis=1, keepdims=True)


def _cubic(distance: Any, a: float, xp: Any) -> Any:
    """Keys' cubic kernel at distances."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return xp.where(distance <= 1, near, xp.where(distance < 2, far, 0))


def _matrix(places: np.ndarray, weights: np.ndarray, size: int, exclude_outside: int) -> np.ndarray:
    """`[outputs, size]`. The edge stands for what is outside, or that counts for nothing."""
    if exclude_outside:
        weights = np.where((places >= 0) & (places < size), weights, 0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros(affordable((len(places), size)))
    rows = np.arange(len(places))[:, None]
    np.add.at(matrix, (rows, places.clip(0, size - 1)), weights)
    return matrix


def _weighted(x: Any, axis: int, matrix: np.ndarray) -> Any:
    x = jnp.asarray(x)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.tensordot(x.astype(dtype), matrix.T.astype(dtype), (axis, 0), precision="highest")
    y = jnp.moveaxis(y, -1, axis)
    if jnp.issubdtype(x.dtype, jnp.integer):
        limits = jnp.iinfo(x.dtype)
        y = jnp.clip(jnp.round(y), limits.min, limits.max)
    return y.astype(x.dtype)


# --- read by a grid -----------------------------------------------------------------------------


def affine_grid(theta: Any, size: Any, *, align_corners: int = 0) -> Any:
    """AffineGrid: where an affine map sends each pixel, in coordinates from -1 to 1."""
    spatial = affordable(ints(size, "size")[2:], copies=8)
    lines = []
    for length in spatial:
        line = np.arange(length) / max(length - 1, 1) if align_corners else None
        lines.append((line if line is not None else (np.arange(length) + 0.5) / length) * 2 - 1)
    mesh = np.meshgrid(*lines, indexing="ij")[::-1]  # x before y before z
    points = np.stack([*mesh, np.ones(spatial)], axis=-1).astype(theta.dtype)
    return jnp.einsum("...j,nij->n...i", points, theta, precision="highest")


def grid_sample(
    x: Any,
    grid: Any,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Any:
    """GridSample: the image read where the grid points, nearest, linearly or by cubics."""
    sizes = x.shape[2:]
    kind = mode.removeprefix("bi")
    taps = []
    for i, size in enumerate(sizes):
        along = grid[..., len(sizes) - 1 - i]  # the grid names the last axis first
        span = size - 1 if align_corners else size
        at = (along + 1) / 2 * span - (0 if align_corners else 0.5)
        limits = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
        at = jnp.round(at) if kind == "nearest" else at
        if padding_mode == "border" and kind != "cubic":
            at = jnp.where((at < limits[0]) | (at > limits[1]), jnp.clip(at, 0, size - 1), at)
        elif padding_mode == "reflection":
            at = _reflected(at, limits)
        taps.append(list(_pixels(at, kind, size, limits, padding_mode)))
    flat = jnp.reshape(x, (*x.shape[:2], -1))
    total: Any = 0
    for chosen in itertools.product(*taps):
        place, weight = jnp.asarray(0), jnp.asarray(1, x.dtype)
        for (pixel, share), size in zip(chosen, sizes, strict=True):
            place, weight = place * size + pixel, weight * share
        read = jnp.take_along_axis(flat, jnp.reshape(place, (x.shape[0], 1, -1)), axis=2)
        total = total + jnp.reshape(read, (*x.shape[:2], *grid.shape[1:-1])) * weight[:, None]
    return total.astype(x.dtype)


def _pixels(at: Any, kind: str, size: int, limits: tuple[float, float], padding_mode: str) -> Any:
    """The pixels along one axis that a position reads, each with its share."""
    first, last = {"nearest": (0, 0), "linear": (0, 1), "cubic": (-1, 2)}[kind]
    low = at if kind == "nearest" else jnp.floor(at)
    for step in range(first, last + 1):
        pixel, distance = low + step, jnp.abs(at - low - step)
        if kind == "cubic":
            share = _cubic(distance, -0.75, jnp)
        else:
            share = 1 - distance
        if padding_mode == "zeros":
            share = jnp.where((pixel >= 0) & (pixel < size), share, 0)
        elif padding_mode == "reflection":
            pixel = jnp.trunc(_reflected(pixel, limits))
        yield jnp.clip(pixel, 0, size - 1).astype(jnp.int32), share


def _reflected(at: Any, limits: tuple[float, float]) -> Any:
    """Positions outside mirrored at the borders until they are inside."""
    low, high = limits
    span = max(high - low, 1e-6)
    away = jnp.abs(at - low) % (2 * span)
    inner = low + jnp.minimum(away, 2 * span - away)
    return jnp.where((at < low) | (at > high), inner, at)


TABLE: Table = {
    "AffineGrid": affine_grid,
    "GridSample": grid_sample,
    "Resize": resize,
    "Upsample": upsample,
}
