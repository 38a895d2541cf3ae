"""Scores by networks that are fitted without any known member of the target.

Two learn from reference models, whose members are known, what members look like (`shokri`,
`trajectory`); two learn from a population of known non-members what a non-member's signal should be
(`quantile_gaussian`, `quantile_pinball`).
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from jaxmeter.reference.cells import chosen, membership
from jaxmeter.reference.networks import Draw, NetworkConfig, fitted

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
        _finite(name, part, axis)
    return found, signals, seen, used


def _finite(name: str, values: NDArray, axis: int) -> None:
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
        _finite(name, part, 0)
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


def logistic(outputs: Array, truth: Array) -> Array:
    """Cross-entropy of the first output, a logit."""
    return jax.nn.softplus(outputs[:, 0]) - truth * outputs[:, 0]


def _gaussian(outputs: Array, truth: Array) -> Array:
    """Minus the log-likelihood, less a constant; the second output is the log sd."""
    log_sd = outputs[:, 1]
    return log_sd + 0.5 * jnp.exp(-2 * log_sd) * jnp.square(truth - outputs[:, 0])


def _pinball(outputs: Array, truth: Array) -> Array:
    """Of truth `[b, 2]`: the signal and the quantile's level."""
    excess = truth[:, 0] - outputs[:, 0]
    return jnp.maximum(truth[:, 1] * excess, (truth[:, 1] - 1) * excess)
