"""Statistics of logits and labels: one float a record, in NumPy float64 and in logs.

Logits are `[..., n, classes]`, labels `[n]`: the logits
of k reference models `[k, n, classes]` need no loop. All are exact for saturated logits
(800 against 0) and unchanged when a constant is added to a record's logits; higher means "more
likely a member". Work is done in blocks of rows: beside the result, little memory is needed.
"""

from collections.abc import Callable

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

_BLOCK = 1 << 18  # logits a block: 2 MiB in float64, so that temporaries stay in the caches


def log_odds(logits: ArrayLike, y: ArrayLike) -> NDArray:
    """`log(p_y / (1 - p_y))` `[..., n]`, as `z_y - logsumexp of the other logits`.

    The scaled logit of LiRA (Carlini et al. 2022, arXiv:2112.03570, section IV-C).

    >>> log_odds([[800.0, 0.0, 0.0]], [0]).round(4).tolist()
    [799.3069]
    """
    return _by_rows(
        lambda z, y: _own(z, y) - scipy.special.logsumexp(_others(z, y), axis=-1), logits, y
    )


def margin(logits: ArrayLike, y: ArrayLike) -> NDArray:
    """The own class's logit minus the largest other one `[..., n]`: the hinge of the same paper.

    >>> margin([[3.0, 1.0, 2.0]], [0]).tolist()
    [1.0]
    """
    return _by_rows(lambda z, y: _own(z, y) - _others(z, y).max(axis=-1), logits, y)


def log_probability(logits: ArrayLike, y: ArrayLike) -> NDArray:
    """`log p_y` `[..., n]`, minus the cross-entropy loss; confident records keep distinct values.

    >>> log_probability([[0.0, 0.0]], [1]).round(4).tolist()
    [-0.6931]
    """
    return -np.logaddexp(0.0, -log_odds(logits, y))


def log_taylor_probability(
    logits: ArrayLike,
    y: ArrayLike,
    *,
    temperature: float = 2.0,
    terms: int = 4,
    margin: float = 0.6,
) -> NDArray:
    """The log of the soft-margin Taylor softmax's `p_y` `[..., n]`, RMIA's own signal.

    Zarifzadeh, Liu and Shokri 2024 (arXiv:2312.03262): with `c = logits / temperature` and the
    first terms of exp's series, `t(u) = sum of u^i / i!`,
    `p_y = t(c_y - m) / (t(c_y - m) + sum over the other classes of t(c_j))`.

    The released code takes the logits as they are, so that a constant added to them all changes
    the result, and t is negative below about -1.6. Here their mean over the classes is subtracted
    first (training by cross-entropy leaves it near 0), and below -1 log t goes on along its
    tangent, positive and increasing.

    Args:
      logits: `[..., n, classes]`.
      y: labels `[n]`.
      temperature: what logits are divided by, positive.
      terms: of the series, at least 2.
      margin: what the own class's `c` is reduced by.

    >>> float(log_taylor_probability([[0.0, 0.0]], [0], margin=0.0).round(4)[0])
    -0.6931
    """
    if temperature <= 0 or terms < 2:
        raise ValueError("temperature must be positive and terms at least 2.")

    def score(z: NDArray, y: NDArray) -> NDArray:
        c = (z - z.mean(axis=-1, keepdims=True)) / temperature
        own = _log_series(_own(c, y) - margin, terms)
        others = scipy.special.logsumexp(_others(_log_series(c, terms), y), axis=-1)
        return -np.logaddexp(0.0, others - own)

    return _by_rows(score, logits, y)


def _log_series(u: NDArray, terms: int) -> NDArray:
    """The log of exp's first terms, by Horner; below -1 along the tangent there."""
    at = np.maximum(u, -1.0)
    series = np.ones_like(at)
    slope = 1.0  # of the series at -1: the series with one term less
    for i in range(terms - 1, 0, -1):
        series = 1 + at * series / i
    for i in range(terms - 2, 0, -1):
        slope = 1 - slope / i
    value = 1.0
    for i in range(terms - 1, 0, -1):
        value = 1 - value / i
    return np.log(series) + np.minimum(u + 1.0, 0.0) * (slope / value)


def _own(z: NDArray, y: NDArray) -> NDArray:
    return np.take_along_axis(z, y[:, None], axis=-1)[:, 0]


def _others(z: NDArray, y: NDArray) -> NDArray:
    """Without the own class, whose place -inf takes."""
    return np.where(np.arange(z.shape[-1]) == y[:, None], -np.inf, z)


def _by_rows(
    score: Callable[[NDArray, NDArray], NDArray], logits: ArrayLike, y: ArrayLike
) -> NDArray:
    """Applies `score(z [rows, classes], y [rows])` block by block, in float64."""
    logits, y = np.asarray(logits), np.asarray(y)
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise ValueError(f"logits have the shape {logits.shape}; give [..., n, classes >= 2].")
    classes = logits.shape[-1]
    if y.shape != logits.shape[-2:-1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"y has the shape {y.shape} and type {y.dtype}; logits {logits.shape} need one whole "
            f"number a record, [{logits.shape[-2]}]."
        )
    if y.size and not (0 <= y.min() and y.max() < classes):
        raise ValueError(f"labels go from {y.min()} to {y.max()}; there are {classes} classes.")
    found = np.empty(logits.shape[:-1])
    step = max(1, _BLOCK // classes)
    for where in np.ndindex(logits.shape[:-2]):
        for start in range(0, y.size, step):
            rows = slice(start, start + step)
            found[(*where, rows)] = score(logits[where][rows].astype(np.float64), y[rows])
    return found
