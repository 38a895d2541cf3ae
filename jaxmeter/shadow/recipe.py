"""How reference models are trained: a recipe, and a plain-data config that makes one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxmeter.shadow.views import MirrorAndShift


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every reference model is trained.

    Attributes:
      optimizer: an optax transformation, with a schedule of steps if it likes.
      epochs: passes over a model's own members.
      batch_size: records a step. An epoch's last batch is filled up with its first records.
      schedule: `fraction of the training done -> factor` of every update, so that models with more
        members take their steps at the same pace; an optax schedule over `decay_steps=1` is one.
      loss: `(logits [b, classes], y [b]) -> [b]`; None for the cross-entropy.
      smoothing: of labels, in the cross-entropy: the share that goes to all classes evenly.
      augment: `(key, x [b, ...]) -> x`, a pure function; None for nothing.
      stop_at: a model's training ends after the first epoch whose mean loss is below this.

    >>> Recipe(optimizer=optax.adam(1e-3), epochs=60).batch_size
    64
    """

    optimizer: optax.GradientTransformation
    epochs: int
    batch_size: int = 64
    schedule: Callable[[Array], Array] | None = None
    loss: Callable[[Array, Array], Array] | None = None
    smoothing: float = 0.0
    augment: Callable[[Array, Array], Array] | None = None
    stop_at: float | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"epochs={self.epochs} and batch_size={self.batch_size}; both must be at least 1, "
                "or nothing is trained."
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing}; it is a share of a label, in [0, 1).")
        if self.loss is not None and self.smoothing:
            raise ValueError(
                "smoothing belongs to the cross-entropy, and loss= replaces that; smooth in it."
            )

    def losses(self, logits: Array, y: Array) -> Array:
        """The loss of each record `[b]`."""
        if self.loss is not None:
            return self.loss(logits, y)
        if not self.smoothing:
            return optax.softmax_cross_entropy_with_integer_labels(logits, y)
        classes = logits.shape[-1]
        truth = optax.smooth_labels(jax.nn.one_hot(y, classes), self.smoothing)
        return optax.softmax_cross_entropy(logits, truth)


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """A recipe as plain data, for configs and command lines.

    Attributes:
      optimizer: "sgd" is with Nesterov-free momentum.
      learning_rate: at the start, or at the height of it where there is a warm-up.
      schedule: "cosine" ends at zero; "lira" is that of Carlini et al. (2022, arXiv:2112.03570),
        `cos(7 pi t / 16)`.
      warmup: share of the training in which the rate rises from zero.
      momentum: of "sgd".
      weight_decay: decoupled from the gradient for "adamw", added to it for the others.
      epochs: passes over a model's own members.
      batch_size: records a step.
      smoothing: of labels.
      augment: of images.
      stop_at: training ends after the first epoch whose mean loss is below this.

    >>> RecipeConfig(epochs=60).recipe().epochs
    60
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "lira"] = "constant"
    warmup: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    epochs: int = 50
    batch_size: int = 64
    smoothing: float = 0.0
    augment: MirrorAndShift | None = None
    stop_at: float | None = None

    def recipe(self) -> Recipe:
        """The recipe; the same object for equal configs, so that programs are compiled once."""
        return _made(self)


@lru_cache(maxsize=32)
def _made(config: RecipeConfig) -> Recipe:
    if not config.learning_rate > 0:
        raise ValueError(f"learning_rate={config.learning_rate}; it must be above zero.")
    if not 0 <= config.warmup < 1:
        raise ValueError(f"warmup={config.warmup}; it is a share of the training, in [0, 1).")
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        optimizer = optax.adamw(rate, weight_decay=decay)
    else:
        momentum = config.momentum or None
        plain = optax.adam(rate) if config.optimizer == "adam" else optax.sgd(rate, momentum)
        optimizer = optax.chain(optax.add_decayed_weights(decay), plain) if decay else plain

    def schedule(done: Array) -> Array:
        shape = {
            "constant": jnp.ones_like(done),
            "cosine": (1 + jnp.cos(jnp.pi * done)) / 2,
            "lira": jnp.cos(7 * jnp.pi * done / 16),
        }[config.schedule]
        return shape * jnp.minimum(1, done / config.warmup) if config.warmup else shape

    is_constant = config.schedule == "constant" and not config.warmup
    return Recipe(
        optimizer=optimizer,
        epochs=config.epochs,
        batch_size=config.batch_size,
        schedule=None if is_constant else schedule,
        smoothing=config.smoothing,
        augment=config.augment,
        stop_at=config.stop_at,
    )
