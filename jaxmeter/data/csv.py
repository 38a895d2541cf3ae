"""CSV with a header: the column of labels by its name, all others features.

Fields are separated by commas and may be quoted; a record is one line. Rows are counted from 1,
the header not among them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmeter.data import columns
from jaxmeter.terminal import one_line

_LONGEST = 2**24  # bytes of a line
_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}  # as they are spelt, whatever the case


def read(
    path: Path, *, label: str = columns.LABEL, classes: Sequence[str] = ()
) -> tuple[NDArray, NDArray]:
    """`(x float32 [n, columns], y [n])` of a CSV file.

    Raises:
      ValueError: for a table that is damaged or holds something else than numbers.
    """
    import pyarrow  # Here, since few who import the package read tables.

    names = column_names(path)
    features = columns.features(names, label)
    kinds = dict.fromkeys(features, "float64") | {label: "string" if classes else "float64"}
    try:
        table = _table(path, kinds)
    except pyarrow.ArrowInvalid:
        raise _complaint(path, names, label, classes) from None
    x = np.empty((table.num_rows, len(features)), np.float32)
    for i, name in enumerate(features):
        x[:, i] = columns.narrowed(table[name].to_numpy(), name)
    if classes:
        return x, columns.named_labels(table[label].to_pylist(), classes, label)
    return x, columns.whole_labels(table[label].to_numpy(), label)


def column_names(path: Path, **_: Any) -> tuple[str, ...]:
    """The header's names.

    Raises:
      ValueError: if the first line is no header of a sensible length.
    """
    import pyarrow
    from pyarrow import csv

    with path.open("rb") as file:
        header = file.readline(_LONGEST)
    if len(header) == _LONGEST or header.count(b",") >= columns.MOST:
        raise ValueError(
            f"its first line has {len(header):,} bytes and {header.count(b',') + 1:,} columns, so "
            f"it is no header: {columns.MOST:,} columns are allowed. Save such records as .npz."
        )
    if not header.strip():
        raise ValueError("its first line is blank; it takes a header with the columns' names.")
    try:
        names = csv.read_csv(pyarrow.py_buffer(header)).column_names
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(f"its first line is no header: {one_line(error)}") from None
    return tuple(names)


def _table(path: Path, kinds: dict[str, str]) -> Any:
    import pyarrow
    from pyarrow import csv

    with path.open("rb") as file:  # of a path pyarrow would unpack a .gz, without a limit
        return csv.read_csv(
            file,
            read_options=csv.ReadOptions(block_size=_LONGEST),
            convert_options=csv.ConvertOptions(
                column_types={name: pyarrow.type_for_alias(kind) for name, kind in kinds.items()},
                null_values=[],  # what is missing is refused, and never a number
                strings_can_be_null=False,
            ),
        )


def _complaint(path: Path, names: Sequence[str], label: str, classes: Sequence[str]) -> ValueError:
    """What is wrong with a file that is no table of numbers."""
    import pyarrow

    try:
        table = _table(path, dict.fromkeys(names, "string"))
    except pyarrow.ArrowInvalid as error:
        if "straddling" in str(error):
            return ValueError(
                f"a line in it is longer than {_LONGEST:,} bytes, so it is damaged, or no table. "
                "Save such records as .npz."
            )
        return ValueError(
            f"{one_line(error)} It is damaged, or its lines have not all as many fields as the "
            "header; fields are separated by commas."
        )
    for name in names:
        if name == label and classes:
            continue
        for row, text in enumerate(table[name].to_pylist()):
            if text.strip().lower() in _MISSING:
                return columns.missing(row, name)
            if not _is_number(text):
                return columns.textual(name, text, row, is_label=name == label)
    return ValueError("a column cannot be read as numbers.")


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False
