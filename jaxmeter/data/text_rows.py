"""Lines of numbers as arrays: the parsing of ML Privacy Meter's text, in blocks of whole lines.

A line is fields of numbers and a label: `1,2;3,4;0`. All lines have the layout of the first.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmeter.data.npz import read_array, read_header

BLOCK = 32 * 2**20  # bytes of text parsed at once
_SEPARATORS = np.zeros(256, bool)
_SEPARATORS[list(b",;\n")] = True
_FILLED = ~np.isin(np.arange(256), list(b" \t\n\r\x0b\x0c;"))
_ONE_A_LINE = bytes.maketrans(b",;", b"\n\n")


class Layout(NamedTuple):
    """What a line holds before its label: fields, of so many numbers each."""

    fields: int
    each: int


class Parsed(NamedTuple):
    """A block's numbers and the layout of its lines."""

    x: NDArray
    y: NDArray
    layout: Layout


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
        block = _joined(_letters(rows, path))
        if block.count(b"\n") != len(rows) or b"\r" in block:
            raise ValueError(
                f"{str(path)!r} has rows with line breaks in them, so it is damaged, or no array "
                "of records: a row is one record. Write it again from the split lines of the text."
            )
        yield block


def _letters(rows: NDArray, path: Path) -> NDArray:
    """Texts `[n, width]` as bytes `[n, width, k]`, zeros behind each; other letters are "?"."""
    if rows.dtype.kind == "S":
        found = np.ascontiguousarray(rows).view(np.uint8).reshape(*rows.shape, -1)
    else:
        codes = np.ascontiguousarray(rows).view(
            np.dtype(np.uint32).newbyteorder(rows.dtype.byteorder)
        )
        if codes.max() > sys.maxunicode:
            raise ValueError(f"{str(path)!r} is damaged: it holds no letters. Copy it again.")
        found = np.where(codes < 128, codes, ord("?")).astype(np.uint8).reshape(*rows.shape, -1)
    if ((found[..., :-1] == 0) & (found[..., 1:] != 0)).any():
        raise ValueError(f"{str(path)!r} is damaged: it has a zero within a text. Copy it again.")
    return found


def _joined(letters: NDArray) -> bytes:
    """Rows as lines. Byte by byte: a text of Python's for each number takes 20 times as much."""
    n, width, size = letters.shape
    ends = np.full((n, width, 1), ord(";"), np.uint8)
    ends[:, -1] = ord("\n")
    last = letters[:, -1].copy()  # without the line break that some leave at a line's end
    free = np.ones(n, bool)
    for place in reversed(range(size)):
        free &= np.isin(last[:, place], (0, ord("\r"), ord("\n")))
        last[free, place] = 0
    whole = np.concatenate([letters, ends], axis=2)
    whole[:, -1, :-1] = last
    return whole[whole != 0].tobytes()


def _array_rows(path: Path) -> Iterator[NDArray]:
    """Some rows of a string array at a time; it may be larger than memory, so nothing is mapped."""
    try:
        with path.open("rb") as file:
            header = read_header(file)
            start = file.tell()
    except (ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as rows: {error}.") from None
    shape, dtype = header.shape, header.dtype
    if dtype.kind not in "US" or not dtype.itemsize or len(shape) != 2 or not all(shape):
        raise ValueError(
            f"{str(path)!r} is an array of {dtype} of shape {shape}; the members' rows are an "
            "array of strings [n, fields + 1], as np.save writes the split lines of the text."
        )
    n, width = shape
    if path.stat().st_size < start + header.size:
        raise ValueError(f"{str(path)!r} is cut short: it should have {n:,} rows.")
    with path.open("rb") as file:
        if header.by_columns:
            yield np.ascontiguousarray(read_array(file, header.size))
            return
        file.seek(start)
        step = max(1, BLOCK // (dtype.itemsize * width))
        for first in range(0, n, step):
            some = min(step, n - first)
            yield np.fromfile(file, dtype, count=some * width).reshape(some, width)


def parsed(block: bytes, layout: Layout | None, where: str, first: int) -> Parsed:
    """The numbers of some lines, of which the first has number `first`."""
    block = block.replace(b"\r\n", b"\n")
    block = block.replace(b"\r", b"\n")
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
        for i, line in enumerate(io.BytesIO(block)):
            if _layout(line.rstrip(b"\n")) != layout:
                raise ValueError(_complaint(line.rstrip(b"\n"), layout, f"{where} {first + i}"))
    width = layout.fields * layout.each
    records = _bytes(block, width) or _floats(block, width)
    if records is None:
        bad, line = _first_bad(block, width)
        raise ValueError(_complaint(line, layout, f"{where} {first + bad}"))
    return Parsed(*records, layout)


def _layout(line: bytes) -> Layout | None:
    """The layout of a line; None if it cannot be a record."""
    codes = np.frombuffer(line, np.uint8)
    ends = np.flatnonzero(codes == ord(";"))
    if not ends.size or b"," in line[ends[-1] :]:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (starts == ends).any() or not np.logical_or.reduceat(
        _FILLED[codes[: ends[-1]]], starts
    ).all():
        return None  # a field without anything in it
    commas = np.searchsorted(np.flatnonzero(codes == ord(",")), ends)
    each = np.diff(commas, prepend=0) + 1
    return Layout(ends.size, int(each[0])) if (each == each[0]).all() else None


def _pattern(layout: Layout) -> NDArray:
    """The separators of a line, in order."""
    text = (b"," * (layout.each - 1) + b";") * layout.fields + b"\n"
    return np.frombuffer(text, np.uint8)


def _bytes(lines: bytes, width: int) -> tuple[NDArray, NDArray] | None:
    """`(x uint8 [n, width], y [n])` of lines; None if they are no such numbers."""
    rows = _numbers(lines, width, "int64")
    if rows is None:
        return None
    x, y = rows[:, :-1], rows[:, -1]
    if x.min() < 0 or x.max() > 255 or not _are_labels(y):
        return None
    return x.astype(np.uint8), y.astype(np.int32)


def _floats(lines: bytes, width: int) -> tuple[NDArray, NDArray] | None:
    """`(x float32 [n, width], y [n])` of lines; None if they are no such numbers."""
    rows = _numbers(lines, width, "float64")
    if rows is None:
        return None
    with np.errstate(over="ignore"):  # beyond float32: infinite, and refused
        x, y = rows[:, :-1].astype(np.float32), rows[:, -1]
    return (x, y.astype(np.int32)) if np.isfinite(x).all() and _are_labels(y) else None


def _are_labels(y: NDArray) -> bool:
    return bool(((y >= 0) & (y <= np.iinfo(np.int32).max) & (y % 1 == 0)).all())


def _numbers(lines: bytes, width: int, kind: Literal["int64", "float64"]) -> NDArray | None:
    """All numbers `[n, width + 1]`; None if something is no number of this kind.

    As one column, whatever the width: a column takes kilobytes, and a line may have a million
    numbers.
    """
    import pyarrow  # Here, since few who import the package read text.
    from pyarrow import csv

    try:
        column = csv.read_csv(
            pyarrow.py_buffer(lines.translate(_ONE_A_LINE)),
            read_options=csv.ReadOptions(
                column_names=["numbers"], block_size=max(len(lines) // 4, 2**20)
            ),
            parse_options=csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(
                column_types={"numbers": pyarrow.type_for_alias(kind)},
                null_values=[],
                strings_can_be_null=False,
            ),
        ).column(0)
    except pyarrow.ArrowInvalid:
        return None
    return column.to_numpy().reshape(-1, width + 1)


def _first_bad(block: bytes, width: int) -> tuple[int, bytes]:
    """Number and text of the first line that is no record, by halving where it may be."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    starts = np.concatenate([[0], ends[:-1]])
    start, end = 0, len(ends)
    while end - start > 1:
        middle = (start + end) // 2
        if _floats(block[starts[start] : ends[middle - 1]], width) is None:
            end = middle
        else:
            start = middle
    return start, block[starts[start] : ends[start] - 1]


def _complaint(line: bytes, layout: Layout, place: str) -> str:
    shown = line[:40].decode("utf-8", "replace") + ("..." if len(line) > 40 else "")
    expected = f"{layout.fields} field{'s' if layout.fields > 1 else ''} of {layout.each:,}"
    found = _layout(line)
    what = (
        "is blank"
        if not line.strip()
        else "holds something that is no finite number, or a label that is no whole number from 0"
        if found == layout
        else f"has {found.fields} of {found.each:,}"
        if found
        else "does not have that form"
    )
    return (
        f"{place} is not a record like the first: that has {expected} numbers and a label, and "
        f"this one {what} ({shown!r}). Correct or remove the line."
    )
