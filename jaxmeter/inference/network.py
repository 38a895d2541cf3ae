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
        return nn.gelu(nn.Dense(self.width, name="_Dense_0")(rows))


class ImageComponent(nn.Module):
    """Reads activations `[n, positions..., channels]` by one convolution, pooled over positions."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> Array:
        """`[n, 2 width]`."""
        window = (3,) * (image.ndim - 2)
        image = nn.gelu(nn.Conv(self.width, window, strides=2)(image))
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
        he, zeros = nn.initializers.he_normal(), nn.initializers.zeros
        # A layer's name decides its initial weights: these keep those of earlier releases.
        for i, width in enumerate(self.widths):
            hidden = nn.gelu(nn.Dense(width, kernel_init=he, name=f"_Dense_{i}")(hidden))
            hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        last = nn.Dense(1, kernel_init=zeros, name=f"_Dense_{len(self.widths)}")
        correction = last(hidden)[:, 0]
        return correction + self.param("slope", nn.initializers.ones, ()) * features.base


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
        like = jax.eval_shape(features, scale, signals)
        some = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), like)
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
