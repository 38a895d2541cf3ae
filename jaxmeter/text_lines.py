"""Lines of numbers as arrays: the parsing of ML Privacy Meter's text, in blocks of whole lines.

A line is fields of numbers and a label: `1,2;3,4;0`. All lines have the layout of the first.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import csv

BLOCK = 32 * 2**20  # bytes of text parsed at once
_SEPARATORS = np.zeros(256, bool)
_SEPARATORS[list(b",;\n")] = True


class Parsed(NamedTuple):
    """A block's numbers and the layout of its lines: how many numbers each field has."""

    x: NDArray
    y: NDArray
    layout: tuple[int, ...]


def text_blocks(path: Path) -> Iterator[bytes]:
    """The file in pieces of whole lines, each ending with a newline, without blank ones at the end.

    Blank lines at the end of a piece go to the next one, since they may be in the middle.
    """
    with path.open("rb") as file:
        rest = b""
        while piece := file.read(BLOCK):
            rest += piece
            filled = len(rest[: rest.rfind(b"\n") + 1].rstrip(b"\r\n"))
            if filled:
                end = rest.index(b"\n", filled) + 1
                yield rest[:end]
                rest = rest[end:]
        if rest.strip():
            yield rest.rstrip() + b"\n"


def array_blocks(path: Path) -> Iterator[bytes]:
    """The rows of a string array as lines."""
    for rows in _array_rows(path):
        if rows.dtype.kind == "U":
            lines = (";".join(row).encode("utf-8", "replace") for row in rows.tolist())
        else:
            lines = (b";".join(row) for row in rows.tolist())
        yield b"".join(line + b"\n" for line in lines)


def _array_rows(path: Path) -> Iterator[NDArray]:
    """Some rows of a string array at a time; it may be larger than memory, so nothing is mapped."""
    form = np.lib.format
    try:
        with path.open("rb") as file:
            header = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
            version = form.read_magic(file)
            if version not in header:
                raise ValueError(f"format {version} is not known; save it with np.save.")
            shape, by_columns, dtype = header[version](file)
            start = file.tell()
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as rows: {error}") from error
    if dtype.hasobject:
        raise ValueError(
            f"{str(path)!r} is pickled. Pickled arrays are refused, since unpickling runs code: "
            "save the rows as strings, np.save(path, np.array(rows, dtype=str))."
        )
    if dtype.kind not in "US" or len(shape) != 2 or not all(shape):
        raise ValueError(
            f"{str(path)!r} is an array of {dtype} of shape {shape}; the members' rows are an "
            "array of strings [n, fields + 1], as np.save writes the split lines of the text."
        )
    n, width = shape
    if path.stat().st_size < start + n * width * dtype.itemsize:
        raise ValueError(f"{str(path)!r} is cut short: it should have {n:,} rows.")
    if by_columns:
        yield np.load(path, allow_pickle=False)
        return
    step = max(1, BLOCK // (dtype.itemsize * width))
    with path.open("rb") as file:
        file.seek(start)
        for first in range(0, n, step):
            some = min(step, n - first)
            yield np.fromfile(file, dtype, count=some * width).reshape(some, width)


def parsed(block: bytes, layout: tuple[int, ...] | None, where: str, first: int) -> Parsed:
    """The numbers of some lines, of which the first has number `first`."""
    block = block.replace(b"\r\n", b"\n") if b"\r" in block else block
    if layout is None:
        layout = _layout(block[: block.index(b"\n")])
        if layout is None:
            raise ValueError(
                f"{where} {first} is not a record: numbers with commas between them, fields with "
                "semicolons, and the label as the last field: 'f1,f2,...;label'."
            )
    codes = np.frombuffer(block, np.uint8)
    found = codes[_SEPARATORS[codes]]
    pattern = _pattern(layout)
    if found.size % pattern.size or not (found.reshape(-1, pattern.size) == pattern[None]).all():
        for i, line in enumerate(block.splitlines()):
            if _layout(line) != layout:
                raise ValueError(_complaint(line, layout, f"{where} {first + i}"))
    numbers = block.translate(bytes.maketrans(b";", b","))
    width = sum(layout)
    try:
        return Parsed(*_columns(numbers, width, pyarrow.uint8()), layout)
    except pyarrow.ArrowInvalid:
        pass
    try:
        return Parsed(*_columns(numbers, width, pyarrow.float64()), layout)
    except (pyarrow.ArrowInvalid, _NoRecord):
        raise ValueError(_first_bad(block, layout, where, first)) from None


def _layout(line: bytes) -> tuple[int, ...] | None:
    """Numbers in each field of a line before the label; None if it cannot be a record."""
    *fields, label = line.split(b";")
    counts = {field.count(b",") + 1 for field in fields}
    ok = fields and b"," not in label and (len(counts) == 1) and all(f.strip() for f in fields)
    return tuple(field.count(b",") + 1 for field in fields) if ok else None


def _pattern(layout: tuple[int, ...]) -> NDArray:
    """The separators of a line, in order."""
    text = b"".join(b"," * (count - 1) + b";" for count in layout) + b"\n"
    return np.frombuffer(text, np.uint8)


class _NoRecord(Exception):
    """A number that is none for a record: not finite, or a label that is no class."""


def _columns(numbers: bytes, width: int, kind: Any) -> tuple[NDArray, NDArray]:
    """`(x [n, width], y [n])` of lines of width + 1 numbers."""
    names = [str(i) for i in range(width + 1)]
    exact = kind == pyarrow.uint8()
    kinds = {name: kind for name in names[:-1]}
    kinds[names[-1]] = pyarrow.int64() if exact else pyarrow.float64()
    table = csv.read_csv(
        pyarrow.py_buffer(numbers),
        read_options=csv.ReadOptions(column_names=names, block_size=_piece(numbers, width)),
        parse_options=csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(
            column_types=kinds, null_values=[], strings_can_be_null=False
        ),
    )
    x = np.empty((table.num_rows, width), np.uint8 if exact else np.float32)
    for start, columns in _batches(table):
        n = len(columns[0])
        rows = np.empty((width, n), x.dtype)
        with np.errstate(over="ignore"):  # beyond float32: infinite, and refused below
            for i, column in enumerate(columns):
                rows[i] = column
        x[start : start + n] = rows.T
    y = table.column(width).to_numpy()
    if not exact and not (np.isfinite(x).all() and np.isfinite(y).all() and (y % 1 == 0).all()):
        raise _NoRecord
    if y.size and (y.min() < 0 or y.max() > np.iinfo(np.int32).max):
        raise pyarrow.ArrowInvalid("a label that is no class") if exact else _NoRecord
    return x, y.astype(np.int32)


def _piece(numbers: bytes, width: int) -> int:
    """Bytes parsed by one thread; no line may be longer."""
    return max(len(numbers) if width > 50_000 else len(numbers) // 4, 2**20)


def _batches(table: Any) -> Iterator[tuple[int, list[NDArray]]]:
    start = 0
    for batch in table.to_batches():
        yield start, [column.to_numpy() for column in batch.columns[:-1]]
        start += batch.num_rows


def _first_bad(block: bytes, layout: tuple[int, ...], where: str, first: int) -> str:
    for i, line in enumerate(block.splitlines()):
        numbers, _, label = line.translate(bytes.maketrans(b";", b",")).rpartition(b",")
        try:
            with np.errstate(over="ignore"):
                x = np.array(numbers.split(b",")).astype(np.float64).astype(np.float32)
            y = float(label)
        except ValueError:
            return _complaint(line, layout, f"{where} {first + i}")
        if not (np.isfinite(x).all() and y % 1 == 0 and 0 <= y <= np.iinfo(np.int32).max):
            return _complaint(line, layout, f"{where} {first + i}")
    return f"{where}s from {first} on cannot be read as numbers."


def _complaint(line: bytes, layout: tuple[int, ...], place: str) -> str:
    shown = line[:40].decode("utf-8", "replace") + ("..." if len(line) > 40 else "")
    expected = f"{len(layout)} field{'s' if len(layout) > 1 else ''} of {layout[0]:,}"
    found = _layout(line)
    what = (
        "is blank"
        if not line.strip()
        else "holds something that is no finite number, or a label that is no whole number from 0"
        if found == layout
        else f"has {len(found)} of {found[0]:,}"
        if found
        else "does not have that form"
    )
    return (
        f"{place} is not a record like the first: that has {expected} numbers and a label, and "
        f"this one {what} ({shown!r}). Correct or remove the line."
    )
