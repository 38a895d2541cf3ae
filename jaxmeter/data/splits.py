"""Splitting records by content, so that no part holds another's records."""

import warnings
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
import scipy
from numpy.typing import NDArray

from jaxmeter.data.records import DataWarning, Records, content_ids

_SMALLEST = 2  # members, and non-members, without which no part can be measured


def split(
    key: jax.Array,
    records: Records,
    fractions: Sequence[float] = (0.4, 0.1, 0.5),
    *,
    overlap: Literal["error", "drop"] = "error",
) -> tuple[Records, ...]:
    """Splits records at random into parts that share no content.

    Stratified: every part gets its fraction of the members and of the non-members. Records with
    equal `x` (compared by their numeric bytes, whatever their label or membership) always go to the
    same part. Near-copies across members and non-members are a warning.

    Args:
      key: PRNG key, consumed.
      records: what to split.
      fractions: parts' sizes; may sum to less than 1, the rest is left out. By convention fit,
        select (best epoch, thresholds) and held-out.
      overlap: what to do with a record `(x, y)` given both as member and as non-member: "error",
        or "drop" all its copies.

    Returns:
      One `Records` a fraction, each in the order of the input.

    Raises:
      ValueError: for overlap (naming how many and which), bad fractions, or a part with fewer
        than two members or two non-members.

    >>> import jax
    >>> x, y = np.arange(40.0)[:, None], np.zeros(20, int)
    >>> records = Records.of(members=(x[:20], y), nonmembers=(x[20:], y))
    >>> [int(part.is_member.sum()) for part in split(jax.random.key(0), records)]
    [8, 2, 10]
    """
    parts = split_indices(key, records, fractions, overlap=overlap)
    return tuple(records.rows(index) for index in parts)


def split_indices(
    key: jax.Array,
    records: Records,
    fractions: Sequence[float] = (0.4, 0.1, 0.5),
    *,
    overlap: Literal["error", "drop"] = "error",
) -> tuple[NDArray, ...]:
    """The indices of the records in each part; see `split`."""
    fractions = tuple(float(f) for f in fractions)
    if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions are {fractions}; they must be positive and sum to at most 1.")
    content = content_ids(records.x)
    keep = unambiguous(records, overlap, content)
    _warn_of_near_copies(records, keep)
    part_of = _assign(key, content, records.is_member, keep, fractions)
    parts = tuple(np.flatnonzero(part_of == i) for i in range(len(fractions)))
    for i, part in enumerate(parts):
        n_in = int(records.is_member[part].sum())
        n_out = part.size - n_in
        if min(n_in, n_out) < _SMALLEST:
            raise ValueError(
                f"part {i + 1} of the split ({fractions[i]:.0%}) has {n_in} members and {n_out} "
                f"non-members; at least {_SMALLEST} of each are needed to measure anything, and "
                "hundreds to measure it well. Give more records or larger fractions."
            )
    return parts


def unambiguous(
    records: Records, overlap: Literal["error", "drop"], content: NDArray | None = None
) -> NDArray:
    """Which records are not given both as member and as non-member, bool `[n]`.

    Raises:
      ValueError: if some are, and `overlap` is "error".
    """
    conflicts = conflicting(records, content)
    keep = np.ones(len(records.y), bool)
    if conflicts.size:
        if overlap == "error":
            raise ValueError(_overlap_message(records, conflicts))
        keep[conflicts] = False
    return keep


def conflicting(records: Records, content: NDArray | None = None) -> NDArray:
    """Indices of records `(x, y)` that appear both as member and as non-member, all copies."""
    content = content_ids(records.x) if content is None else content
    pairs = np.unique(np.stack([content, records.y], axis=1), axis=0, return_inverse=True)[
        1
    ].ravel()
    as_member = np.bincount(pairs[records.is_member], minlength=pairs.max(initial=-1) + 1) > 0
    as_other = np.bincount(pairs[~records.is_member], minlength=pairs.max(initial=-1) + 1) > 0
    return np.flatnonzero((as_member & as_other)[pairs])


def _overlap_message(records: Records, conflicts: NDArray) -> str:
    member = conflicts[records.is_member[conflicts]]
    other = conflicts[~records.is_member[conflicts]]
    offset = int(records.is_member.sum()) if records.is_member[: member.size].all() else 0
    shown = ", ".join(map(str, member[:5])) + (", ..." if member.size > 5 else "")
    among = ", ".join(str(i - offset) for i in other[:5]) + (", ..." if other.size > 5 else "")
    return (
        f"{member.size} members and {other.size} non-members are the same records (members "
        f"{shown}; non-members {among}). Their membership is not defined, and every figure would "
        "be wrong by them: give non-members the target never saw, or pass overlap='drop' "
        "(--overlap drop) to leave out all copies."
    )


def _warn_of_near_copies(records: Records, keep: NDArray, tolerance: float = 0.01) -> None:
    """Warns of members and non-members much closer to each other than records usually are."""
    members, others = keep & records.is_member, keep & ~records.is_member
    pairs = near_copies(records.x[members], records.x[others], tolerance)
    if len(pairs):
        i, j = np.flatnonzero(members)[pairs[0, 0]], np.flatnonzero(others)[pairs[0, 1]]
        warnings.warn(
            f"{len(pairs)} pairs of a member and a non-member are nearly equal (first: records {i} "
            f"and {j}, within {tolerance:.0%} of the usual distance). The target has as good as "
            "seen such non-members, which hides leakage; consider removing near-copies.",
            DataWarning,
            stacklevel=3,
        )


def near_copies(x_in: NDArray, x_out: NDArray, tolerance: float = 0.01) -> NDArray:
    """Pairs `[m, 2]` of rows closer than `tolerance` times the usual distance, equal rows left out.

    The usual distance is the median over random pairs. For every row of `x_in` the two nearest
    rows of `x_out` are looked at, in a random projection to 16 dimensions (which can only rarely
    lengthen a short distance by a factor of two), and checked at full length.
    """
    nothing = np.zeros((0, 2), int)
    if not (len(x_in) and len(x_out)):
        return nothing
    # One row a content: copies would hide each other's neighbours.
    rows_in, rows_out = (np.unique(content_ids(x), return_index=True)[1] for x in (x_in, x_out))
    a = x_in[rows_in].reshape(len(rows_in), -1).astype(np.float32)
    b = x_out[rows_out].reshape(len(rows_out), -1).astype(np.float32)
    random = np.random.default_rng(0)
    some_a, some_b = (random.integers(0, len(rows), size=1000) for rows in (a, b))
    usual = float(np.median(np.linalg.norm(a[some_a] - b[some_b], axis=1)))
    if not (usual and np.isfinite(usual)):
        return nothing
    project = random.normal(size=(a.shape[1], 16)).astype(np.float32) / 4
    _, nearest = scipy.spatial.cKDTree(b @ project).query(
        a @ project, k=[1, 2], distance_upper_bound=2 * tolerance * usual
    )
    i, j = np.nonzero(nearest < len(b))[0], nearest[nearest < len(b)]
    gaps = np.linalg.norm(a[i] - b[j], axis=1)
    close = (gaps > 0) & (gaps <= tolerance * usual)
    return np.stack([rows_in[i[close]], rows_out[j[close]]], axis=1)


def _assign(
    key: jax.Array, content: NDArray, is_member: NDArray, keep: NDArray, fractions: Sequence[float]
) -> NDArray:
    """The part of every record, -1 for none: contents shuffled and dealt out stratum by stratum."""
    part_of = np.full(len(content), -1)
    seen_in = np.bincount(content[keep & is_member], minlength=content.max(initial=-1) + 1)
    seen_out = np.bincount(content[keep & ~is_member], minlength=content.max(initial=-1) + 1)
    kind = (seen_in > 0) + 2 * (seen_out > 0)  # 1 members, 2 non-members, 3 both (other labels)
    part_of_content = np.full(len(kind), -1)
    bounds = np.cumsum(fractions)
    for stratum in (1, 2, 3):
        ids = np.flatnonzero(kind == stratum)
        if not ids.size:
            continue
        ids = ids[np.asarray(jax.random.permutation(jax.random.fold_in(key, stratum), ids.size))]
        sizes = (seen_in + seen_out)[ids]
        # A content goes where its middle falls, so parts are off by at most half a group of copies.
        middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
        part = np.searchsorted(bounds, middles)
        part_of_content[ids] = np.where(part < len(fractions), part, -1)
    part_of[keep] = part_of_content[content[keep]]
    return part_of
