"""Ratios of probabilities: how much likelier the target finds a record's label than models do.

The signal is `logits.log_probability` (or `log_taylor_probability`), at most 0. Means of
probabilities are taken by logsumexp. Where models of both sides are used, each side counts half,
however many models it has: RMIA's assumption, "half in, half out", made to hold. (A plain mean over
all models would also give away a left-out model by who is missing.)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmeter.reference.inputs import Cells, blocks, bridged, cells, say

_REMEDY = (
    "A missing side's log mean probability was taken to be the other side's plus the average "
    "difference."
)
_REMEDY_OFFLINE = "The average log mean probability of the other records was taken there."


class Population(NamedTuple):
    """Known non-members that calibrate RMIA; none of them is evaluated.

    Attributes:
      observed: the target's log-probabilities `[z]` or `[q, z]`.
      references: the reference models' `[k, z]` or `[k, q, z]`.
      was_member: whether reference model k was trained on record z, bool `[k, z]`; all false for
        records that nobody trained on.
    """

    observed: ArrayLike
    references: ArrayLike
    was_member: ArrayLike


def log_ratio(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    models: ArrayLike | None = None,
) -> NDArray:
    """`log p(x | target) - log p(x)`, `p(x)` from IN and OUT models alike, float64 `[n]`.

    The first term of InfoRMIA (OpenReview 4KVeb0Vv13; its second is a constant) and BASE online
    (Lassila et al. 2025, arXiv:2505.24089), whose mean is over all models: the same where a record
    is in half of them. `p(x) = (mean over IN models + mean over OUT models) / 2`. Several queries:
    log-ratios are averaged.

    Args:
      observed: the target's log-probabilities of the records' labels, `[n]` or `[q, n]`.
      references: the same of k reference models, `[k, n]` or `[k, q, n]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      models: indices of the reference models to use; None for all.

    Raises:
      ValueError: if shapes do not fit, a value is not finite or above 0, or no record was seen by
        some models and not by others.

    Warns:
      ReferenceWarning: if some record lacks models on one side.

    >>> log_ratio(np.log([0.9]), np.log([[0.8], [0.1]]), [[True], [False]]).round(4).tolist()
    [0.6931]
    """
    given = cells(observed, references, was_member, models, log_probabilities=True)
    return _online(given, announce=True).mean(axis=0)


def log_ratio_offline(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    a: float = 1.0,
    models: ArrayLike | None = None,
) -> NDArray:
    """`log_ratio` from OUT models only: `p(x) = ((1 + a) p_out(x) + 1 - a) / 2`, float64 `[n]`.

    RMIA's linear guess (arXiv:2312.03262) that IN models have `p_in = a p_out + 1 - a`. With a = 1
    it is `log p - log p_out`.

    Args:
      observed: as `log_ratio`.
      references: as `log_ratio`.
      was_member: as `log_ratio`; models that saw a record are not used for it.
      a: in [0, 1]; see `choose_a`.
      models: as `log_ratio`.

    Errors, warnings: as `log_ratio`; every record should have models that did not see it.

    >>> log_ratio_offline(np.log([0.9]), np.log([[0.1]]), [[False]], a=0.5).round(4).tolist()
    [1.0186]
    """
    given = cells(observed, references, was_member, models, log_probabilities=True)
    return offline_ratio(given.observed, unseen_log_mean(given, announce=True), a).mean(axis=0)


def base_offline(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    strength: float = 0.33,
    models: ArrayLike | None = None,
) -> NDArray:
    """BASE offline: `log p(x | target) - strength * log p_out(x)`, float64 `[n]`.

    Lassila et al. 2025 (arXiv:2505.24089), with the released default of strength.

    Args, errors, warnings: as `log_ratio_offline`.

    >>> base_offline(np.log([0.9]), np.log([[0.1]]), [[False]], strength=1.0).round(4).tolist()
    [2.1972]
    """
    given = cells(observed, references, was_member, models, log_probabilities=True)
    return (given.observed - strength * unseen_log_mean(given, announce=True)).mean(axis=0)


def rmia(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    population: Population,
    gamma: float = 2.0,
    models: ArrayLike | None = None,
) -> NDArray:
    """RMIA online: the share of the population whose ratio is at least gamma times smaller `[n]`.

    Zarifzadeh, Liu and Shokri 2024 (arXiv:2312.03262): `Pr_z[r(x) / r(z) >= gamma]` with
    `r = p(. | target) / p(.)`, log r as in `log_ratio`. By sorting, O((n + z) log z); a tie of
    `log r(z)` with `log r(x) - log gamma` counts as "at least". Scores are multiples of 1/z and
    pile up at 1; `log_ratio` ranks by the same r without those ties. Several queries: log-ratios
    are averaged first (the released code votes).

    Args:
      observed: as `log_ratio`.
      references: as `log_ratio`.
      was_member: as `log_ratio`.
      population: non-members of the target, none of them evaluated. Those that no reference model
        trained on have `p(z)` from OUT models only.
      gamma: how many times larger, at least 1 in the paper.
      models: as `log_ratio`.

    Raises:
      ValueError: as `log_ratio`; or if the population is empty or holds evaluated records.

    >>> z = Population(np.log([0.2, 0.3]), np.log([[0.5, 0.1], [0.5, 0.1]]), np.zeros((2, 2), bool))
    >>> s, m = np.log([[0.8], [0.1]]), [[True], [False]]
    >>> rmia(np.log([0.9]), s, m, population=z, gamma=2.0).tolist()
    [0.5]
    """
    given = cells(observed, references, was_member, models, log_probabilities=True)
    calibration = _apart(given, population)
    return share_at_least(
        _online(given, announce=True).mean(axis=0),
        _online(calibration, announce=False).mean(axis=0),
        gamma,
    )


def rmia_offline(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    population: Population,
    a: float = 1.0,
    gamma: float = 2.0,
    models: ArrayLike | None = None,
) -> NDArray:
    """RMIA offline: as `rmia`, with `p(.)` from OUT models only as in `log_ratio_offline` `[n]`.

    Args, errors: as `rmia` and `log_ratio_offline`.

    >>> z = Population(np.log([0.2, 0.3]), np.log([[0.5, 0.2]]), np.zeros((1, 2), bool))
    >>> s, m = np.log([[0.1]]), [[False]]
    >>> rmia_offline(np.log([0.9]), s, m, population=z, a=0.3).tolist()
    [1.0]
    """
    given = cells(observed, references, was_member, models, log_probabilities=True)
    calibration = _apart(given, population)
    return share_at_least(
        offline_ratio(given.observed, unseen_log_mean(given, announce=True), a).mean(axis=0),
        offline_ratio(calibration.observed, unseen_log_mean(calibration, announce=False), a).mean(
            axis=0
        ),
        gamma,
    )


def share_at_least(x: NDArray, z: NDArray, gamma: float) -> NDArray:
    """The share of z with `z <= x - log gamma`, for each x; by sorting."""
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}; it is a ratio of probabilities and must be positive.")
    return np.searchsorted(np.sort(z), x - np.log(gamma), side="right") / z.size


def offline_ratio(observed: NDArray, unseen: NDArray, a: float) -> NDArray:
    """`log p - log(((1 + a) p_out + 1 - a) / 2)`."""
    if not 0 <= a <= 1:
        raise ValueError(f"a is {a}; it must be in [0, 1].")
    mixed = np.log1p(a) + unseen
    if a < 1:
        mixed = np.logaddexp(mixed, np.log1p(-a))
    return observed - (mixed - np.log(2))


def log_means(given: Cells) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Log mean probability of IN and of OUT models `[q, n]` (-inf for none), and their counts."""
    seen, unseen = np.empty_like(given.observed), np.empty_like(given.observed)
    counts = np.empty((2, given.observed.shape[1]), int)
    for rows, values, mask in blocks(given):
        if values.max() > 0:
            raise ValueError(
                f"a reference is as large as {values.max():.4g}, but log-probabilities are at most "
                "0: use jaxmeter.logits.log_probability."
            )
        wide = mask[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            tops = [np.where(side, values, -np.inf).max(axis=0) for side in (wide, ~wide)]
            values -= np.where(wide, *tops)
            np.exp(values, out=values)
            for i, (side, top, found) in enumerate(
                zip((mask, ~mask), tops, (seen, unseen), strict=True)
            ):
                counts[i, rows] = side.sum(axis=0)
                total = np.einsum("mqb,mb->qb", values, side.astype(np.float64))
                found[:, rows] = top + np.log(total / counts[i, rows])
    for found, count in zip((seen, unseen), counts, strict=True):
        found[:, count == 0] = -np.inf
    return seen, unseen, counts[0], counts[1]


def _online(given: Cells, *, announce: bool) -> NDArray:
    """`log p - log p(.)` `[q, n]`, from both sides; a population may lack IN models throughout."""
    seen, unseen, n_seen, n_unseen = log_means(given)
    both = (n_seen > 0) & (n_unseen > 0)
    if announce:
        if not both.any():
            raise ValueError(
                f"no record was seen by some of the {given.models.size} reference models and not "
                "by others; use an offline score, such as log_ratio_offline."
            )
        say({"seen by no model": n_seen == 0, "seen by every model": n_unseen == 0}, given, _REMEDY)
        seen, unseen = bridged(seen, unseen, n_seen > 0, n_unseen > 0)
    else:
        seen, unseen = np.where(n_seen > 0, seen, unseen), np.where(n_unseen > 0, unseen, seen)
    return given.observed - (np.logaddexp(seen, unseen) - np.log(2))


def unseen_log_mean(given: Cells, *, announce: bool) -> NDArray:
    """Log mean probability of OUT models `[q, n]`; the average one where there are none."""
    _, unseen, _, count = log_means(given)
    if not count.any():
        raise ValueError(
            f"each of the {given.models.size} reference models has seen every record; an offline "
            "score needs models that did not see it."
        )
    missing = count == 0
    if announce:
        say({"seen by every model": missing}, given, _REMEDY_OFFLINE)
    average = unseen[:, ~missing].mean(axis=1, keepdims=True)
    return np.where(missing, average, unseen)


def _apart(given: Cells, population: Population) -> Cells:
    """The population's cells; ValueError if it is empty or shares records with the evaluated."""
    others = np.asanyarray(population.references)
    if len(others) != len(given.references):
        raise ValueError(
            f"the population has {len(others)} reference models, the records "
            f"{len(given.references)}; give the same models in the same order."
        )
    found = cells(
        population.observed, others, population.was_member, given.models, log_probabilities=True
    )
    if not found.observed.shape[1]:
        raise ValueError("the population is empty; RMIA compares each record with it.")
    shared = _shared(given, found)
    if shared:
        raise ValueError(
            f"{shared} of the population's {found.observed.shape[1]} records have bit for bit the "
            "signals and the membership of evaluated records. The population is known not to be "
            "members, so scores would use the answer; keep it apart (jaxmeter.split)."
        )
    return found


def _shared(given: Cells, population: Cells) -> int:
    """How many of the population's columns are evaluated ones; nearly constant ones say nothing."""
    candidates = np.flatnonzero(np.isin(population.observed[0], given.observed[0]))
    if not candidates.size:
        return 0
    places: dict[float, list[int]] = {}
    for i in np.flatnonzero(np.isin(given.observed[0], population.observed[0][candidates])):
        places.setdefault(float(given.observed[0, i]), []).append(int(i))
    return sum(
        any(_same(given, i, population, int(j)) for i in places[float(population.observed[0, j])])
        for j in candidates
    )


def _same(given: Cells, i: int, population: Cells, j: int) -> bool:
    """Whether record i and the population's j have equal, telling cells."""
    first = population.models[0]
    if (given.references[first, :, i] != population.references[first, :, j]).any():
        return False
    z = population.references[population.models, :, j]
    x_seen, z_seen = (c.was_member[c.models, at] for c, at in ((given, i), (population, j)))
    return (
        np.unique(z).size > 2
        and np.array_equal(z, given.references[given.models, :, i])
        and np.array_equal(x_seen, z_seen)
    )
