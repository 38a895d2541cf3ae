"""The text format of ML Privacy Meter (2020), read exactly and fast, and written.

One record a line, its label last. A vector is `f1,f2,...;label`; an image has one field a channel,
each its rows of pixels one after another: `red,...;green,...;blue,...;label`. Which records are
members says a `.npy` file: a string array of the same fields, one row a member. Membership goes by
the numbers in a row, never by how they are spelt or how wide the array's strings are.
"""

import math
import os
import secrets
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import csv

from jaxmeter.data import Records, content_ids

_BLOCK = 32 * 2**20  # bytes of text parsed at once
_NUMBERS = 20_000_000  # numbers written at once
_SEPARATORS = np.zeros(256, bool)
_SEPARATORS[list(b",;\n")] = True
Path_ = str | PathLike[str]


def read_privacy_meter(
    text: Path_, members_npy: Path_, input_shape: Sequence[int] | None = None
) -> Records:
    """Records from ML Privacy Meter's two files.

    Args:
      text: the data set, one record a line.
      members_npy: the rows of it that the target was trained on.
      input_shape: shape of one record, channels last as the target takes it; None for vectors, and
        for square images.

    Returns:
      The members in the order of their file, then the rows of `text` that are none of them, in
      order. `x` is uint8 where every number is a whole one in 0..255, else float32.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: for a line that is not a record, naming it; rows that do not have the shape; or an
        `.npy` that holds no rows of text.

    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "d.txt").write_text("0,1;2\\n3,4;0\\n1,1;1\\n")
    >>> np.save(folder / "d.npy", np.array([["3,4", "0"]], dtype="U64"))
    >>> read_privacy_meter(folder / "d.txt", folder / "d.npy").is_member.tolist()
    [True, False, False]
    """
    every, members = read_rows(text, input_shape), read_rows(members_npy, input_shape)
    if every[0].shape[1:] != members[0].shape[1:]:
        raise ValueError(
            f"{Path(text).name} has records of shape {every[0].shape[1:]}, "
            f"{Path(members_npy).name} of shape {members[0].shape[1:]}: they belong to different "
            "data sets."
        )
    others = ~known_among(every, members)
    dtype = np.result_type(every[0], members[0])
    return Records(
        np.concatenate([members[0].astype(dtype, copy=False), every[0][others]], dtype=dtype),
        np.concatenate([members[1], every[1][others]]),
        np.repeat([True, False], [len(members[1]), int(others.sum())]),
    )


def known_among(rows: tuple[NDArray, NDArray], known: tuple[NDArray, NDArray]) -> NDArray:
    """Which of the rows `(x, y)` have the numbers and the label of a known one, bool `[n]`."""
    dtype = np.result_type(rows[0], known[0])
    x = [part.reshape(len(part), -1).astype(dtype, copy=False) for part in (rows[0], known[0])]
    ids = content_ids(np.concatenate(x))
    y = np.concatenate([rows[1], known[1]]).astype(np.int64)
    pairs = ids * (int(y.max(initial=0)) + 1) + y
    n = len(rows[1])
    return np.isin(pairs[:n], pairs[n:])


def read_rows(path: Path_, input_shape: Sequence[int] | None = None) -> tuple[NDArray, NDArray]:
    """`(x [n, *input_shape], y [n])` of a text file, or of a `.npy` of rows of text.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: as `read_privacy_meter`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} to read records from.")
    blocks = _array_blocks(path) if path.suffix == ".npy" else _text_blocks(path)
    unit = "row" if path.suffix == ".npy" else "line"
    x: list[NDArray] = []
    y: list[NDArray] = []
    first, layout = 1, None
    for block in blocks:
        parsed = _parsed(block, layout, f"{path.name}, {unit}", first)
        layout = parsed.layout
        x.append(parsed.x)
        y.append(parsed.y)
        first += len(parsed.y)
    if not x or layout is None:
        raise ValueError(f"{str(path)!r} is empty: there is no record in it.")
    flat = np.empty((first - 1, x[0].shape[1]), np.result_type(*{part.dtype for part in x}))
    start = 0
    while x:  # block by block, so that not everything is there twice
        part = x.pop(0)
        flat[start : start + len(part)] = part
        start += len(part)
    return _shaped(flat, layout, input_shape, path.name), np.concatenate(y)


def write_privacy_meter(text: Path_, records: Records, members_npy: Path_ | None = None) -> None:
    """Writes records as text, and the members' rows as a string array.

    Numbers are spelt so that reading gives the same ones. Each file is written under another name
    and renamed when complete.

    Args:
      text: the file of all records.
      records: vectors, or images with the channels last.
      members_npy: the file of the members' rows; None to write none.

    Raises:
      FileExistsError: if a file is there already.
      ValueError: for records that are neither vectors nor images.
    """
    text = Path(text)
    array = None if members_npy is None else Path(members_npy)
    for path in (text, array):
        if path is not None and path.exists():
            raise FileExistsError(f"{path} is there already; nothing was written. Name another.")
    if records.x.ndim not in (2, 4):
        raise ValueError(
            f"records have shape {records.x.shape[1:]}; the format holds vectors [d] and images "
            "[height, width, channels]."
        )
    made: list[tuple[Path, Path]] = []
    try:
        made.append((_beside(text), text))
        with made[-1][0].open("wb") as file:
            for block in _written(records.x, records.y):
                file.write(block)
        if array is not None:
            made.append((_beside(array), array))
            with made[-1][0].open("wb") as file:
                np.save(file, _string_rows(records), allow_pickle=False)
        for temporary, path in made:
            os.replace(temporary, path)
    finally:
        for temporary, _ in made:
            temporary.unlink(missing_ok=True)


def write_npz(path: Path_, records: Records) -> None:
    """Writes `x`, `y` and `is_member` to an `.npz`, whole or not at all.

    Raises:
      FileExistsError: if the file is there already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; nothing was written. Name another.")
    temporary = _beside(path)
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **records._asdict())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- Reading -------------------------------------------------------------------------------------


class _Parsed(NamedTuple):
    """A block's numbers and the layout of its lines: how many numbers each field has."""

    x: NDArray
    y: NDArray
    layout: tuple[int, ...]


def _text_blocks(path: Path) -> Iterator[bytes]:
    """The file in pieces of whole lines, each ending with a newline, without blank ones at the end.

    Blank lines at the end of a piece go to the next one, since they may be in the middle.
    """
    with path.open("rb") as file:
        rest = b""
        while piece := file.read(_BLOCK):
            rest += piece
            filled = len(rest[: rest.rfind(b"\n") + 1].rstrip(b"\r\n"))
            if filled:
                end = rest.index(b"\n", filled) + 1
                yield rest[:end]
                rest = rest[end:]
        if rest.strip():
            yield rest.rstrip() + b"\n"


def _array_blocks(path: Path) -> Iterator[bytes]:
    """The rows of a string array as lines."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        hint = (
            " Pickled arrays are refused, since unpickling runs code: save the rows as strings, "
            "np.save(path, np.array(rows, dtype=str))."
            if "pickle" in str(error).lower() or "Python objects" in str(error)
            else ""
        )
        raise ValueError(f"{str(path)!r} cannot be read as rows: {error}{hint}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "US" or rows.ndim != 2:
        what = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else "archive"
        raise ValueError(
            f"{str(path)!r} is an array of {what}; the members' rows are an array of strings "
            "[n, fields + 1], as np.save writes the split lines of the text."
        )
    step = max(1, _BLOCK // max(1, rows.dtype.itemsize * rows.shape[1]))
    for start in range(0, len(rows), step):
        some = rows[start : start + step].tolist()
        if rows.dtype.kind == "U":
            yield b"".join((";".join(row) + "\n").encode("utf-8", "replace") for row in some)
        else:
            yield b"".join(b";".join(row) + b"\n" for row in some)


def _parsed(block: bytes, layout: tuple[int, ...] | None, where: str, first: int) -> _Parsed:
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
        return _Parsed(*_columns(numbers, width, pyarrow.uint8()), layout)
    except pyarrow.ArrowInvalid:
        pass
    try:
        return _Parsed(*_columns(numbers, width, pyarrow.float64()), layout)
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


def _shaped(
    flat: NDArray, layout: tuple[int, ...], input_shape: Sequence[int] | None, name: str
) -> NDArray:
    """Vectors as they are, channels one after another as images with the channels last."""
    channels, size = len(layout), layout[0]
    if input_shape is None:
        if channels == 1:
            return flat
        side = math.isqrt(size)
        if side * side != size:
            raise ValueError(
                f"{name} has {channels} channels of {size:,} numbers, which is no square; pass "
                "input_shape=(height, width, channels)."
            )
        input_shape = (side, side, channels)
    shape = tuple(input_shape)
    wanted = channels if len(shape) == 3 else 1
    if math.prod(shape) != channels * size or (channels > 1 and shape[-1] != channels):
        raise ValueError(
            f"{name} has records of {channels} field{'s' if channels > 1 else ''} of {size:,} "
            f"numbers, which are no records of shape {shape}; an image has one field a channel, "
            "and its shape is (height, width, channels)."
        )
    if wanted == 1:
        return flat.reshape(len(flat), *shape)
    planes = flat.reshape(len(flat), channels, *shape[:2])
    return np.ascontiguousarray(np.moveaxis(planes, 1, -1))


# --- Writing -------------------------------------------------------------------------------------


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"


def _planes(x: NDArray) -> NDArray:
    """Records as `[n, channels, numbers]`."""
    return x[:, None] if x.ndim == 2 else np.moveaxis(x, -1, 1).reshape(len(x), x.shape[-1], -1)


def _written(x: NDArray, y: NDArray) -> Iterator[bytes]:
    """Lines of text, some at a time."""
    step = max(1, _NUMBERS // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        planes = _planes(x[start : start + step])
        cells = _spelt(planes, b",")
        cells[..., -1] = _spelt(planes[..., -1], b";")
        rows = zip(cells, y[start : start + step].tolist(), strict=True)
        yield b"".join(
            b"%b%d\n" % (row.tobytes().replace(b"\0", b""), label) for row, label in rows
        )


def _spelt(values: NDArray, end: bytes) -> NDArray:
    """Numbers as text with `end` after each, padded with zero bytes; the shortest that reads back.

    Four bytes for a byte, as one integer: NumPy copies those far faster than strings.
    """
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype == np.uint8:
        table = np.array([str(i).encode() + end for i in range(256)], "S4")
        return table.view(np.uint32)[values]
    return np.char.add(values.astype("S32"), end)


def _string_rows(records: Records) -> NDArray:
    members = records.rows(records.is_member)
    lines = b"".join(_written(members.x, members.y)).decode().splitlines()
    return np.array([line.split(";") for line in lines])
