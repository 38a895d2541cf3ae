"""Attack R (Ye et al.): the record's rank among what reference models say of it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmeter.reference.inputs import blocks, cells, say


def attack_r(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    ends: tuple[float, float] = (-1000.0, 0.0),
    models: ArrayLike | None = None,
) -> NDArray:
    """The target's place among the OUT models' signals, interpolated, in [0, 1], float64 `[n]`.

    Attack R of Ye et al. 2022 (arXiv:2111.09679). The m OUT signals of a record and the two ends,
    sorted, have the places 0, 1, ..., m + 1; between two of them the place is interpolated
    linearly, at one that occurs several times it is their average; the score is the place over
    m + 1. Thresholding at 1 - f aims at the false-positive rate f for every record alike. Several
    queries: averaged.

    Args:
      observed: the target's log-probabilities (minus losses), `[n]` or `[q, n]`.
      references: the same of k reference models, `[k, n]` or `[k, q, n]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`; models that saw a record
        are not used for it.
      ends: what no signal is below or above; as in the paper's code a loss of 1000 and 0, and
        widened to the smallest and largest signal where those lie outside.
      models: indices of the reference models to use; None for all.

    Raises:
      ValueError: if shapes do not fit, a value is not finite, or no record has an OUT model.

    Warns:
      ReferenceWarning: if some records were seen by every model; only the ends are left for them.

    >>> attack_r([-1.0], [[-2.0], [-0.5]], [[False], [False]]).round(4).tolist()
    [0.5556]
    """
    given = cells(observed, references, was_member, models)
    if not ends[0] < ends[1]:
        raise ValueError(f"ends are {ends}; the first must be below the second.")
    low = np.full(given.observed.shape, float(min(ends[0], given.observed.min(initial=np.inf))))
    high = np.full(given.observed.shape, float(max(ends[1], given.observed.max(initial=-np.inf))))
    lowest, highest = low[:1, :1].copy(), high[:1, :1].copy()
    below, ties = (np.zeros(given.observed.shape, int) for _ in range(2))
    count = np.zeros(given.observed.shape[1], int)
    for rows, values, mask in blocks(given):
        unseen, x = ~mask[:, None], given.observed[:, rows]
        count[rows] = (~mask).sum(axis=0)
        under, over = unseen & (values < x), unseen & (values > x)
        below[:, rows] = under.sum(axis=0)
        ties[:, rows] = count[rows] - below[:, rows] - over.sum(axis=0)
        nearest = values.max(axis=0, where=under, initial=-np.inf)
        low[:, rows] = np.where(below[:, rows] > 0, nearest, np.nan)
        nearest = values.min(axis=0, where=over, initial=np.inf)
        high[:, rows] = np.where(over.any(axis=0), nearest, np.nan)
        lowest = np.minimum(lowest, values.min(where=unseen, initial=np.inf))
        highest = np.maximum(highest, values.max(where=unseen, initial=-np.inf))
    if not count.any():
        raise ValueError(
            f"each of the {given.models.size} reference models has seen every record; attack R "
            "needs models that did not."
        )
    say({"seen by every model": count == 0}, given, "Only the ends are left for them.")
    low, high = np.where(np.isnan(low), lowest, low), np.where(np.isnan(high), highest, high)
    inside = (given.observed - low) / np.where(high > low, high - low, 1.0)
    place = below + np.where(ties > 0, (ties + 1) / 2, inside)
    return (place / (count + 1)).mean(axis=0)
