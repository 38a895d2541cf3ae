"""Tables of named columns as records: what CSV and Parquet have in common.

The column of labels goes by its name. All other columns are numbers, in the order of the file.
A column of text is refused, not encoded: the target was trained on one encoding, and one guessed
from a file of some of the records (members, say) would differ from it and from the other file's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmeter.terminal import printable

LABEL = "label"  # the column of labels where none is named
MOST = 20_000  # columns; Arrow takes kilobytes for each, whatever is in it


def features(names: Sequence[str], label: str) -> list[str]:
    """The columns that are not the label's.

    Raises:
      ValueError: if there is no column of labels or no other, or a column has no name of its own.
    """
    if len(names) > MOST:
        raise ValueError(
            f"it has {len(names):,} columns, and {MOST:,} are allowed, so that a small file cannot "
            "take all memory. Save arrays of records as .npz, or as a list column of Parquet."
        )
    nameless = [i for i, name in enumerate(names) if not name]
    if nameless:
        raise ValueError(
            f"column {nameless[0] + 1} has no name, so it may be a row number and no feature. Name "
            "or remove it (pandas writes none with index=False)."
        )
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"two columns are named {printable(twice)!r}. Give each its own name.")
    others = [name for name in names if name != label]
    shown = ", ".join(map(printable, names[:20])) + ", ..." * (len(names) > 20)
    if len(others) == len(names):
        raise ValueError(
            f"it has no column {printable(label)!r} of labels, but {shown}. Name the column of "
            "labels with label= (on the command line --label)."
        )
    if not others:
        raise ValueError(f"it has the column {shown} alone, and no features beside the labels.")
    return others


def whole_labels(values: NDArray, label: str) -> NDArray:
    """Labels that are whole numbers from a column of numbers, int64.

    Raises:
      ValueError: for one that is not whole, naming its row.
    """
    wrong = np.flatnonzero(~(np.isfinite(values) & (values % 1 == 0) & (abs(values) < 2**53)))
    if wrong.size:
        raise ValueError(
            f"row {wrong[0] + 1} of column {printable(label)!r} is {values[wrong[0]]}; labels are "
            "whole numbers from 0. Regression cannot be audited."
        )
    return values.astype(np.int64)


def named_labels(texts: Sequence[Any], classes: Sequence[str], label: str) -> NDArray:
    """Labels from names of classes: the place of each in `classes`.

    Raises:
      ValueError: for a name that is not among the classes, naming its row.
    """
    place = {name: i for i, name in enumerate(classes)}
    labels = [place.get(text, -1) for text in texts]
    if -1 in labels:
        row = labels.index(-1)
        raise ValueError(
            f"row {row + 1} of column {printable(label)!r} is {printable(texts[row])!r}, which is "
            f"none of the classes {', '.join(map(printable, classes))}. Name all the target's "
            "classes, in the order of its outputs."
        )
    return np.array(labels, np.int64)


def narrowed(values: NDArray, name: str) -> NDArray:
    """A feature as float32.

    Raises:
      ValueError: for NaN, infinity or what float32 has no room for, naming row and column.
    """
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(small))
    if wrong.size:
        raise ValueError(
            f"row {wrong[0] + 1} of column {printable(name)!r} is {values[wrong[0]]}, no finite "
            "float32. Drop or impute such records as in the target's training."
        )
    return small


def missing(row: int, name: str) -> ValueError:
    """The complaint about a value that is not there; rows count from 0 here, in messages from 1."""
    return ValueError(
        f"row {row + 1} of column {printable(name)!r} has no value. Drop or impute missing values "
        "as in the target's training."
    )


def textual(name: str, example: object, row: int, *, is_label: bool) -> ValueError:
    """The complaint about text where numbers belong."""
    remedy = (
        "Name the target's classes, in the order of its outputs, with classes= (on the command "
        "line --classes)"
        if is_label
        else "Encode categories as numbers exactly as for the target's training, e.g. one-hot; "
        "an order guessed from the file might be another than the target's"
    )
    return ValueError(
        f"row {row + 1} of column {printable(name)!r} is {printable(example)!r}, no number. "
        f"{remedy}."
    )
