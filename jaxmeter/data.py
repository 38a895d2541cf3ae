"""Records, how they are read, and how they are split without letting the answer leak."""

import hashlib
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple, Self

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from jaxmeter.npz import read_arrays
from jaxmeter.terminal import printable

_SMALLEST = 2  # members, and non-members, without which no part can be measured


class DataWarning(UserWarning):
    """The records are usable, but something about them bends the measurement."""


class Records(NamedTuple):
    """Records with the truth about their membership.

    Attributes:
      x: `[n, ...]`, numeric.
      y: class labels, int32 `[n]`, counted from 0.
      is_member: bool `[n]`, whether the target was trained on the record.
    """

    x: NDArray
    y: NDArray
    is_member: NDArray

    @classmethod
    def of(
        cls,
        *,
        members: tuple[ArrayLike, ArrayLike],
        nonmembers: tuple[ArrayLike, ArrayLike],
        n_classes: int | None = None,
    ) -> Self:
        """Records from members' and non-members' `(x, y)`, members first.

        Args:
          members: `(x [m, ...], y [m])`. Labels are integers, or one-hot rows `[m, classes]`.
          nonmembers: the same.
          n_classes: the classifier's number of classes, if known; labels are checked against it.

        Raises:
          ValueError: for NaN or infinite values in x, labels that are not whole numbers in
            `0..n_classes-1`, one-hot rows that are not one-hot or of another width, lengths or
            shapes that do not fit together, or no record at all.

        >>> Records.of(members=([[0.0, 1.0]], [1]), nonmembers=([[1.0, 0.0]], [0])).is_member
        array([ True, False])
        """
        x_in, y_in = _checked(*members, "members", n_classes)
        x_out, y_out = _checked(*nonmembers, "nonmembers", n_classes)
        if x_in.shape[1:] != x_out.shape[1:]:
            raise ValueError(
                f"members have records of shape {x_in.shape[1:]}, non-members {x_out.shape[1:]}; "
                "they must be the same kind of record, prepared the same way."
            )
        if x_in.dtype != x_out.dtype:
            warnings.warn(
                f"members are {x_in.dtype}, non-members {x_out.dtype}: if they were prepared "
                "differently, an attack tells them apart by that, not by membership.",
                DataWarning,
                stacklevel=2,
            )
        is_member = np.repeat([True, False], [len(x_in), len(x_out)])
        return cls(np.concatenate([x_in, x_out]), np.concatenate([y_in, y_out]), is_member)

    def rows(self, index: ArrayLike) -> Self:
        """Some of the records, by integer indices or mask, in that order."""
        index = np.asarray(index)
        return type(self)(self.x[index], self.y[index], self.is_member[index])


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


def content_ids(x: NDArray) -> NDArray:
    """One integer a record, equal exactly for records with equal numbers `[n]`."""
    x = np.ascontiguousarray(x) + np.zeros((), x.dtype)  # -0.0 becomes 0.0
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x]
    return np.unique(np.array(digests, dtype="V16"), return_inverse=True)[1].ravel()


def read_npz(
    path: str | PathLike[str],
    *,
    n_classes: int | None = None,
    names: tuple[str, str] = ("x", "y"),
    max_bytes: int | None = None,
) -> tuple[NDArray, NDArray]:
    """Reads `x` and `y`, under these names, from an `.npz` file, never unpickling anything.

    Args:
      path: the file.
      n_classes: as for `Records.of`.
      names: the two arrays' names in the file.
      max_bytes: that the arrays may take unpacked; None for 256 MiB and 100 times the file's size.

    Returns:
      `(x [n, ...], y [n])`, checked as `Records.of` does.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not an npz file, is damaged, lacks `x` or `y`, holds Python objects, or
        would take more memory than it may.
    """
    path = Path(path)
    found = read_arrays(path, names, max_bytes=max_bytes)
    return _checked(found[names[0]], found[names[1]], printable(path.name), n_classes)


def _checked(
    x: ArrayLike, y: ArrayLike, what: str, n_classes: int | None
) -> tuple[NDArray, NDArray]:
    """Own copies of x and y, or an error that says what is wrong with `what`."""
    x = np.array(x)
    if x.dtype == object or not (
        np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.bool_)
    ):
        raise ValueError(f"{what}: x has dtype {x.dtype}; records are arrays of numbers [n, ...].")
    if x.ndim < 2:
        raise ValueError(
            f"{what}: x has shape {x.shape}; records are [n, ...] with n first, at least two axes "
            "(a single feature is [n, 1])."
        )
    y = _labels(np.array(y), what, n_classes)
    if len(x) != len(y):
        raise ValueError(f"{what}: {len(x)} records but {len(y)} labels; there must be one each.")
    if len(x) == 0:
        raise ValueError(f"{what} are empty: there is nothing to attack or to compare with.")
    if np.issubdtype(x.dtype, np.inexact):
        bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
        if bad.size:
            raise ValueError(
                f"{what}: {bad.size} records contain NaN or infinity (first: record {bad[0]}). The "
                "target's answer to them means nothing; drop or impute them as in its training."
            )
    return x, y


def _labels(y: NDArray, what: str, n_classes: int | None) -> NDArray:
    if y.ndim == 2 and y.shape[1] > 1:
        if n_classes is not None and y.shape[1] != n_classes:
            raise ValueError(
                f"{what}: one-hot labels are {y.shape[1]} wide, but the target has {n_classes} "
                "classes; they belong to another model or encoding."
            )
        ones = (y == 1).sum(axis=1) == 1
        if not (ones & ((y == 0).sum(axis=1) == y.shape[1] - 1)).all():
            raise ValueError(
                f"{what}: y has shape {y.shape} but its rows are not one-hot (soft or multiple "
                "labels); give one class a record."
            )
        y = y.argmax(axis=1)
    y = y[:, 0] if y.ndim == 2 else y
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.number):
        raise ValueError(
            f"{what}: y has shape {y.shape} and dtype {y.dtype}; labels are integers [n]."
        )
    if np.issubdtype(y.dtype, np.inexact):
        raise ValueError(
            f"{what}: labels are {y.dtype}; class labels are integers counted from 0. If these "
            "really are classes, convert them with y.astype(int); regression cannot be audited."
        )
    if y.size and y.min() < 0:
        raise ValueError(
            f"{what}: {int((y < 0).sum())} labels are negative (lowest {y.min()}); classes are "
            "counted from 0. A marker for 'unlabelled' must be dropped first."
        )
    if n_classes is not None and y.size and y.max() >= n_classes:
        raise ValueError(
            f"{what}: labels go up to {y.max()}, but the target has {n_classes} classes "
            f"(0..{n_classes - 1}); labels counted from 1, or another model's?"
        )
    if y.size and y.max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"{what}: labels go up to {y.max()}, which is no class; they count from 0. Are they "
            "identifiers, or is the file damaged?"
        )
    return y.astype(np.int32)


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
    _, nearest = cKDTree(b @ project).query(
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
