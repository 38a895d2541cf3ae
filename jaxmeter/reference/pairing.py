"""Complementary pairs of reference models: what one saw, the other did not."""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmeter.reference.cells import ReferenceWarning, membership


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
