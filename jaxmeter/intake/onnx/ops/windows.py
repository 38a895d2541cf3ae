"""The windows of convolutions and pools: where they start, and their padding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxmeter.intake.onnx.ops.values import affordable


class Windows(NamedTuple):
    """Windows over the spatial axes of an `[N, C, *spatial]` array, one entry an axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # as asked for
    needed: tuple[tuple[int, int], ...]  # with what a window beyond it needs (ceil_mode)
    counts: tuple[int, ...]  # how many there are


def windows(
    sizes: Sequence[int],
    kernel: Sequence[int],
    *,
    auto_pad: str = "NOTSET",
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
) -> Windows:
    """The windows that an operator's attributes describe."""
    n = len(sizes)
    strides = tuple(strides or (1,) * n)
    dilations = tuple(dilations or (1,) * n)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = pads or (0,) * 2 * n
    padding, needed, counts = [], [], []
    for i, (size, span, stride) in enumerate(zip(sizes, spans, strides, strict=True)):
        if auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
            total = max(0, (-(-size // stride) - 1) * stride + span - size)
            few, many = total // 2, total - total // 2
            low, high = (few, many) if auto_pad == "SAME_UPPER" else (many, few)
        elif auto_pad == "VALID":
            low, high = 0, 0
        else:
            low, high = pads[i], pads[n + i]
        room = size + low + high - span
        count = (-(-room // stride) if ceil_mode else room // stride) + 1
        if ceil_mode and (count - 1) * stride >= size + low:
            count -= 1  # the last window has to begin before the padding at the end
        padding.append((low, high))
        needed.append((low, high + max(0, (count - 1) * stride - room)))
        affordable((count, kernel[i]), copies=3)  # places that pools without a gradient list
        counts.append(count)
    return Windows(tuple(kernel), strides, dilations, tuple(padding), tuple(needed), tuple(counts))


def channels_last(x: Any) -> Any:
    """`[N, C, *spatial]` as `[N, *spatial, C]`: XLA is fast on it, and cancels such transposes."""
    return jnp.moveaxis(x, 1, -1)


def channels_first(x: Any) -> Any:
    """`[N, *spatial, C]` as `[N, C, *spatial]`."""
    return jnp.moveaxis(x, -1, 1)
