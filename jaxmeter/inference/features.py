"""What the inference model reads of a record's signals, on comparable scales."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri

from jaxmeter.gradients.factors import Gradient, Outer
from jaxmeter.signals.spec import Signals
from jaxmeter.target import LOGITS

_TINY = 1e-9
_SORTED = 32  # order statistics kept of a vector
_KNOTS = 129  # quantiles that describe a column's distribution


class Features(NamedTuple):
    """Records as the network reads them: fixed functions of the signals, standardised.

    Attributes:
      base: `[n]`, the log-odds of the record's class (0 where neither loss nor logits are read).
      vector: `[n, d]`, summaries of all signals.
      directions: gradients of matrices, of length 1 a record, for the gradient components.
      images: `[n, positions..., channels]`, activations for the convolutional components.
    """

    base: Array
    vector: Array
    directions: dict[str, Gradient]
    images: dict[str, Array]


# --- signals -> features -------------------------------------------------------------------------


def scales(signals: Signals) -> dict[str, Any]:
    """What `features` needs to know of the fit part: location, spread, quantiles of summaries."""
    narrow, wide, base, _, images = _described(signals)
    return {
        "columns": _column_scales(narrow, wide),
        "base": (base.mean(), base.std() + _TINY),
        "images": {
            name: (_over_positions(jnp.mean, image), _over_positions(jnp.std, image) + 1e-6)
            for name, image in images.items()
        },
    }


def features(scale: dict[str, Any], signals: Signals, shrink: float = 0.15) -> Features:
    """The network's input; `scale` from `scales` of the fit part."""
    narrow, wide, base, directions, images = _described(signals)
    mean, spread = scale["base"]
    return Features(
        base=(base - mean) / spread,
        vector=_standardised(narrow, wide, scale["columns"], shrink),
        directions=directions,
        images={
            name: (image - scale["images"][name][0]) / scale["images"][name][1]
            for name, image in images.items()
        },
    )


def _described(
    signals: Signals,
) -> tuple[Array, Array, Array, dict[str, Gradient], dict[str, Array]]:
    """Narrow and wide summaries `[n, ...]`, base `[n]`, directions and images."""
    narrow: list[Array] = []
    wide: list[Array] = []
    directions: dict[str, Gradient] = {}
    images: dict[str, Array] = {}
    label = signals.label
    base = None
    if signals.loss is not None:
        base = _log_odds_of(signals.loss)
        narrow.append(base[:, None])
    for name, value in signals.outputs.items():
        value = jnp.asarray(value, jnp.float32)
        flat = value.reshape(len(value), -1)
        narrow.append(jnp.stack([flat.mean(1), flat.std(1), 2 * _log(_norm(flat))], axis=1))
        if value.ndim == 2:
            wide.append(_order_statistics(flat))
            if label is not None and label.shape == value.shape:
                own, rest = _own_and_rest(flat, label)
                narrow.append(jnp.stack([own, rest], axis=1))
                if name == LOGITS and base is None:
                    base = own - rest
        else:
            images[name] = value
            channels = value.reshape(len(value), -1, value.shape[-1])
            wide += [_order_statistics(channels.mean(1)), _order_statistics(channels.max(1))]
    for name, gradient in signals.gradients.items():
        size, vectors, direction = _of_gradient(gradient)
        narrow.append(size)
        wide += vectors
        directions |= {} if direction is None else {name: direction}
    if signals.gradient_norms:
        logs = _log(jnp.stack([jnp.asarray(g) for g in signals.gradient_norms.values()], axis=1))
        narrow += [logs, logs[:, :-1] - logs[:, 1:]]  # ratios of layers carry much of the signal
    if signals.scalars:
        narrow.append(jnp.stack([jnp.asarray(v) for v in signals.scalars.values()], axis=1))
    if not narrow and label is not None:
        wide.append(jnp.asarray(label, jnp.float32))
    n = len(jax.tree.leaves(signals)[0])
    empty = jnp.zeros((n, 0))
    return (
        jnp.concatenate([empty, *narrow], axis=1),
        jnp.concatenate([empty, *wide], axis=1),
        jnp.zeros(n) if base is None else base,
        directions,
        images,
    )


def _log_odds_of(loss: Array) -> Array:
    """`-log(exp(loss) - 1)`: monotone in the loss, light-tailed on both sides."""
    loss = jnp.clip(jnp.asarray(loss), 1e-30, 80.0)
    return -(loss + jnp.log(-jnp.expm1(-loss)))


def _own_and_rest(z: Array, label: Array) -> tuple[Array, Array]:
    own = jnp.sum(jnp.where(label, z, 0), axis=1)
    return own, jax.nn.logsumexp(jnp.where(label, -jnp.inf, z), axis=1)


def _of_gradient(gradient: Gradient) -> tuple[Array, list[Array], Gradient | None]:
    """Sizes in logs, order statistics, and the direction for the gradient component."""
    if isinstance(gradient, Outer):
        a, delta = (jnp.asarray(f, jnp.float32) for f in gradient)  # they may be kept as bfloat16
        size = [
            _log(_norm(a)),
            _log(jnp.abs(a).sum(1)),
            _log(_norm(delta)),
            _log(jnp.abs(delta).max(1)),
        ]
        unit = Outer(_direction(a), _direction(delta))
        return jnp.stack(size, axis=1), [_order_statistics(jnp.abs(a))], unit
    flat = jnp.asarray(gradient, jnp.float32).reshape(len(gradient), -1)
    size = [_log(_norm(flat)), _log(jnp.abs(flat).sum(1)), _log(jnp.abs(flat).max(1))]
    unit_vector = _direction(flat)
    if gradient.ndim == 2:  # a bias or a scale
        return jnp.stack(size, axis=1), [_order_statistics(jnp.abs(unit_vector))], None
    # A kernel of more axes is a matrix of its last axis by all others.
    matrix = unit_vector.reshape(len(flat), -1, gradient.shape[-1])
    spread = [_order_statistics(jnp.sqrt(jnp.square(matrix).mean(axis))) for axis in (1, 2)]
    return jnp.stack(size, axis=1), spread, matrix


def _direction(v: Array) -> Array:
    """Scaled to root mean square 1 a record; zero stays zero."""
    return v * (v.shape[1] ** 0.5 / jnp.maximum(_norm(v), 1e-30))[:, None]


def _norm(v: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(v), axis=1))


def _log(v: Array) -> Array:
    return jnp.log(jnp.maximum(v, _TINY))


def _order_statistics(v: Array) -> Array:
    """Values sorted downwards, at most `_SORTED` of them, evenly spaced in rank."""
    v = -jnp.sort(-v, axis=1)
    if v.shape[1] <= _SORTED:
        return v
    return v[:, np.linspace(0, v.shape[1] - 1, _SORTED).round().astype(int)]


def _over_positions(statistic: Any, image: Array) -> Array:
    """A statistic of each channel, over records and positions."""
    return statistic(image, axis=tuple(range(image.ndim - 1)), keepdims=True)


def _column_scales(narrow: Array, wide: Array) -> dict[str, Array]:
    """Of all columns at once: to compile this twice takes longer than to run it."""
    x = jnp.concatenate([narrow, wide], axis=1)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    levels = np.linspace(0, 1, _KNOTS)
    knots = jnp.quantile(x, levels, axis=0)  # [knots, d]
    # A value that many records share gets the middle of the ranks it spans.
    rank = jax.vmap(
        lambda k: (
            (jnp.searchsorted(k, k, side="left") + jnp.searchsorted(k, k, side="right") - 1)
            / (2 * (_KNOTS - 1))
        ),
        in_axes=1,
        out_axes=1,
    )(knots)
    groups = jnp.split(spread, [narrow.shape[1]])
    floor = [1e-3 * jnp.max(group, initial=1e-6) for group in groups]
    return {
        "mean": mean,
        "spread": jnp.concatenate([g + f for g, f in zip(groups, floor, strict=True)]),
        "knots": knots,
        "normal": ndtri(jnp.clip(rank, 0.002, 0.998)),
    }


def _standardised(narrow: Array, wide: Array, scale: dict[str, Array], shrink: float) -> Array:
    """Each column as a standard score and as a normal score `[n, 2 d]`, narrow ones first."""
    x = jnp.concatenate([narrow, wide], axis=1)
    standard = jnp.clip((x - scale["mean"][None]) / scale["spread"][None], -8, 8)
    normal = jax.vmap(jnp.interp, in_axes=(1, 1, 1), out_axes=1)(x, scale["knots"], scale["normal"])
    d = narrow.shape[1]
    # Many correlated columns must not drown the few good ones.
    of_wide = [shrink * standard[:, d:], shrink * normal[:, d:]]
    return jnp.concatenate([standard[:, :d], normal[:, :d], *of_wide], axis=1)
