"""Attacks learned from what reference models say of records they saw and did not see."""

from collections.abc import Callable

import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from jaxmeter.reference.inputs import chosen, membership
from jaxmeter.reference.networks import NetworkConfig, fitted, logistic
from jaxmeter.reference.quantile import finite

Read = Callable[[NDArray, NDArray], NDArray]  # (models [b], records [b]) -> features [b, d]


def shokri(
    key: Array,
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    y: ArrayLike | None = None,
    config: NetworkConfig | None = None,
    models: ArrayLike | None = None,
) -> NDArray:
    """The membership logit of a classifier fitted on the reference models' outputs, float64 `[n]`.

    Shokri et al. 2017 (arXiv:1610.05820), who fit one classifier a class: here it is one for all,
    which sees the class. Batches hold as many members as non-members.

    Args:
      key: PRNG key, consumed.
      observed: features of the target's outputs, `[n, d]`: log-probabilities of all classes, sorted
        ones, or others.
      references: the same of k reference models, `[k, n, d]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      y: the records' labels `[n]`, to be one-hot features; None to leave them out.
      config: the network; None for the default one.
      models: indices of the reference models to use; None for all.

    Raises:
      ValueError: if shapes do not fit, a value is not finite, or the reference models were trained
        on all records or on none.

    >>> import jax
    >>> random = np.random.default_rng(0)
    >>> m = random.random((4, 200)) < 0.5
    >>> s = m[..., None] + 0.1 * random.normal(size=(4, 200, 1))
    >>> quick = NetworkConfig(steps=100)
    >>> scores = shokri(jax.random.key(0), s[0], s[1:], m[1:], config=quick)
    >>> bool(scores[m[0]].min() > scores[~m[0]].max())
    True
    """
    found, signals, seen, used = _checked(observed, references, was_member, models, axis=0)
    if y is None:
        extra = np.zeros((len(found), 0), np.float32)
    else:
        labels = np.asarray(y)
        if labels.shape != (len(found),):
            raise ValueError(f"y has the shape {labels.shape}; it must be [{len(found)}].")
        extra = (labels[:, None] == np.unique(labels)).astype(np.float32)

    def read(at: NDArray, records: NDArray) -> NDArray:
        return np.concatenate([signals[at, records], extra[records]], axis=1)

    return _classified(key, read, seen, used, np.concatenate([found, extra], axis=1), config)


def trajectory(
    key: Array,
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    config: NetworkConfig | None = None,
    models: ArrayLike | None = None,
) -> NDArray:
    """The membership logit of a classifier on signals over checkpoints, float64 `[n]`.

    After Liu et al. 2022 (CCS, "Membership Inference Attacks by Exploiting Loss Trajectory"), who
    have no checkpoints of the target and distil it to get some: give the losses along that
    distillation, and the last row the target's own, for their attack. All k reference models teach
    here, theirs is one.

    Args:
      key: PRNG key, consumed.
      observed: the target's losses (or any signal) at t checkpoints, `[t, n]`.
      references: the same of k reference models, `[k, t, n]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      config: the network; None for the default one.
      models: indices of the reference models to use; None for all.

    Errors: as `shokri`.

    >>> import jax
    >>> random = np.random.default_rng(0)
    >>> m = random.random((4, 200)) < 0.5
    >>> s = random.normal(size=(4, 3, 200)) - [[0], [3], [6]] * m[:, None]
    >>> quick = NetworkConfig(steps=100)
    >>> scores = trajectory(jax.random.key(0), s[0], s[1:], m[1:], config=quick)
    >>> bool(scores[m[0]].mean() > scores[~m[0]].mean())
    True
    """
    found, signals, seen, used = _checked(observed, references, was_member, models, axis=1)

    def read(at: NDArray, records: NDArray) -> NDArray:
        return signals[at, :, records]

    return _classified(key, read, seen, used, found.T, config)


def _classified(
    key: Array,
    read: Read,
    seen: NDArray,
    models: NDArray,
    observed: NDArray,
    config: NetworkConfig | None,
) -> NDArray:
    """The logit of a network that tells the cells of models that saw the record from others'."""
    n = seen.shape[1]
    share = sum(int(seen[model].sum()) for model in models) / (n * models.size)
    if not 0 < share < 1:
        raise ValueError(
            f"the {models.size} reference models were trained on "
            f"{'all records' if share else 'none of the records'}; a classifier needs both."
        )

    def draw(random: np.random.Generator, size: int) -> tuple[NDArray, NDArray]:
        wanted = np.arange(size) % 2 == 0
        at, records = np.empty(size, np.intp), np.empty(size, np.intp)
        for side in (True, False):
            missing = np.flatnonzero(wanted == side)
            while missing.size:
                some = random.choice(models, missing.size), random.integers(n, size=missing.size)
                good = seen[some] == side
                at[missing[good]], records[missing[good]] = some[0][good], some[1][good]
                missing = missing[~good]
        return read(at, records), wanted

    network = fitted(key, draw, logistic, outputs=1, config=config or NetworkConfig())
    return network(observed)[:, 0]


def _checked(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    models: ArrayLike | None,
    *,
    axis: int,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Observed, references, membership, models; records along `axis` of what was observed."""
    found = np.asarray(observed)
    signals, seen = membership(references, was_member)
    if signals.ndim != 3 or signals.shape[1:] != found.shape or found.shape[axis] != seen.shape[1]:
        wanted = ("[n, d] and [k, n, d]", "[t, n] and [k, t, n]")[axis]
        raise ValueError(
            f"observed has the shape {found.shape}, references {signals.shape}, was_member "
            f"{seen.shape}; the first two must be {wanted}."
        )
    used = chosen(models, len(signals))
    for name, part in (
        ("what was observed", found),
        *((f"reference model {model}", signals[model]) for model in used),
    ):
        finite(name, part, axis)
    return found, signals, seen, used
