"""Bayesian variances: Student-t predictive likelihood ratios (BaVarIA, arXiv:2603.11799).

Each side of each record has a mean and a variance with a normal-inverse-gamma prior that all
records share; the models' signals update it, and what the next model's signal should look like is a
Student t. Few models lean on the prior, many on their own spread, so that no choice between own and
shared variances is needed. How the prior is fitted is our own choice (see `prior`): only the
paper's abstract was at hand.
"""

from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from jaxmeter.reference.inputs import Side, Sides, cells, need, say, sides
from jaxmeter.reference.lira import shared_variance

_MOST = 1e4  # degrees of freedom of a prior that knows the variance: a normal, to 1e-4
_REMEDY = "There the prior, which all records share, stood in for the models."


class Prior(NamedTuple):
    """A normal-inverse-gamma prior for each query `[q, 1]`.

    `variance ~ InverseGamma(shape, rate)`, `mean ~ N(centre, variance / weight)`.
    """

    centre: NDArray
    weight: NDArray  # in models
    shape: NDArray
    rate: NDArray


def bavaria(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    models: ArrayLike | None = None,
) -> NDArray:
    """Online: `log t_in(s) - log t_out(s)`, Student-t predictive densities, float64 `[n]`.

    With prior `(m0, k0, a0, b0)` and m models of mean x and sum of squares SS on a side:
    `kn = k0 + m`, `mn = (k0 m0 + m x) / kn`, `an = a0 + m/2`,
    `bn = b0 + SS/2 + k0 m (x - m0)^2 / (2 kn)`; the predictive is Student's t with `2 an` degrees
    of freedom, centre mn and squared scale `bn (kn + 1) / (an kn)`.

    Args, errors: as `lira`; several queries: log-densities are averaged. A record without models on
    a side has the prior there, and a ReferenceWarning says so.

    >>> s, m = [[2.0], [2.2], [0.0], [0.2]], [[True], [True], [False], [False]]
    >>> bool(bavaria([2.0], s, m)[0] > 0 > bavaria([0.1], s, m)[0])
    True
    """
    given = cells(observed, references, was_member, models)
    both = sides(given)
    need(both.seen, given, "has seen", "use bavaria_offline.")
    need(both.unseen, given, "has not seen", "nothing says what non-members look like.")
    say(
        {
            "seen by no model": both.seen.models == 0,
            "seen by every model": both.unseen.models == 0,
        },
        given,
        _REMEDY,
    )
    seen, unseen = (
        _log_density(given.observed, *predictive(side, prior(side, both))) for side in both
    )
    return (seen - unseen).mean(axis=0)


def bavaria_offline(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    models: ArrayLike | None = None,
) -> NDArray:
    """Offline, one-sided: `-log Pr[T > s]`, T the OUT models' Student-t predictive, float64 `[n]`.

    As `lira_offline`, with the variance of `bavaria`. Models that saw the record are not used.

    Args, errors, warnings: as `lira_offline`.

    >>> s, m = [[0.1, 0.3], [0.0, 0.2], [0.2, 0.1]], np.zeros((3, 2), bool)
    >>> bool(np.diff(bavaria_offline([0.1, 0.9], s, m))[0] > 0)
    True
    """
    given = cells(observed, references, was_member, models)
    both = sides(given)
    need(both.unseen, given, "has not seen", "an offline score needs models that did not see it.")
    say({"seen by every model": both.unseen.models == 0}, given, _REMEDY)
    only = Sides(both.unseen, both.unseen)
    freedom, centre, scale = predictive(both.unseen, prior(both.unseen, only))
    return -log_upper_tail((given.observed - centre) / scale, freedom).mean(axis=0)


def prior(side: Side, both: Sides) -> Prior:
    """The prior of one side, from all records that have models there.

    The variance: log sample variances are compared with what an inverse gamma of `a0, b0` gives, by
    their mean and variance (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3, section 6.2). The mean:
    `m0` is the average of the records' means, and `1/k0` what they vary by, in units of the shared
    variance, less the part that comes of averaging few models.
    """
    some, two = side.models > 0, side.models > 1
    pooled = shared_variance(side, both)
    centre = side.mean[:, some].mean(axis=1, keepdims=True)
    between = np.square(side.mean[:, some] - centre).sum(axis=1, keepdims=True)
    between = between / max(int(some.sum()) - 1, 1)
    excess = between / pooled - np.mean(1 / side.models[some])
    weight = 1 / np.maximum(excess, 1 / _MOST)
    shape, rate = np.empty_like(pooled), np.empty_like(pooled)
    for i in range(len(pooled)):
        freedom = (side.models[two] - 1).astype(np.float64)
        own = side.squares[i, two] / freedom
        shape[i], rate[i] = _inverse_gamma(own, freedom, float(pooled[i, 0]))
    return Prior(centre, weight, shape, rate)


def _inverse_gamma(own: NDArray, freedom: NDArray, pooled: float) -> tuple[float, float]:
    """Shape and rate from sample variances `[n]` and their degrees of freedom; Smyth's moments."""
    usable = own > 1e-20 * pooled
    if usable.sum() < 3:
        return 1.0, pooled
    own, freedom = own[usable], freedom[usable]
    logs = np.log(own) - scipy.special.digamma(freedom / 2) + np.log(freedom / 2)
    excess = logs.var(ddof=1) - scipy.special.polygamma(1, freedom / 2).mean()
    d0 = 2 * _inverse_trigamma(excess) if excess > 0 else _MOST
    d0 = min(d0, _MOST)
    variance = np.exp(logs.mean() + scipy.special.digamma(d0 / 2) - np.log(d0 / 2))
    return d0 / 2, d0 / 2 * variance


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value > 0, by Newton on 1/trigamma, which is convex (Smyth 2004)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = scipy.special.polygamma(1, x)
        step = trigamma * (1 - trigamma / value) / scipy.special.polygamma(2, x)
        x += step
        if abs(step) < 1e-12 * x:
            break
    return float(x)


def predictive(side: Side, prior: Prior) -> tuple[NDArray, NDArray, NDArray]:
    """Degrees of freedom, centre and scale `[q, n]` of the next model's signal, given a side's."""
    weight = prior.weight + side.models
    centre = (prior.weight * prior.centre + side.models * side.mean) / weight
    shape = prior.shape + side.models / 2
    rate = (
        prior.rate
        + side.squares / 2
        + prior.weight * side.models * np.square(side.mean - prior.centre) / (2 * weight)
    )
    return 2 * shape, centre, np.sqrt(rate * (weight + 1) / (shape * weight))


def _log_density(x: NDArray, freedom: NDArray, centre: NDArray, scale: NDArray) -> NDArray:
    """Of Student's t."""
    z = (x - centre) / scale
    return (
        -scipy.special.betaln(freedom / 2, 0.5)
        - 0.5 * np.log(freedom)
        - np.log(scale)
        - (freedom + 1) / 2 * np.log1p(np.square(z) / freedom)
    )


def log_upper_tail(t: NDArray, freedom: NDArray) -> NDArray:
    """`log Pr[T > t]` of Student's t, where the probability underflows too."""
    below = scipy.special.stdtr(freedom, -np.abs(t))
    tail = np.log(np.maximum(below, 1e-280))
    tiny = below < 1e-280
    if tiny.any():
        # Pr = I_x(d/2, 1/2) / 2 with x = d / (d + t^2), by its series at x = 0 (DLMF 8.17.7).
        d = np.broadcast_to(freedom, t.shape)[tiny] / 2
        log_x = -np.log1p(np.square(t[tiny]) / (2 * d))
        series = scipy.special.hyp2f1(d, 0.5, d + 1, np.exp(log_x))
        tail[tiny] = d * log_x - np.log(2 * d) - scipy.special.betaln(d, 0.5) + np.log(series)
    return np.where(t > 0, tail, np.log1p(-below))
