"""Cells of reference models: what was observed, by which models, and who had seen the record.

A cell is one model's signal of one record. Everything goes through the cells in blocks of records,
so that beside input and result little memory is needed, whatever type or file the input has.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 1 << 16  # cells a block: 512 KiB in float64, so that a few of them stay in the caches


class ReferenceWarning(UserWarning):
    """Scores were computed, but some records lack what their formula needs."""


class Cells(NamedTuple):
    """Checked input of a score, with an axis q for queries or signals (1 where there is none)."""

    observed: NDArray  # float64 [q, n]
    references: NDArray  # [k, q, n], a view of the caller's array
    was_member: NDArray  # bool [k, n], the caller's array
    models: NDArray  # int [m]: which of the k are used


class Side(NamedTuple):
    """The models that saw a record, or those that did not."""

    models: NDArray  # int [n]
    mean: NDArray  # float64 [q, n]; 0 where there are none
    squares: NDArray  # float64 [q, n]: sum of squared residuals about that mean


class Sides(NamedTuple):
    """Statistics of both, record by record."""

    seen: Side
    unseen: Side


def cells(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    models: ArrayLike | None = None,
    *,
    log_probabilities: bool = False,
) -> Cells:
    """Input as `Cells`; values of the references are checked when they are read.

    Raises:
      ValueError: if shapes do not fit, membership is not bool, or what was observed is not finite.
    """
    found = np.asarray(observed)
    others, was_member = membership(references, was_member)
    if others.ndim not in (2, 3) or others.shape[1:] != found.shape:
        raise ValueError(
            f"observed has the shape {found.shape}, references {others.shape}; they must be [n] "
            "and [k, n], or [q, n] and [k, q, n], of the same records in the same order."
        )
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        bad = ~np.isfinite(found).reshape(-1, found.shape[-1]).all(axis=0)
        raise ValueError(
            f"what was observed of {bad.sum()} records is not finite (first: "
            f"{np.flatnonzero(bad)[0]}). Leave them out, or use statistics of logits that do not "
            "overflow (jaxmeter.logits)."
        )
    if log_probabilities and found.size and found.max() > 0:
        raise ValueError(
            f"observed is as large as {found.max():.4g}, but this score wants log-probabilities, "
            "which are at most 0: use jaxmeter.logits.log_probability."
        )
    if others.ndim == 2:
        found, others = found[None], others[:, None]
    return Cells(found, others, was_member, chosen(models, len(others)))


def membership(references: ArrayLike, was_member: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both as arrays, `[k, ...]` and bool `[k, n]`; ValueError if they do not fit."""
    others, was_member = np.asanyarray(references), np.asanyarray(was_member)
    if was_member.dtype != bool or was_member.ndim != 2:
        raise ValueError(
            f"was_member has the type {was_member.dtype} and shape {was_member.shape}; it must be "
            "bool [k, n]: whether model k was trained on record n."
        )
    if others.ndim < 2 or len(others) != len(was_member) or was_member.shape[1] not in others.shape:
        raise ValueError(
            f"references have the shape {others.shape}, was_member {was_member.shape}; both need "
            "one row a model and the same records."
        )
    return others, was_member


def chosen(models: ArrayLike | None, k: int) -> NDArray:
    """Indices of the models to use `[m]`; ValueError if there is none or one twice."""
    if models is None:
        found = np.arange(k)
    else:
        found = np.atleast_1d(np.asarray(models)).astype(np.intp)
    if (
        not found.size
        or np.unique(found).size < found.size
        or not -1 < found.min() <= found.max() < k
    ):
        raise ValueError(
            f"models must be distinct indices below {k}, at least one; they are {found.tolist()}."
        )
    return found


def blocks(cells: Cells) -> Iterator[tuple[slice, NDArray, NDArray]]:
    """Records (a slice), values float64 `[m, q, b]`, membership bool `[m, b]`, block by block.

    Raises:
      ValueError: if a value is not finite, naming the first model and record.
    """
    q, n = cells.observed.shape
    step = max(16, _BLOCK // (cells.models.size * q))
    everyone = cells.models.size == len(cells.references)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        values, seen = cells.references[:, :, rows], cells.was_member[:, rows]
        if not everyone:
            values, seen = values[cells.models], seen[cells.models]
        values = values.astype(np.float64, copy=everyone)
        if not np.isfinite(values).all():
            model, _, record = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(
                f"the signal of reference model {cells.models[model]} for record {start + record} "
                f"is {values[model, :, record]}; leave the model or the record out, or use "
                "statistics of logits that do not overflow (jaxmeter.logits)."
            )
        yield rows, values, seen


def sides(cells: Cells) -> Sides:
    """Count, mean and squared residuals of the models that saw each record, and of the others."""
    q, n = cells.observed.shape
    seen, unseen = (Side(np.empty(n, int), np.empty((q, n)), np.empty((q, n))) for _ in range(2))
    for rows, values, mask in blocks(cells):
        weights = (mask.astype(np.float64), (~mask).astype(np.float64))
        for side, weight in zip((seen, unseen), weights, strict=True):
            side.models[rows] = weight.sum(axis=0)
            total = np.einsum("mqb,mb->qb", values, weight)
            side.mean[:, rows] = total / np.maximum(side.models[rows], 1)
        values -= np.where(mask[:, None], seen.mean[:, rows], unseen.mean[:, rows])
        np.square(values, out=values)
        for side, weight in zip((seen, unseen), weights, strict=True):
            side.squares[:, rows] = np.einsum("mqb,mb->qb", values, weight)
    return Sides(seen, unseen)


def need(side: Side, cells: Cells, what: str, advice: str) -> None:
    """ValueError if no record has a model on this side."""
    if not side.models.any():
        raise ValueError(
            f"none of the {cells.models.size} reference models {what} a record; {advice}"
        )


def bridged(
    seen: NDArray, unseen: NDArray, has_seen: NDArray, has_unseen: NDArray
) -> tuple[NDArray, NDArray]:
    """Centres `[q, n]` with the missing ones filled in.

    Where one side is missing it is the other plus the average difference of the sides, over the
    records that have both: as hard a record as its other side says.
    """
    both = has_seen & has_unseen
    if both.all():
        return seen, unseen
    shift = (seen - unseen)[:, both].mean(axis=1, keepdims=True)
    return np.where(has_seen, seen, unseen + shift), np.where(has_unseen, unseen, seen - shift)


def say(lacking: dict[str, NDArray], cells: Cells, remedy: str) -> None:
    """One warning for all that some records lack: what -> which, bool `[n]`."""
    parts = [f"{int(which.sum())} {what}" for what, which in lacking.items() if which.any()]
    if parts:
        k = cells.models.size
        n = cells.was_member.shape[1]
        warnings.warn(
            f"of {n} records, {k} reference models: {'; '.join(parts)}. {remedy}",
            ReferenceWarning,
            stacklevel=4,
        )
