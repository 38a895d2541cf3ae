"""LiRA: Gaussian likelihood ratios (Carlini et al. 2022, arXiv:2112.03570).

For each record, the signal under models that saw it, and under models that did not, is taken to be
normal. Means are each record's own. Variances have n - 1 in the denominator (the released code
divides by n); a record whose models agree exactly, or that has fewer than two, takes the shared
variance of that side.
"""

from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from jaxmeter.reference.inputs import Cells, Side, Sides, blocks, bridged, cells, need, say, sides

Variance = Literal["own", "shared"]
_ROUNDING = 1e-20  # a variance this much smaller than the shared one is rounding: models agree
_REMEDY = (
    "A missing side's mean was taken to be the other side's plus the average difference, a missing "
    "variance to be the shared one."
)
_REMEDY_OFFLINE = (
    "A missing mean was taken to be the average one, a missing variance to be the shared one."
)


def lira(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    variance: Variance = "shared",
    models: ArrayLike | None = None,
) -> NDArray:
    """LiRA online: `log N(s; mu_in, sd_in) - log N(s; mu_out, sd_out)`, float64 `[n]`.

    Algorithm 1 of Carlini et al. 2022. Several queries: their log-densities are averaged.

    Args:
      observed: the target's signal, `[n]` or `[q, n]` for q queries: `logits.log_odds` or
        `logits.margin`.
      references: the same of k reference models, `[k, n]` or `[k, q, n]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      variance: "shared": one variance for all records of a side (and query), from the residuals
        about each record's own mean; better below 64 models. "own": each record's.
      models: indices of the reference models to use; None for all.

    Raises:
      ValueError: if shapes do not fit, a value is not finite, no record was seen by some models and
        not by others, or the models agree on every record.

    Warns:
      ReferenceWarning: if some record lacks models on one side, or two for a variance of its own.

    >>> s, m = [[2.0], [2.2], [0.0], [0.2]], [[True], [True], [False], [False]]
    >>> lira([2.0], s, m).round(6).tolist()
    [90.0]
    """
    given = cells(observed, references, was_member, models)
    both = sides(given)
    _need_both(both, given)
    lacking = _missing(both)
    means = _centres(both)
    variances = []
    for name, side in zip(("IN", "OUT"), both, strict=True):
        spread, few = _variances(side, both, variance)
        variances.append(spread)
        if variance == "own":
            lacking[f"with fewer than two differing {name} models"] = few
    say(lacking, given, _REMEDY)
    seen, unseen = (
        _log_density(given.observed, mean, spread)
        for mean, spread in zip(means, variances, strict=True)
    )
    return (seen - unseen).mean(axis=0)


def lira_offline(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    variance: Variance = "shared",
    models: ArrayLike | None = None,
) -> NDArray:
    """LiRA offline, one-sided: `-log Pr[Z > s]` with `Z ~ N(mu_out, sd_out)`, float64 `[n]`.

    Equation 4 of Carlini et al. 2022 is `L = Pr[Z <= s] = Phi((s - mu_out) / sd_out)`; this is
    `-log(1 - L)`, an increasing function of it that does not round to ties where L rounds to 1.
    Several queries: averaged, Fisher's way of combining p-values. Models that saw the record are
    not used. The released code's score is another one, `lira_offline_two_sided`.

    Args, errors, warnings: as `lira`; every record should have models that did not see it.

    >>> score = lira_offline([3.0], [[-1.0], [1.0]], [[False], [False]])
    >>> bool(np.isclose(1 - np.exp(-score[0]), scipy.stats.norm.cdf(3 / np.sqrt(2))))
    True
    """
    given, mean, spread = _offline(observed, references, was_member, variance, models)
    z = (given.observed - mean) / np.sqrt(spread)
    return -scipy.stats.norm.logsf(z).mean(axis=0)


def lira_offline_two_sided(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    variance: Variance = "shared",
    models: ArrayLike | None = None,
) -> NDArray:
    """What released LiRA code computes offline: `-log N(s; mu_out, sd_out)`, float64 `[n]`.

    For parity with published figures only: a record far *below* what non-members have gets as high
    a score as one far above, so it is weaker than `lira_offline`.

    Args, errors, warnings: as `lira_offline`.

    >>> lira_offline_two_sided([3.0, -3.0], [[-1.0, -1.0], [1.0, 1.0]], np.zeros((2, 2), bool))
    ... # doctest: +ELLIPSIS
    array([3.51..., 3.51...])
    """
    given, mean, spread = _offline(observed, references, was_member, variance, models)
    return -_log_density(given.observed, mean, spread).mean(axis=0)


def lira_joint(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    variance: Variance = "shared",
    shrinkage: float = 0.1,
    models: ArrayLike | None = None,
) -> NDArray:
    """LiRA online on several signals jointly: s-dimensional Gaussians, float64 `[n]`.

    With S the covariance of a side's residuals about each record's own means, over all records, the
    shared covariance is `(1 - shrinkage) S + shrinkage diag(S)`. "own" is each record's, shrunk to
    the shared one as by s + 1 more models: `((m - 1) S_i + (s + 1) shared) / (m + s)`.

    Args:
      observed: the target's signals `[s, n]`, such as log-odds and minus log gradient norms.
      references: the same of k reference models, `[k, s, n]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      variance: "shared" or "own".
      shrinkage: of correlations towards 0, in [0, 1]. Not needed for signals that are not nearly
        collinear.
      models: indices of the reference models to use; None for all.

    Errors, warnings: as `lira`. One signal with "shared" gives what `lira` gives.

    >>> random = np.random.default_rng(0)
    >>> s, m = random.normal(size=(8, 1, 20)), np.arange(8)[:, None] % 2 == np.arange(20) % 2
    >>> np.allclose(lira_joint(s[0], s, m), lira(s[0], s, m))
    True
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}; it must be in [0, 1].")
    given = cells(observed, references, was_member, models)
    both = sides(given)
    _need_both(both, given)
    say(_missing(both), given, _REMEDY)
    centres = _centres(both)
    totals = np.zeros((2, len(given.observed), len(given.observed)))
    for rows, values, mask in blocks(given):
        products = _products(values, mask, both, rows)
        totals += [product.sum(axis=0) for product in products]
    shared = []
    for side, total in zip(both, totals, strict=True):
        if not (np.diag(total) > 0).all():
            total = totals.sum(axis=0)
            side = Side(both.seen.models + both.unseen.models - 1, side.mean, side.squares)
        covariance = total / max(np.maximum(side.models - 1, 0).sum(), 1)
        if not (np.diag(covariance) > 0).all():
            raise ValueError(_agree(given))
        shared.append((1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance)))
    found = np.empty(given.observed.shape[1])
    if variance == "shared":
        seen, unseen = (
            _log_densities(given.observed - centre, covariance)
            for centre, covariance in zip(centres, shared, strict=True)
        )
        return seen - unseen
    _known(variance)
    weight = len(given.observed) + 1
    for rows, values, mask in blocks(given):
        parts = []
        for side, centre, covariance, product in zip(
            both, centres, shared, _products(values, mask, both, rows), strict=True
        ):
            models_less_one = np.maximum(side.models[rows] - 1, 0)[:, None, None]
            own = (product + weight * covariance) / (models_less_one + weight)
            parts.append(_log_densities(given.observed[:, rows] - centre[:, rows], own))
        found[rows] = parts[0] - parts[1]
    return found


def _products(values: NDArray, mask: NDArray, both: Sides, rows: slice) -> list[NDArray]:
    """Sums of outer products of residuals `[b, s, s]`, of the models that saw and of the others."""
    values -= np.where(mask[:, None], both.seen.mean[:, rows], both.unseen.mean[:, rows])
    found = []
    for weight in (mask, ~mask):
        side = np.moveaxis(values * weight[:, None], 2, 0)  # [b, m, s]
        found.append(np.swapaxes(side, 1, 2) @ side)
    return found


def _log_densities(residuals: NDArray, covariance: NDArray) -> NDArray:
    """Of centred normals `[n]`, less the constant; covariance `[s, s]`, or `[n, s, s]`."""
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "the signals are collinear, so their covariance has no inverse; leave one of them out, "
            "or use a larger shrinkage."
        ) from error
    log_determinant = 2 * np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
    if covariance.ndim == 2:
        white = np.linalg.solve(root, residuals)
        return -0.5 * (np.square(white).sum(axis=0) + log_determinant)
    white = np.linalg.solve(root, residuals.T[..., None])[..., 0]
    return -0.5 * (np.square(white).sum(axis=-1) + log_determinant)


def _offline(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    variance: Variance,
    models: ArrayLike | None,
) -> tuple[Cells, NDArray, NDArray]:
    """The cells, and mean and variance of the models that did not see each record `[q, n]`."""
    given = cells(observed, references, was_member, models)
    both = sides(given)
    mean, lacking = unseen_centre(both, given)
    spread, few = _variances(both.unseen, Sides(both.unseen, both.unseen), variance)
    if variance == "own":
        lacking["with fewer than two differing OUT models"] = few
    say(lacking, given, _REMEDY_OFFLINE)
    return given, mean, spread


def unseen_centre(both: Sides, given: Cells) -> tuple[NDArray, dict[str, NDArray]]:
    """Means of the OUT models `[q, n]`, the average one where there are none, and where that is."""
    need(both.unseen, given, "has not seen", "an offline score needs models that did not see it.")
    missing = both.unseen.models == 0
    average = both.unseen.mean[:, ~missing].mean(axis=1, keepdims=True)
    return np.where(missing, average, both.unseen.mean), {"seen by every model": missing}


def _need_both(both: Sides, given: Cells) -> None:
    if not ((both.seen.models > 0) & (both.unseen.models > 0)).any():
        raise ValueError(
            f"no record was seen by some of the {given.models.size} reference models and not by "
            "others, so nothing can be said about how they differ. Use an offline score, such as "
            "lira_offline, or train models on random halves of the records."
        )


def _missing(both: Sides) -> dict[str, NDArray]:
    return {
        "seen by no model": both.seen.models == 0,
        "seen by every model": both.unseen.models == 0,
    }


def _centres(both: Sides) -> tuple[NDArray, NDArray]:
    seen, unseen = both
    return bridged(seen.mean, unseen.mean, seen.models > 0, unseen.models > 0)


def _variances(side: Side, both: Sides, variance: Variance) -> tuple[NDArray, NDArray]:
    """Variances `[q, n]` or `[q, 1]`, and the records `[n]` that have none of their own."""
    _known(variance)
    shared = shared_variance(side, both)
    if variance == "shared":
        return shared, np.zeros(side.models.shape, bool)
    own = side.squares / np.maximum(side.models - 1, 1)
    lacking = (side.models < 2) | (own <= _ROUNDING * shared)
    return np.where(lacking, shared, own), lacking.any(axis=0)


def shared_variance(side: Side, both: Sides) -> NDArray:
    """Of a side's residuals over all records `[q, 1]`; both sides' where it has no two models."""
    for group in ((side,), both):
        freedom = sum(int(np.maximum(part.models - 1, 0).sum()) for part in group)
        squares = sum(part.squares.sum(axis=1, keepdims=True) for part in group)
        if freedom and np.all(squares > 0):
            return squares / freedom
    raise ValueError(
        "the signals do not vary between reference models for any record, so nothing can be "
        "compared: give at least two models a side, and a signal that is not a constant."
    )


def _known(variance: str) -> None:
    if variance not in ("own", "shared"):
        raise ValueError(f'variance is "{variance}"; it must be "own" or "shared".')


def _agree(given: Cells) -> str:
    return (
        f"a signal does not vary between the {given.models.size} reference models for any record; "
        "leave it out, or give at least two models a side."
    )


def _log_density(x: NDArray, mean: NDArray, variance: NDArray) -> NDArray:
    """Of a normal, less the constant that all share."""
    return -0.5 * (np.square(x - mean) / variance + np.log(variance) + np.log(2 * np.pi))
