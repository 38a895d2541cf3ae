"""Quantile regression (Bertran et al.): a threshold for each record, without its models."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from jaxmeter.reference.networks import Draw, NetworkConfig, fitted


def quantile_gaussian(
    key: Array,
    observed: ArrayLike,
    features: ArrayLike,
    population_observed: ArrayLike,
    population_features: ArrayLike,
    *,
    config: NetworkConfig | None = None,
) -> NDArray:
    """How many standard deviations above what is usual for such a record, float64 `[n]`.

    Bertran et al. 2023 (arXiv:2307.03694): a network gives mean and log standard deviation of a
    non-member's signal from the record, fitted on a population by the Gaussian likelihood; the
    score is `(s - mean) / sd`. No reference models.

    Args:
      key: PRNG key, consumed.
      observed: the target's signal `[n]`, in the paper `logits.margin`.
      features: of the records themselves `[n, d]`: x, flat, or an embedding, with y one-hot or not.
      population_observed: the signal of known non-members that are not evaluated, `[z]`.
      population_features: their features `[z, d]`.
      config: the network; None for the default one.

    Raises:
      ValueError: if shapes do not fit, a value is not finite, there are fewer than two records in
        the population, or evaluated records among them.

    >>> import jax
    >>> random = np.random.default_rng(0)
    >>> x, z = random.normal(size=(2, 500, 1))
    >>> s, quick = 3 * x[:, 0] + 2, NetworkConfig(steps=200)
    >>> noise = random.normal(size=500)
    >>> scores = quantile_gaussian(jax.random.key(0), s, x, 3 * z[:, 0] + noise, z, config=quick)
    >>> bool(1.5 < scores.mean() < 2.5)
    True
    """
    found, x, truth, draw = _regression(
        observed, features, population_observed, population_features
    )
    network = fitted(key, draw, _gaussian, outputs=2, config=config or NetworkConfig())
    mean, log_sd = network(x).T
    return (((found - truth.mean()) / truth.std()) - mean) / np.exp(log_sd)


def quantile_pinball(
    key: Array,
    observed: ArrayLike,
    features: ArrayLike,
    population_observed: ArrayLike,
    population_features: ArrayLike,
    *,
    level: float = 0.99,
    config: NetworkConfig | None = None,
) -> NDArray:
    """The signal less the quantile that non-members of such a kind have, float64 `[n]`.

    Bertran et al. 2023 (arXiv:2307.03694) by the pinball loss. A score above 0 says "member" at a
    false-positive rate of `1 - level`, whatever the record.

    Args:
      key: as `quantile_gaussian`.
      observed: as `quantile_gaussian`.
      features: as `quantile_gaussian`.
      population_observed: as `quantile_gaussian`.
      population_features: as `quantile_gaussian`.
      level: of the quantile, strictly between 0 and 1.
      config: as `quantile_gaussian`.

    Errors: as `quantile_gaussian`.

    >>> import jax
    >>> random = np.random.default_rng(0)
    >>> (x, z), (s, t) = random.normal(size=(2, 1000, 1)), random.normal(size=(2, 1000))
    >>> quick = NetworkConfig(steps=300)
    >>> scores = quantile_pinball(jax.random.key(0), s, x, t, z, level=0.9, config=quick)
    >>> bool(0.05 < np.mean(scores > 0) < 0.15)
    True
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be strictly between 0 and 1.")
    found, x, truth, draw = _regression(
        observed, features, population_observed, population_features
    )

    def draw_with_level(random: np.random.Generator, size: int) -> tuple[NDArray, NDArray]:
        x, s = draw(random, size)
        return x, np.stack([s, np.full(size, level)], axis=1)

    network = fitted(key, draw_with_level, _pinball, outputs=1, config=config or NetworkConfig())
    return found - (network(x)[:, 0] * truth.std() + truth.mean())


def finite(name: str, values: NDArray, axis: int) -> None:
    """Raises if a part has values that are not finite, and says whose."""
    other = tuple(a for a in range(values.ndim) if a != axis)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=other))
    if bad.size:
        raise ValueError(
            f"{name}: the signals of {bad.size} records are not finite (first: {bad[0]}). Leave "
            "them out, or use statistics of logits that do not overflow (jaxmeter.logits)."
        )


def _regression(
    observed: ArrayLike,
    features: ArrayLike,
    population_observed: ArrayLike,
    population_features: ArrayLike,
) -> tuple[NDArray, NDArray, NDArray, Draw]:
    """Checked signal and features `[n, d]`, the population's signal `[z]`, and draws from it."""
    found, truth = (np.asarray(part, np.float64) for part in (observed, population_observed))
    x, z = np.asarray(features), np.asarray(population_features)
    if found.ndim != 1 or truth.ndim != 1 or x.ndim != 2 or z.ndim != 2 or x.shape[1] != z.shape[1]:
        raise ValueError(
            f"signals have the shapes {found.shape} and {truth.shape}, features {x.shape} and "
            f"{z.shape}; they must be [n], [z], [n, d] and [z, d]."
        )
    if len(x) != found.size or len(z) != truth.size or truth.size < 2:
        raise ValueError(
            f"{found.size} signals of {len(x)} records, {truth.size} of a population of {len(z)}; "
            "give one a record and a population of at least two."
        )
    for name, part in (("observed", found), ("features", x), ("population", truth), ("its", z)):
        finite(name, part, 0)
    evaluated = set(_hashes(x, found))
    both = sum(each in evaluated for each in _hashes(z, truth))
    if both:
        raise ValueError(
            f"{both} of the population's {truth.size} records are evaluated ones, bit for bit. The "
            "population is known not to be members; keep it apart (jaxmeter.split)."
        )
    spread = truth.std()
    if not spread > 0:
        raise ValueError("the population's signal is a constant; nothing can be fitted to it.")
    standard = (truth - truth.mean()) / spread

    def draw(random: np.random.Generator, size: int) -> tuple[NDArray, NDArray]:
        some = random.integers(truth.size, size=size)
        return z[some], standard[some]

    return found, x, truth, draw


def _hashes(features: NDArray, signal: NDArray) -> Iterator[int]:
    """One number a record, from all its bits."""
    for row, s in zip(features, signal, strict=True):
        yield hash((row.tobytes(), s.tobytes()))


def _gaussian(outputs: Array, truth: Array) -> Array:
    """Minus the log-likelihood, less a constant; the second output is the log sd."""
    log_sd = outputs[:, 1]
    return log_sd + 0.5 * jnp.exp(-2 * log_sd) * jnp.square(truth - outputs[:, 0])


def _pinball(outputs: Array, truth: Array) -> Array:
    """Of truth `[b, 2]`: the signal and the quantile's level."""
    excess = truth[:, 0] - outputs[:, 0]
    return jnp.maximum(truth[:, 1] * excess, (truth[:, 1] - 1) * excess)
