"""The network of the inference model: a component for each signal, and ensembles."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxmeter.gradients.factors import Gradient, Outer
from jaxmeter.inference.features import Features, features, scales
from jaxmeter.jaxpr.lowering import lowered
from jaxmeter.signals.spec import Signals


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
