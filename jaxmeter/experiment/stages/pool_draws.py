"""What chance decides about a pool: who is trained on what, by which keys, and the parts."""

from typing import TYPE_CHECKING

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.data.records import content_ids
from jaxmeter.shadow.membership import balanced_membership

if TYPE_CHECKING:  # Only for annotations: a stage follows from the fields that it is given.
    from jaxmeter.experiment.config import Stranger


def membership(x: NDArray, models: int, seed: int) -> NDArray[np.bool_]:
    """Which model of a pool is trained on which record, bool `[k, n]`; equal records go together.

    Raises:
      ValueError: if all records are equal.
    """
    content = _content_of(x)
    n = int(content.max(initial=-1)) + 1
    if n < 2:
        raise ValueError(f"the data has {n} different records; a pool is trained on halves of it.")
    return balanced_membership(_keys(seed)[0], models, n)[:, content]


def of_stranger(x: NDArray, stranger: "Stranger", index: int, seed: int) -> NDArray[np.bool_]:
    """What a stranger is trained on, and below it the rest, bool `[2, n]`.

    Raises:
      ValueError: if one of them is empty.
    """
    content = _content_of(x)
    n = int(content.max(initial=-1)) + 1
    members = n // 2 if stranger.members is None else stranger.members
    if not 0 < members < n:
        raise ValueError(
            f"target.stranger.members is {members} of {n} different records; it takes 1 to {n - 1},"
            " so that the target was trained on some and not on others."
        )
    rank = np.random.default_rng((seed, index)).permutation(n)
    return np.stack([rank < members, rank >= members])[:, content]


def parts_of(
    x: NDArray, fractions: tuple[float, float, float], seed: int
) -> tuple[NDArray, NDArray, NDArray]:
    """Indices of the fit, select and held-out part, which share no content.

    By chance alone, whoever was trained on what: so all targets are measured on the same records.
    """
    content = _content_of(x)
    n = int(content.max(initial=-1)) + 1
    order = np.random.default_rng(seed).permutation(n)
    ends = [int(round(share, 9) * n) for share in np.cumsum(fractions)]
    part = np.empty(n, int)
    part[order] = np.searchsorted(ends, np.arange(n), side="right")
    return tuple(np.flatnonzero(part[content] == i) for i in range(3))  # type: ignore[return-value]


def pool_key(seed: int) -> jax.Array:
    """What a pool's training follows from."""
    return _keys(seed)[1]


def stranger_key(seed: int, index: int) -> jax.Array:
    """What a stranger's training follows from."""
    return jax.random.fold_in(jax.random.key(seed), index)


def _keys(seed: int) -> jax.Array:
    """Of the membership and of the training of a pool."""
    return jax.random.split(jax.random.key(seed))


def _content_of(x: NDArray) -> NDArray:
    """One integer a record, equal for equal records, counted in the order in which they appear."""
    ids = content_ids(x)
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[place.ravel()]
