"""Convolutions, all by `lax.conv_general_dilated` with the channels last."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeter.intake.onnx.ops.values import Table, affordable, ints
from jaxmeter.intake.onnx.ops.windows import channels_first, channels_last, windows

_SPATIAL = "DHW"  # names for at most three spatial axes


def conv(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Any:
    """Conv over one to three spatial axes."""
    at = windows(
        x.shape[2:],
        w.shape[2:],
        auto_pad=auto_pad,
        pads=pads,
        strides=strides,
        dilations=dilations,
    )
    kernel = jnp.moveaxis(w, (0, 1), (-1, -2))
    y = _convolved(
        channels_last(x), kernel, at.strides, at.padding, rhs_dilation=at.dilations, group=group
    )
    return channels_first(y if bias is None else y + bias)


def conv_transpose(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Any:
    """ConvTranspose: the convolution of the input, spread out by its strides."""
    n = x.ndim - 2
    strides = tuple(strides or (1,) * n)
    dilations = tuple(dilations or (1,) * n)
    extra = tuple(output_padding or (0,) * n)
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    full = [s * (m - 1) + p for s, m, p in zip(strides, x.shape[2:], spans, strict=True)]
    if output_shape is None and auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        output_shape = [m * s for m, s in zip(x.shape[2:], strides, strict=True)]
    pads = pads or (0,) * 2 * n
    padding = []
    for i in range(n):
        if output_shape is not None:
            total = full[i] + extra[i] - output_shape[-n:][i]
            low = max(0, total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
            high = total - low
        else:
            low, high = pads[i], pads[n + i]
        padding.append((spans[i] - 1 - low, spans[i] - 1 - high + extra[i]))
    inputs, outputs = w.shape[:2]
    kernel = jnp.reshape(w, (group, inputs // group, outputs, *w.shape[2:]))
    kernel = jnp.moveaxis(kernel, (1, 0, 2), (-3, -2, -1))  # [*spatial, C/group, group, M/group]
    kernel = jnp.reshape(kernel, (*w.shape[2:], inputs // group, group * outputs))
    kernel = lax.rev(kernel, tuple(range(n)))
    y = _convolved(
        channels_last(x),
        kernel,
        (1,) * n,
        padding,
        lhs_dilation=strides,
        rhs_dilation=dilations,
        group=group,
    )
    return channels_first(y if bias is None else y + bias)


def conv_integer(
    x: Any, w: Any, x_zero_point: Any = None, w_zero_point: Any = None, **attributes: Any
) -> Any:
    """ConvInteger: in 32-bit integers, zero points taken off first."""
    return conv(_centred(x, x_zero_point), _centred(w, w_zero_point), **attributes)


def qlinear_conv(
    x: Any,
    x_scale: Any,
    x_zero_point: Any,
    w: Any,
    w_scale: Any,
    w_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: Any = None,
    **attributes: Any,
) -> Any:
    """QLinearConv: between numbers in 8 bits, computed in 32."""
    exact = conv(_centred(x, x_zero_point), _centred(w, w_zero_point), bias, **attributes)
    scale = jnp.asarray(x_scale) * w_scale / y_scale
    scale = jnp.reshape(scale, (-1, *(1,) * (x.ndim - 2)))
    limits = jnp.iinfo(y_zero_point.dtype)
    y = jnp.round(exact * scale) + jnp.asarray(y_zero_point).astype(scale.dtype)
    return jnp.clip(y, limits.min, limits.max).astype(y_zero_point.dtype)


def deform_conv(
    x: Any,
    w: Any,
    offset: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
) -> Any:
    """DeformConv in two dimensions: every tap reads, between pixels, where its offset points."""
    n, channels, height, width = x.shape
    kernel, (rows, columns) = w.shape[2:], offset.shape[2:]
    taps = kernel[0] * kernel[1]
    affordable((*kernel, rows, columns), copies=4)
    offset = jnp.reshape(offset, (n, offset_group, taps, 2, rows, columns))
    regular = [
        np.arange(k)[:, None] * d + np.arange(count)[None] * s - low
        for k, d, count, s, low in zip(
            kernel, dilations, (rows, columns), strides, pads[:2], strict=True
        )
    ]
    full = (*kernel, rows, columns)
    down = np.broadcast_to(regular[0][:, None, :, None], full).reshape(taps, rows, columns)
    right = np.broadcast_to(regular[1][None, :, None, :], full).reshape(taps, rows, columns)
    y = offset[:, :, :, 0] + down.astype(x.dtype)
    x_ = offset[:, :, :, 1] + right.astype(x.dtype)
    images = jnp.reshape(x, (n, offset_group, channels // offset_group, height, width))
    read = _between_pixels(images, y, x_)  # [n, offset_group, C/offset_group, taps, rows, columns]
    if mask is not None:
        read = read * jnp.reshape(mask, (n, offset_group, 1, taps, rows, columns))
    read = jnp.reshape(read, (n, group, channels // group, taps, rows, columns))
    weights = jnp.reshape(w, (group, -1, channels // group, taps))
    out = jnp.einsum("ngcthw,gmct->ngmhw", read, weights)
    out = jnp.reshape(out, (n, -1, rows, columns))
    return out if bias is None else out + jnp.reshape(bias, (-1, 1, 1))


def causal_conv_with_state(
    x: Any, w: Any, bias: Any = None, past: Any = None, *, activation: str = "none"
) -> tuple[Any, Any]:
    """CausalConvWithState: a depthwise convolution over the past, and the past for the next."""
    size = w.shape[2] - 1
    if past is None:
        past = jnp.zeros((*x.shape[:2], size), x.dtype)
    padded = jnp.concatenate([jnp.asarray(past), x], axis=2)
    y = conv(padded, w, bias, group=x.shape[1])
    if activation in {"silu", "swish"}:
        y = jax.nn.silu(y.astype(jnp.promote_types(y.dtype, jnp.float32))).astype(x.dtype)
    return y, padded[:, :, padded.shape[2] - size :]


def col2im(
    x: Any,
    image_shape: Any,
    block_shape: Any,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Any:
    """Col2Im: the sum of blocks, each at its place in the image."""
    image, block = ints(image_shape, "image_shape"), ints(block_shape, "block_shape")
    at = windows(image, block, pads=pads, strides=strides, dilations=dilations)
    affordable((*block, *at.counts), copies=3)
    padded = [m + low + high for m, (low, high) in zip(image, at.padding, strict=True)]
    places: Any = np.zeros((), int)
    for k, d, count, s, size in zip(
        block, at.dilations, at.counts, at.strides, padded, strict=True
    ):
        along = np.arange(k)[:, None] * d + np.arange(count)[None] * s
        places = places[..., None, None] * size + along
    n = len(image)
    order = (*range(0, 2 * n, 2), *range(1, 2 * n, 2))
    places = places.transpose(order).reshape(-1)
    channels = x.shape[1] // int(np.prod(block))
    flat = jnp.zeros((x.shape[0], channels, int(np.prod(padded))), x.dtype)
    flat = flat.at[:, :, places].add(jnp.reshape(x, (x.shape[0], channels, -1)))
    inside = tuple(slice(low, low + m) for m, (low, _) in zip(image, at.padding, strict=True))
    return jnp.reshape(flat, (*flat.shape[:2], *padded))[(slice(None), slice(None), *inside)]


def _convolved(
    x: Any,
    kernel: Any,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    lhs_dilation: Sequence[int] | None = None,
    group: int,
) -> Any:
    spatial = _SPATIAL[-(x.ndim - 2) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=group,
    )


def _centred(x: Any, zero_point: Any) -> Any:
    """An integer array without its zero point: one for all or one for each first index."""
    x = jnp.asarray(x).astype(jnp.int32)
    if zero_point is None:
        return x
    zero_point = jnp.asarray(zero_point).astype(jnp.int32)
    return x - jnp.reshape(zero_point, (-1, *(1,) * (x.ndim - 1)) if zero_point.size > 1 else ())


def _between_pixels(images: Any, y: Any, x: Any) -> Any:
    """`[n, g, c, height, width]` read, linearly, at `[n, g, ...]`: `[n, g, c, ...]`."""
    *lead, height, width = images.shape
    flat = jnp.reshape(images, (*lead, height * width))
    total: Any = 0
    for down in (0, 1):
        for right in (0, 1):
            row, column = jnp.floor(y) + down, jnp.floor(x) + right
            weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
            place = jnp.reshape(place.astype(jnp.int32), (*lead[:2], 1, -1))
            read = jnp.take_along_axis(flat, place, axis=3)
            weight = jnp.where(inside, weight, 0)[:, :, None]
            total = total + jnp.reshape(read, (*lead, *y.shape[2:])) * weight
    return total


TABLE: Table = {
    "CausalConvWithState": causal_conv_with_state,
    "Col2Im": col2im,
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "DeformConv": deform_conv,
    "QLinearConv": qlinear_conv,
}
