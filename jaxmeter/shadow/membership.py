"""Which model is trained on which record."""

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray


def balanced_membership(key: Array, k: int, n: int) -> NDArray[np.bool_]:
    """Which of k models is trained on which of n records, bool `[k, n]`.

    Every record is in exactly half of the models and every model has half of the records (rounded,
    for odd n). Models `2 j` and `2 j + 1` are complements, so that what holds one out must hold out
    the other: the counts of the rest would give the membership away.

    Args:
      key: PRNG key, consumed.
      k: number of models, even.
      n: number of records.

    Raises:
      ValueError: for an odd k or fewer than two records.

    >>> was_member = balanced_membership(jax.random.key(0), k=4, n=10)
    >>> was_member.sum(axis=0)
    array([2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    if k < 2 or k % 2:
        raise ValueError(
            f"k={k}, but every record is to be in exactly half of the models, in complementary "
            f"pairs, so their number must be even: {max(2, k - k % 2)} or {max(2, k + k % 2)}."
        )
    if n < 2:
        raise ValueError(f"n={n}: at least two records are needed to train on some and not others.")
    keys = jax.random.split(key, k // 2)
    inside = np.stack([np.asarray(jax.random.permutation(one, n)) for one in keys]) < n // 2
    return np.stack([inside, ~inside], axis=1).reshape(k, n)


def checked_membership(was_member: ArrayLike, n: int) -> NDArray[np.bool_]:
    """A membership matrix that models can be trained by.

    Raises:
      ValueError: if it is not bool `[k, n]`, or has a record in no model or a model without
        records.
    """
    matrix = np.asarray(was_member)
    if matrix.ndim != 2 or matrix.shape[1] != n or not len(matrix):
        raise ValueError(
            f"was_member has shape {matrix.shape}, but there are {n} records: it must be [k, {n}], "
            "a row for each model. Perhaps it is transposed, or of other records."
        )
    if matrix.dtype != bool and not np.isin(matrix, (0, 1)).all():
        raise ValueError(
            f"was_member is {matrix.dtype} with values other than 0 and 1; it says whether model i "
            "is trained on record j."
        )
    matrix = matrix.astype(bool)
    if (empty := np.flatnonzero(~matrix.any(axis=1))).size:
        raise ValueError(f"model {empty[0]} is trained on no record ({empty.size} such models).")
    if (unseen := np.flatnonzero(~matrix.any(axis=0))).size:
        raise ValueError(
            f"{unseen.size} records are in no model (first: record {unseen[0]}), so no model says "
            "what they look like as members. Leave them out of x and was_member, or use "
            "balanced_membership, which has every record in half of the models."
        )
    return matrix
