"""Sequences of tensors: Python lists, whose length is always known."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmeter.intake.onnx.ops.values import Table, affordable, backend, ints, known, positive_axes
from jaxmeter.intake.safety import budget


def construct(*values: Any) -> list[Any]:
    """SequenceConstruct."""
    return list(values)


def empty(*, dtype: int = 1) -> list[Any]:
    """SequenceEmpty."""
    return []


def at(sequence: Sequence[Any], position: Any) -> Any:
    """SequenceAt."""
    return sequence[_position(position)]


def insert(sequence: Sequence[Any], value: Any, position: Any = None) -> list[Any]:
    """SequenceInsert; at the end unless told where."""
    i = len(sequence) if position is None else _position(position)
    i = i + len(sequence) if i < 0 else i
    return [*sequence[:i], value, *sequence[i:]]


def erase(sequence: Sequence[Any], position: Any = None) -> list[Any]:
    """SequenceErase; the last one unless told which."""
    i = (-1 if position is None else _position(position)) % len(sequence)
    return [*sequence[:i], *sequence[i + 1 :]]


def length(sequence: Sequence[Any]) -> Any:
    """SequenceLength."""
    return np.asarray(len(sequence), np.int64)


def split(x: Any, split: Any = None, *, axis: int = 0, keepdims: int = 1) -> list[Any]:
    """SplitToSequence: into parts of one size, of given sizes, or single ones."""
    (axis,) = positive_axes([axis], x.ndim)
    size = x.shape[axis]
    part = 1 if split is None else ints(split, "split")[0]
    count = -(-size // max(1, part)) if np.ndim(split) == 0 else np.size(split)
    affordable([count], copies=32)  # what Python takes for each part
    # Each is an array of its own, in each operation after this one.
    budget.work(10 * count * budget.STEP, f"splitting a tensor into {count:,} parts")
    if split is None:
        sizes = [1] * size
    elif np.ndim(split) == 0:
        sizes = [part] * (size // part) + [size % part] * bool(size % part)
    else:
        sizes = ints(split, "split")
    ends = np.cumsum(sizes)
    parts = [
        x[(slice(None),) * axis + (slice(int(end) - part, int(end)),)]
        for part, end in zip(sizes, ends, strict=True)
    ]
    return parts if split is not None or keepdims else [part.squeeze(axis) for part in parts]


def concat(sequence: Sequence[Any], *, axis: int, new_axis: int = 0) -> Any:
    """ConcatFromSequence: along an axis, or stacked along a new one."""
    affordable([sum(np.size(value) for value in sequence)], copies=len(sequence) > 0)
    xp = backend(*sequence)
    return (xp.stack if new_axis else xp.concatenate)(list(sequence), axis=axis)


def sequence_map(sequence: Sequence[Any], *others: Any, body: Any, n_outputs: int) -> Any:
    """SequenceMap: the body for each; a tensor among the inputs is the same for all."""
    rows = [
        body(value, *(other[i] if isinstance(other, list) else other for other in others))
        for i, value in enumerate(sequence)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return tuple(columns or [[] for _ in range(n_outputs)])


def _position(value: Any) -> int:
    return int(known(value, "position").reshape(()))


TABLE: Table = {
    "ConcatFromSequence": concat,
    "SequenceAt": at,
    "SequenceConstruct": construct,
    "SequenceEmpty": empty,
    "SequenceErase": erase,
    "SequenceInsert": insert,
    "SequenceLength": length,
    "SequenceMap": sequence_map,
    "SplitToSequence": split,
}
