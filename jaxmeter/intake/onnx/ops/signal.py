"""Fourier transforms and windows. Complex numbers are pairs along a last axis of size 2."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmeter.intake.onnx.ops.values import Table, affordable, ints, known, numpy_dtype
from jaxmeter.intake.safety import budget


def dft(
    x: Any,
    length: Any = None,
    axis_input: Any = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
    opset: int,
) -> Any:
    """DFT; its axis is an attribute in opset 17, an input from 20 on."""
    if opset >= 20:
        (axis,) = [-2] if axis_input is None else ints(axis_input, "axis")
    axis %= x.ndim
    if length is not None:
        (size,) = ints(length, "dft_length")
    else:
        size = 2 * (x.shape[axis] - 1) if inverse and onesided else x.shape[axis]
    signal = _complex(x)
    if inverse and onesided:
        return jnp.fft.irfft(signal, size, axis)[..., None].astype(x.dtype)
    if inverse:
        return _pairs(jnp.fft.ifft(signal, size, axis), x.dtype)
    return _pairs(_transformed(signal, size, axis, onesided), x.dtype)


def stft(x: Any, step: Any, window: Any = None, length: Any = None, *, onesided: int = 1) -> Any:
    """STFT: the transforms of frames, `[n, frames, frequencies, 2]`."""
    (step,) = ints(step, "frame_step")
    if length is not None:
        (size,) = ints(length, "frame_length")
    else:
        size = x.shape[1] if window is None else window.shape[0]
    count = 1 + (x.shape[1] - size) // step
    affordable((count, size), copies=2)
    begins = np.arange(count) * step
    frames = _complex(x)[:, begins[:, None] + np.arange(size)]
    frames = frames if window is None else frames * jnp.asarray(window)
    return _pairs(_transformed(frames, size, frames.ndim - 1, onesided), x.dtype)


def _transformed(signal: Any, size: int, axis: int, onesided: int) -> Any:
    """The Fourier transform, or its first half; that of real numbers exactly symmetric."""
    before, half = (slice(None),) * axis, slice(0, size // 2 + 1)
    if jnp.iscomplexobj(signal):
        y = jnp.fft.fft(signal, size, axis)
        return y[(*before, half)] if onesided else y
    y = jnp.fft.rfft(signal, size, axis)
    rest = jnp.conj(y[(*before, slice((size - 1) // 2, 0, -1))])
    return y if onesided else jnp.concatenate([y, rest], axis=axis)


def _complex(x: Any) -> Any:
    x = jnp.asarray(x)
    return x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]


def _pairs(y: Any, dtype: Any) -> Any:
    return jnp.stack([jnp.real(y), jnp.imag(y)], axis=-1).astype(dtype)


def hann_window(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Any:
    """HannWindow."""
    return _cosines(size, (0.5, -0.5), output_datatype, periodic)


def hamming_window(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Any:
    """HammingWindow."""
    return _cosines(size, (25 / 46, -21 / 46), output_datatype, periodic)


def blackman_window(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Any:
    """BlackmanWindow."""
    return _cosines(size, (0.42, -0.5, 0.08), output_datatype, periodic)


def _cosines(size: Any, weights: tuple[float, ...], datatype: int, periodic: int) -> np.ndarray:
    (n,) = affordable(ints(size, "size"), copies=6)
    angle = 2 * np.pi * np.arange(n) / (n if periodic else max(n - 1, 1))
    terms = (weight * np.cos(i * angle) for i, weight in enumerate(weights))
    return sum(terms, np.zeros(n)).astype(numpy_dtype(datatype))


def mel_weight_matrix(
    bins: Any, length: Any, rate: Any, lowest: Any, highest: Any, *, output_datatype: int = 1
) -> np.ndarray:
    """MelWeightMatrix: triangles over the frequencies of a transform, one a mel bin."""
    (count,), (size,) = ints(bins, "num_mel_bins"), ints(length, "dft_length")
    affordable((count, size // 2 + 1), copies=2)
    budget.work(count * budget.STEP / 10, "each of its bins")
    (rate,) = ints(rate, "sample_rate")
    low, high = (
        2595 * np.log10(1 + float(known(edge, "edge").reshape(())) / 700)
        for edge in (lowest, highest)
    )
    mel = low + np.arange(count + 2) * (high - low) / (count + 2)
    edges = ((size + 1) * 700 * (10 ** (mel / 2595) - 1) // rate).astype(int)
    matrix = np.zeros((size // 2 + 1, count))
    for i, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        if centre > left:
            matrix[left : centre + 1, i] = np.arange(centre + 1 - left) / (centre - left)
        else:
            matrix[centre, i] = 1
        if right > centre:
            matrix[centre:right, i] = np.arange(right - centre, 0, -1) / (right - centre)
    return matrix.astype(numpy_dtype(output_datatype))


TABLE: Table = {
    "BlackmanWindow": blackman_window,
    "DFT": dft,
    "HammingWindow": hamming_window,
    "HannWindow": hann_window,
    "MelWeightMatrix": mel_weight_matrix,
    "STFT": stft,
}
