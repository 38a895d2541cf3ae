"""Every reference model as a target in turn, attacked with the others."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmeter.metrics import AttackResult
from jaxmeter.reference.inputs import ReferenceWarning, cells, membership
from jaxmeter.reference.rmia import Population, offline_ratio, share_at_least, unseen_log_mean


def complementary_pairs(was_member: ArrayLike) -> NDArray:
    """The k models as pairs whose members are each other's complement, int `[k / 2, 2]`.

    Args:
      was_member: whether model k was trained on record n, bool `[k, n]`.

    Raises:
      ValueError: if k is odd, or a model has no complement of its own.

    >>> complementary_pairs(np.array([[True, False], [True, True], [False, True], [False, False]]))
    array([[0, 2],
           [1, 3]])
    """
    other = complements(was_member)
    if len(other) % 2:
        raise ValueError(f"{len(other)} models cannot be paired; their number must be even.")
    if (other < 0).any():
        alone = np.flatnonzero(other < 0)
        raise ValueError(
            f"{alone.size} of {len(other)} models have no complement (first: {alone[0]}), a model "
            "that saw exactly the records this one did not. Draw members in complementary pairs, "
            "or leave models out one by one if members were drawn independently."
        )
    first = np.flatnonzero(other > np.arange(len(other)))
    return np.stack([first, other[first]], axis=1)


def complements(was_member: ArrayLike) -> NDArray:
    """The complement of each model, int `[k]`; -1 for a model without. No model is used twice."""
    _, was_member = membership(was_member, was_member)
    packed = [np.packbits(row).tobytes() for row in was_member]
    waiting: dict[bytes, list[int]] = {}
    other = np.full(len(packed), -1)
    for i, row in enumerate(was_member):
        wanted = waiting.get(np.packbits(~row).tobytes())
        if wanted:
            other[i] = wanted.pop(0)
            other[other[i]] = i
        else:
            waiting.setdefault(packed[i], []).append(i)
    return other


def companions(was_member: NDArray, pairs: ArrayLike | None) -> list[list[int]]:
    """For each model, all that are left out with it, itself included.

    `pairs` int `[p, 2]`, or None to look for complements.
    """
    k = len(was_member)
    groups = [{i} for i in range(k)]
    if pairs is None:
        for i, j in enumerate(complements(was_member)):
            if j >= 0:
                groups[i].add(int(j))
    else:
        found = np.asarray(pairs)
        if found.size and (found.ndim != 2 or found.shape[1] != 2):
            raise ValueError(f"pairs have the shape {found.shape}; give [p, 2], or None.")
        if found.size and not (0 <= found.min() and found.max() < k):
            raise ValueError(f"pairs go from {found.min()} to {found.max()}; there are {k} models.")
        for i, j in found.astype(int).reshape(-1, 2):
            groups[i].add(int(j))
            groups[j].add(int(i))
    return [sorted(group) for group in groups]


def warn_of_counts(was_member: NDArray, groups: list[list[int]]) -> None:
    """Warns where models are left out alone and the others' counts give their members away."""
    counts = was_member.sum(axis=0)
    if np.ptp(counts) == 0 and all(len(group) == 1 for group in groups):
        warnings.warn(
            f"every record was seen by exactly {counts[0]} of {len(was_member)} models and no "
            "model is left out with a complement, so how many of the others saw a record gives "
            "away whether the one left out did. Scores that depend on such counts look better "
            "than they are; draw members in complementary pairs or independently.",
            ReferenceWarning,
            stacklevel=3,
        )


Score = Callable[..., NDArray]


def leave_out(
    score: Score,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    pairs: ArrayLike | None = None,
    population: tuple[ArrayLike, ArrayLike] | None = None,
    targets: Sequence[int] | None = None,
    out: NDArray | None = None,
) -> NDArray:
    """Scores of every reference model as the target, by the others, float64 `[k, n]`.

    Row t is `score(references[t], the others, their was_member)`, to be judged by `was_member[t]`:
    k targets whose membership is known, so results come with their spread over targets. A model's
    complement is left out with it: where every record is in exactly half of the models, the counts
    of the rest would else give the membership away.

    Args:
      score: any score of this package, `functools.partial` for its options; or a function
        `(observed [...], references [m, ...], was_member [m, n]) -> [n]`. One that takes `models`
        gets all references and the indices to use, and nothing is copied.
      references: signals of k models, `[k, n]`, or with further axes as the score wants them.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      pairs: which models are left out together, int `[p, 2]`; None for those that are each other's
        complement, if there are any.
      population: signals `[k, z]` of further records and whether model k was trained on them, bool
        `[k, z]`, for scores that take one; for each target those it was not trained on are used.
      targets: which models to attack; None for all.
      out: where to write, float64 `[targets, n]`, such as a memory-mapped array.

    Raises:
      ValueError: as the score; if shapes do not fit; if nothing is left without a target.

    Warns:
      ReferenceWarning: once, for what the score says of single targets; and if every record is in
        equally many models, none of which has a complement.

    >>> from jaxmeter.reference import difficulty_calibration
    >>> m = np.array([[True, False], [False, True], [True, True], [False, False]])
    >>> leave_out(difficulty_calibration, m * 1.0, m).tolist()
    [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """
    signals, was_member = membership(references, was_member)
    groups = companions(was_member, pairs)
    warn_of_counts(was_member, groups)
    rows = range(len(signals)) if targets is None else list(targets)
    found = np.empty((len(rows), was_member.shape[1])) if out is None else out
    if found.shape != (len(rows), was_member.shape[1]):
        raise ValueError(
            f"out has the shape {found.shape}; it must be {(len(rows), was_member.shape[1])}."
        )
    takes_models = "models" in inspect.signature(score).parameters
    remarks: list[str] = []
    for row, target in enumerate(rows):
        keep = np.setdiff1d(np.arange(len(signals)), groups[target])
        if not keep.size:
            raise ValueError("no reference model is left without the target and its complement.")
        options: dict[str, Any] = {"models": keep} if takes_models else {}
        if population is not None:
            options["population"] = _population(population, target, keep, takes_models)
        others = (signals, was_member) if takes_models else (signals[keep], was_member[keep])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found[row] = score(signals[target], *others, **options)
        for warning in caught:
            if issubclass(warning.category, ReferenceWarning):
                remarks.append(str(warning.message))
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
    if remarks:
        warnings.warn(
            f"for {len(remarks)} of {len(rows)} targets; the first: {remarks[0]}",
            ReferenceWarning,
            stacklevel=2,
        )
    return found


def choose_a(
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    population: tuple[ArrayLike, ArrayLike] | None = None,
    gamma: float = 2.0,
    grid: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    pairs: ArrayLike | None = None,
    targets: int = 8,
) -> float:
    """RMIA's `a`, by the mean AUC with which reference models attack each other.

    Each of some reference models in turn is the target; the other models, without its complement,
    attack it offline, and its known membership says how well. The audited target has no part in it,
    and neither have IN models. (ML Privacy Meter's tool attacks one model with its own complement,
    which saw exactly the records the attacked one did not.)

    Args:
      references: log-probabilities of k reference models, `[k, n]` or `[k, q, n]`.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      population: as in `leave_out`; None to choose for `log_ratio_offline`, which needs none.
      gamma: of RMIA.
      grid: candidates; of equally good ones the first is taken.
      pairs: as in `leave_out`.
      targets: how many models to attack, evenly spaced among the k.

    Raises:
      ValueError: as `rmia_offline`, or if the grid is empty.

    >>> random = np.random.default_rng(0)
    >>> m = random.random((4, 500)) < 0.5
    >>> s = np.log(0.2 + 0.3 * random.random(500) + 0.3 * m * random.random((4, 500)))
    >>> 0 < choose_a(s, m) <= 1
    True
    """
    signals, was_member = membership(references, was_member)
    if not len(grid):
        raise ValueError("the grid is empty; give candidates for a, such as (0.0, 0.5, 1.0).")
    groups = companions(was_member, pairs)
    warn_of_counts(was_member, groups)
    k = len(signals)
    some = np.unique(np.linspace(0, k - 1, max(1, min(targets, k))).astype(int))
    auc = np.zeros(len(grid))
    for target in some:
        keep = np.setdiff1d(np.arange(k), groups[target])
        if not keep.size:
            raise ValueError("no reference model is left without the target and its complement.")
        given = cells(signals[target], signals, was_member, keep, log_probabilities=True)
        unseen = unseen_log_mean(given, announce=False)
        if population is not None:
            other = _population(population, target, keep, True)
            calibration = cells(*other, keep, log_probabilities=True)
            unseen_z = unseen_log_mean(calibration, announce=False)
        for i, a in enumerate(grid):
            scores = offline_ratio(given.observed, unseen, a).mean(axis=0)
            if population is not None:
                z = offline_ratio(calibration.observed, unseen_z, a).mean(axis=0)
                scores = share_at_least(scores, z, gamma)
            auc[i] += AttackResult(scores=scores, is_member=was_member[target]).auc
    return float(grid[int(np.argmax(auc))])


def _population(
    given: tuple[ArrayLike, ArrayLike], target: int, keep: NDArray, takes_models: bool
) -> Population:
    """The records that the target was not trained on, as the target and the others see them."""
    signals, seen = membership(*given)
    apart = ~seen[target]
    if not apart.all():
        signals, seen = signals[..., apart], seen[:, apart]
    others = (signals, seen) if takes_models else (signals[keep], seen[keep])
    return Population(signals[target], *others)
