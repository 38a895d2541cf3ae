"""The inference network that ML Privacy Meter released in 2020, as an `Attack`.

Layer for layer the network of its `attack/meminf.py` and `meminf_modules/` (commit 66cd3fa), with
its squared error; Nasr, Shokri, Houmansadr 2019 (arXiv:1812.00910), figure 4. Kept for comparison:
`attack.inference_model` finds more. Three things differ, none of which changes the function that
it computes from the same weights:

- A Dense gradient is read from its factors: the convolution of `(1, d_out)` kernels over
  `a delta^T` is `relu(a_i (delta K)_k + b_k)`.
- Dropout is active in fitting, which it never was: that code called its network in inference mode.
  `dropout=0` gives what it did.
- Signals that it could not take have a component: kernels of convolutions (the released component
  expected an input that no kernel has), biases and the scales of BatchNorm (the component for
  vectors), and a single signal alone.
"""

from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxmeter.gradients.factors import Gradient, Outer
from jaxmeter.inference.attack import Attack
from jaxmeter.signals.spec import Signals


class ReleasedModel(nn.Module):
    """Components, encoder and the logit of the membership probability.

    Attributes:
      deviation: standard deviation of all initial weights; biases start at 0.
      dropout: rate of all dropout layers.
    """

    deviation: float = 0.01
    dropout: float = 0.2

    @nn.compact
    def __call__(self, signals: Signals, *, train: bool = False) -> Array:
        """Logits `[n]` of signals of n records."""
        parts = [self._output(name, value, train) for name, value in signals.outputs.items()]
        if signals.label is not None:
            parts.append(self._fcn(jnp.asarray(signals.label, jnp.float32), 128, "label"))
        if signals.loss is not None:
            parts.append(self._fcn(jnp.asarray(signals.loss)[:, None], 100, "loss"))
        for name, gradient in signals.gradients.items():
            parts.append(self._gradient(name.replace("/", " "), gradient, train))
        for name, norm in signals.gradient_norms.items():
            named = f"norm {name.replace('/', ' ')}"
            parts.append(self._fcn(jnp.asarray(norm)[:, None], 100, named))
        hidden = jnp.concatenate(parts, axis=1)
        for i, width in enumerate((256, 128, 64), start=1):
            hidden = nn.relu(self._dense(width, f"encoder {i}")(hidden))
        return self._dense(1, "encoder 4")(hidden)[:, 0]

    def _dense(self, width: int, name: str) -> "_Dense":
        return _Dense(width, self.deviation, name=name)

    def _drop(self, x: Array, train: bool) -> Array:
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def _fcn(self, x: Array, width: int, name: str) -> Array:
        for i, size in enumerate((width, 64), start=1):
            x = nn.relu(self._dense(size, f"{name} {i}")(x))
        return x

    def _output(self, name: str, value: Array, train: bool) -> Array:
        value, name = jnp.asarray(value, jnp.float32), f"output {name.replace('/', ' ')}"
        if value.ndim == 2:
            return self._fcn(value, 100, name)
        # A valid convolution whose kernel is as large as the image is a matrix product.
        x = nn.relu(self._dense(value.shape[-1], f"{name} convolution")(_flat(value)))
        for i, width in enumerate((1024, 512, 128, 64), start=1):
            x = self._drop(x, train) if i <= 2 else x
            x = nn.relu(self._dense(width, f"{name} {i}")(x))
        return x

    def _gradient(self, name: str, gradient: Gradient, train: bool) -> Array:
        named = f"gradient {name}"
        if isinstance(gradient, Outer):  # one stored transposed is read as Keras stores it
            return self._matrix(Outer(gradient.a, gradient.delta), named, train)
        if gradient.ndim == 3:
            return self._matrix(gradient, named, train)
        gradient = jnp.asarray(gradient, jnp.float32)
        if gradient.ndim == 2:
            return self._fcn(gradient, 100, named)
        *window, _, filters = gradient.shape[1:]
        # As released the image is (filters, kernel's height, inputs); both axes of a window here.
        image = jnp.moveaxis(gradient.reshape(len(gradient), -1, *gradient.shape[-2:]), -1, 1)
        shape = (window[0], window[1] if len(window) > 1 else 1)
        initial = nn.initializers.normal(self.deviation)
        convolution = nn.Conv(filters, shape, kernel_init=initial, name=f"{named} convolution")
        x = nn.relu(convolution(image))
        x = self._drop(_flat(x), train)
        return nn.relu(self._dense(64, f"{named} 1")(x))

    def _matrix(self, gradient: Gradient, name: str, train: bool) -> Array:
        if train and self.dropout and isinstance(gradient, Outer):  # entries are dropped one by one
            gradient = gradient.materialise()
        d_out = (gradient.delta if isinstance(gradient, Outer) else gradient).shape[-1]
        rows = self._dense(100, f"{name} convolution")
        if isinstance(gradient, Outer):
            x = rows.on_rows(gradient)
        else:
            x = rows(self._drop(jnp.asarray(gradient, jnp.float32), train).reshape(-1, d_out))
            x = x.reshape(len(gradient), -1, 100)
        x = self._drop(_flat(nn.relu(x)), train)
        x = self._drop(nn.relu(self._dense(2024, f"{name} 1")(x)), train)
        for i, width in enumerate((512, 256), start=2):
            x = nn.relu(self._dense(width, f"{name} {i}")(x))
        return x


class _Dense(nn.Module):
    """A Dense layer that reads factored gradients as they are; the bias starts at 0."""

    width: int
    deviation: float

    @nn.compact
    def __call__(self, x: Any, factored: bool = False) -> Array:
        size = (x.delta if factored else x).shape[-1]
        initial = nn.initializers.normal(self.deviation)
        kernel = self.param("kernel", initial, (size, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        if factored:
            product = jnp.asarray(x.delta, jnp.float32) @ kernel
            rows = jnp.asarray(x.a, jnp.float32)[:, :, None] * product[:, None, :]
            return rows + bias[None, None]
        return x @ kernel + bias[None]

    def on_rows(self, gradient: Outer) -> Array:
        """Of each row of the outer product, `[n, d_in, width]`."""
        return self(gradient, factored=True)


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def squared_error(logits: Array, truth: Array) -> Array:
    """`(sigmoid(logit) - truth)^2`, the loss that the released code minimises."""
    return jnp.square(jax.nn.sigmoid(logits) - truth)


def released_model(*, deviation: float = 0.01, dropout: float = 0.2) -> Attack:
    """The network of ML Privacy Meter 2020 as an `Attack`, with its squared error.

    Args:
      deviation: standard deviation of the initial weights. At the released 0.01 a fresh network
        says 0.5 of every record to some six digits, and gradient descent hardly leaves that.
      dropout: rate in fitting; 0 is what the released code did, against its own text.

    Calling it twice with the same arguments gives the same object, so nothing is compiled twice.

    >>> import jaxmeter as jm
    >>> signals = jm.Signals({"logits": jnp.ones((4, 3))}, {}, {}, jnp.ones(4), None)
    >>> attack = released_model()
    >>> attack.score(attack.init(jax.random.key(0), signals), signals).shape
    (4,)
    """
    return _released_model(deviation, dropout)


@lru_cache
def _released_model(deviation: float, dropout: float) -> Attack:
    model = ReleasedModel(deviation=deviation, dropout=dropout)

    def init(key: Array, signals: Signals) -> Any:
        return model.init(key, jax.tree.map(lambda leaf: leaf[:1], signals))

    def logits(params: Any, signals: Signals, key: Array | None) -> Array:
        rngs = None if key is None else {"dropout": key}
        out: Any = model.apply(params, signals, train=key is not None, rngs=rngs)
        return out[None]

    def score(params: Any, signals: Signals) -> Array:
        return logits(params, signals, None)[0]

    return Attack(jax.jit(init), jax.jit(score), None, logits, squared_error)
