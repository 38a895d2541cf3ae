"""Records: `(x, y)` with who was in the training set, checked once."""

import hashlib
import warnings
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
        x_in, y_in = checked(*members, "members", n_classes)
        x_out, y_out = checked(*nonmembers, "nonmembers", n_classes)
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


def content_ids(x: NDArray) -> NDArray:
    """One integer a record, equal exactly for records with equal numbers `[n]`."""
    x = np.ascontiguousarray(x) + np.zeros((), x.dtype)  # -0.0 becomes 0.0
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x]
    return np.unique(np.array(digests, dtype="V16"), return_inverse=True)[1].ravel()


def checked(
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
