"""Parquet: columns as in CSV, or one column of lists of equal lengths as `x`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmeter.data import columns
from jaxmeter.data.npz import check_room
from jaxmeter.terminal import one_line, printable

_HOW = "save the records uncompressed, with np.savez(path, x=x, y=y)"
_STEP = 4096  # rows that are decoded at once
_FOOTER = 2**24  # bytes of a text, and elements of a list, in the file's description of itself


def read(
    path: Path,
    *,
    label: str = columns.LABEL,
    classes: Sequence[str] = (),
    max_bytes: int | None = None,
) -> tuple[NDArray, NDArray]:
    """`(x [n, ...], y [n])`: x is float32 `[n, columns]`, or a list column's numbers as they are.

    Raises:
      ValueError: for a table that is damaged, holds something else than numbers, or would take
        more memory than it may.
    """
    import pyarrow

    try:
        with path.open("rb") as source:
            file = _opened(source)
            schema = file.schema_arrow
            features = columns.features(schema.names, label)
            for name in schema.names:
                _check_type(schema.field(name).type, name, len(features), label, classes)
            table = _read(file, path.stat().st_size, max_bytes)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{one_line(error).rstrip('.')}. It is damaged, or no Parquet. Copy it again."
        ) from None
    for name in schema.names:
        _check_nulls(table[name], name)
    if _is_list(schema.field(features[0]).type):
        x = _stacked(table[features[0]].combine_chunks(), features[0])
    else:
        x = np.empty((table.num_rows, len(features)), np.float32)
        for i, name in enumerate(features):
            x[:, i] = columns.narrowed(table[name].to_numpy().astype(np.float64), name)
    y = table[label]
    if classes:
        return x, columns.named_labels(list(map(str, y.to_pylist())), classes, label)
    return x, columns.whole_labels(y.to_numpy().astype(np.float64), label)


def column_names(path: Path, **_: Any) -> tuple[str, ...]:
    """The columns' names."""
    import pyarrow

    try:
        with path.open("rb") as source:
            return tuple(_opened(source).schema_arrow.names)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{one_line(error).rstrip('.')}. It is damaged, or no Parquet.") from None


def _opened(source: Any) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(
        source, thrift_string_size_limit=_FOOTER, thrift_container_size_limit=_FOOTER
    )


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _check_type(kind: Any, name: str, n_features: int, label: str, classes: Sequence[str]) -> None:
    """Refuses a column by its type, before any of it is read."""
    from pyarrow import types

    if name == label and classes:
        fits = types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)
        remedy = "With classes= labels are text: the names of the classes."
    elif name == label:
        fits = types.is_integer(kind) or types.is_floating(kind)
        remedy = "Labels are whole numbers, or text where classes= (--classes) names the classes."
    else:
        while n_features == 1 and _is_list(kind):
            kind = kind.value_type
        fits = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        remedy = (
            "Features are numbers, or a single column of lists of numbers. Encode categories "
            "exactly as for the target's training."
        )
    if not fits:
        raise ValueError(f"column {printable(name)!r} is of type {one_line(kind, 200)}. {remedy}")


def _read(file: Any, size: int, max_bytes: int | None) -> Any:
    """All rows, some at a time, counted before and while they are decoded: a footer may lie."""
    import pyarrow

    meta = file.metadata
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    unpacked = sum(max(c.total_uncompressed_size, c.num_values * _width(c)) for c in chunks)
    check_room(unpacked, size, max_bytes, _HOW)
    batches, total = [], 0
    for batch in file.iter_batches(batch_size=_STEP, use_threads=False):
        total += batch.nbytes
        check_room(total, size, max_bytes, _HOW)
        batches.append(batch)
    return pyarrow.Table.from_batches(batches, file.schema_arrow)


def _width(chunk: Any) -> int:
    """Bytes that a value takes in an array; a bit is counted as a byte, a text as its place."""
    return {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4}.get(chunk.physical_type, 8)


def _check_nulls(column: Any, name: str) -> None:
    if column.null_count:
        raise columns.missing(int(np.argmax(column.is_null().to_numpy())), name)


def _stacked(array: Any, name: str) -> NDArray:
    """A column of lists, of lists of lists and so on, as one array."""
    shape = [len(array)]
    while _is_list(array.type):
        lengths = np.asarray(array.value_lengths())
        odd = np.flatnonzero(lengths != lengths[:1])
        if odd.size:
            row = odd[0] // max(1, math.prod(shape[1:]))
            raise ValueError(
                f"row {row + 1} of column {printable(name)!r} has a list of {lengths[odd[0]]} "
                f"where the first row has {lengths[0]}. All records have one shape: pad or drop."
            )
        array = array.flatten()
        shape.append(int(lengths[0]) if lengths.size else 0)
        if array.null_count:
            at = int(np.argmax(np.asarray(array.is_null())))
            raise columns.missing(at // max(1, math.prod(shape[1:])), name)
    return array.to_numpy(zero_copy_only=False).reshape(shape)
