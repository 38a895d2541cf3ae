"""Difficulty calibration (Watson et al.): the signal less its mean without the record."""

from numpy.typing import ArrayLike, NDArray

from jaxmeter.reference.inputs import cells, need, say, sides
from jaxmeter.reference.lira import unseen_centre


def difficulty_calibration(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    models: ArrayLike | None = None,
) -> NDArray:
    """The target's signal less the OUT models' mean, float64 `[n]`.

    Watson et al. 2022 (arXiv:2111.08440), there with minus the loss; log-odds do better at low
    false-positive rates (Carlini et al. 2022, table I and ablation). Several queries: averaged.

    Args:
      observed: the target's signal, higher for members, `[n]` or `[q, n]`.
      references: the same of k reference models, `[k, n]` or `[k, q, n]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      models: indices of the reference models to use; None for all.

    Raises:
      ValueError: if shapes do not fit, a value is not finite, or no record has an OUT model.

    Warns:
      ReferenceWarning: if some records were seen by every model; the average mean is used there.

    >>> difficulty_calibration([2.0], [[1.0], [0.0]], [[False], [False]]).tolist()
    [1.5]
    """
    given = cells(observed, references, was_member, models)
    both = sides(given)
    need(both.unseen, given, "has not seen", "an offline score needs models that did not see it.")
    mean, lacking = unseen_centre(both, given)
    say(lacking, given, "The average mean of the other records was taken there.")
    return (given.observed - mean).mean(axis=0)
