"""The inference model of Nasr, Shokri, Houmansadr 2019 (arXiv:1812.00910), in flax.linen.

One component a signal, chosen by the signal's shape, an encoder on all of them, one membership
logit. What differs from the paper, and why:

- Every signal is first described by exact, cheap functions of it that do not depend on how classes
  or units happen to be numbered: the label's own logit, the log-odds against the others, norms
  in logs, sorted values. A few hundred known members are too few to learn such invariances.
- The encoder's output is added to the log-odds of the record's class, so that before the first step
  the model *is* the loss threshold, and fitting can only move it from there.
- A Dense gradient is read from its factors: the paper's convolution with kernels of one row's width
  is `relu(a_i (K^T delta)_k + b_k)` for a rank-one gradient.
- An ensemble of networks, fitted as one program, with cross-entropy in place of the squared error.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri

from jaxmeter.gradients import Gradient, Outer
from jaxmeter.lowering import lowered
from jaxmeter.signals import Signals
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


class GradientComponent(nn.Module):
    """Reads the gradient of a matrix `[n, d_in, d_out]`, factored or not; both give equal results.

    `kernels` functions of a row of the gradient, applied to every row (the paper's convolution with
    `(1, d_out)` kernels), then a Dense layer over rows and kernels.
    """

    kernels: int
    width: int
    dropout: float

    @nn.compact
    def __call__(self, gradient: Gradient, *, train: bool) -> Array:
        """`[n, width]`."""
        d_out = (gradient.delta if isinstance(gradient, Outer) else gradient).shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (d_out, self.kernels))
        bias = self.param("bias", nn.initializers.zeros, (self.kernels,))
        if isinstance(gradient, Outer):
            rows = gradient.a[:, :, None] * (gradient.delta @ kernel)[:, None, :]
        else:
            rows = gradient @ kernel
        rows = nn.relu(rows + bias[None, None]).reshape(len(rows), -1)
        rows = nn.Dropout(self.dropout, deterministic=not train)(rows)
        return nn.gelu(_dense(self.width)(rows))


class ImageComponent(nn.Module):
    """Reads activations `[n, positions..., channels]` by one convolution, pooled over positions."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> Array:
        """`[n, 2 width]`."""
        window = (3,) * (image.ndim - 2)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        image = nn.Conv(self.width, window, strides=2, use_bias=False)(image)
        image = nn.gelu(image + bias.reshape((1,) * (image.ndim - 1) + (-1,)))
        flat = image.reshape(len(image), -1, self.width)
        pooled = jnp.concatenate([flat.mean(axis=1), flat.max(axis=1)], axis=-1)
        return nn.Dropout(self.dropout, deterministic=not train)(pooled)


class InferenceModel(nn.Module):
    """Components, encoder, one logit, on top of the loss threshold."""

    widths: tuple[int, ...] = (128, 64)
    dropout: float = 0.5
    kernels: int = 2
    component_width: int = 16
    shrink: float = 0.15

    @nn.compact
    def __call__(self, features: Features, *, train: bool = False) -> Array:
        """Membership logits `[n]`."""
        parts = [features.vector]
        for name, gradient in features.directions.items():
            component = GradientComponent(
                self.kernels, self.component_width, self.dropout, name=f"gradient {_plain(name)}"
            )
            parts.append(self.shrink * component(gradient, train=train))
        for name, image in features.images.items():
            reader = ImageComponent(
                self.component_width, self.dropout, name=f"image {_plain(name)}"
            )
            parts.append(self.shrink * reader(image, train=train))
        hidden = jnp.concatenate(parts, axis=-1)
        for width in self.widths:
            hidden = nn.gelu(_dense(width, nn.initializers.he_normal())(hidden))
            hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        correction = _dense(1, nn.initializers.zeros)(hidden)[:, 0]
        return correction + self.param("slope", nn.initializers.ones, ()) * features.base


class _Dense(nn.Module):
    """A Dense layer that does not rely on rank promotion."""

    width: int
    kernel_init: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return x @ kernel + bias[None]


def _dense(width: int, kernel_init: Any = None) -> _Dense:
    return _Dense(width, kernel_init or nn.initializers.lecun_normal())


# --- signals -> features -------------------------------------------------------------------------


def scales(signals: Signals) -> dict[str, Any]:
    """What `features` needs to know of the fit part: location, spread, quantiles of summaries."""
    narrow, wide, base, _, images = _described(signals)
    return {
        "narrow": _column_scales(narrow),
        "wide": _column_scales(wide),
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
        vector=jnp.concatenate(
            [
                _standardised(narrow, scale["narrow"]),
                # Many correlated columns must not drown the few good ones.
                shrink * _standardised(wide, scale["wide"]),
            ],
            axis=1,
        ),
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


def _column_scales(x: Array) -> dict[str, Array]:
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
    largest = jnp.max(spread, initial=1e-6)
    return {
        "mean": mean,
        "spread": spread + 1e-3 * largest,
        "knots": knots,
        "normal": ndtri(jnp.clip(rank, 0.002, 0.998)),
    }


def _standardised(x: Array, scale: dict[str, Array]) -> Array:
    """Each column as a standard score and as a normal score, side by side `[n, 2 d]`."""
    standard = jnp.clip((x - scale["mean"][None]) / scale["spread"][None], -8, 8)
    normal = jax.vmap(jnp.interp, in_axes=(1, 1, 1), out_axes=1)(x, scale["knots"], scale["normal"])
    return jnp.concatenate([standard, normal], axis=1)


def _plain(name: str) -> str:
    return name.replace("/", " ")


# --- as an Attack --------------------------------------------------------------------------------


class Ensemble(NamedTuple):
    """The pure functions of an ensemble of inference models, see `attack.Attack`."""

    init: Callable[..., Any]
    prepare: Callable[..., Features]
    logits: Callable[..., Array]


def ensemble(model: InferenceModel, members: int) -> Ensemble:
    """`members` networks side by side; their parameters have a leading axis."""

    def init(key: Array, signals: Signals) -> dict[str, Any]:
        scale = scales(signals)
        some = jax.tree.map(lambda leaf: leaf[:1], features(scale, signals))
        keys = jax.random.split(key, members)
        params = jax.vmap(lambda key: model.init(key, some)["params"])(keys)
        return {"params": params, "scale": scale}

    def prepare(params: dict[str, Any], signals: Signals) -> Features:
        return features(params["scale"], signals, model.shrink)

    def logits(params: dict[str, Any], prepared: Features, key: Array | None = None) -> Array:
        # A fit calls this in a scan, where XLA's CPU backend runs most convolutions in naive loops.
        run = lowered(every, looped=True) if prepared.images else every
        return run(params["params"], prepared, key)

    def every(params: Any, prepared: Features, key: Array | None) -> Array:
        if key is None:
            return jax.vmap(partial(_forward, model, prepared, None))(params)
        keys = jax.random.split(key, members)
        return jax.vmap(partial(_forward, model, prepared))(keys, params)

    def _forward(
        model: InferenceModel, prepared: Features, key: Array | None, params: Any
    ) -> Array:
        rngs = None if key is None else {"dropout": key}
        out: Any = model.apply({"params": params}, prepared, train=key is not None, rngs=rngs)
        return out

    return Ensemble(init, prepare, logits)
