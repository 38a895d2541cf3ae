"""The text format of ML Privacy Meter (2020), read exactly and fast, and written.

One record a line, its label last. A vector is `f1,f2,...;label`; an image has one field a channel,
each its rows of pixels one after another: `red,...;green,...;blue,...;label`. Which records are
members says a `.npy` file: a string array of the same fields, one row a member. Membership goes by
the numbers in a row, never by how they are spelt or how wide the array's strings are.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from jaxmeter import disk
from jaxmeter.data.npz import PathIn
from jaxmeter.data.records import Records, content_ids
from jaxmeter.data.text_rows import array_blocks, parsed, text_blocks
from jaxmeter.terminal import printable

_NUMBERS = 20_000_000  # numbers written at once


def read_privacy_meter(
    text: PathIn, members_npy: PathIn, input_shape: Sequence[int] | None = None
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
        names = [printable(Path(path).name) for path in (text, members_npy)]
        raise ValueError(
            f"{names[0]} has records of shape {every[0].shape[1:]}, {names[1]} of shape "
            f"{members[0].shape[1:]}: they belong to different data sets."
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


def read_rows(path: PathIn, input_shape: Sequence[int] | None = None) -> tuple[NDArray, NDArray]:
    """`(x [n, *input_shape], y [n])` of a text file, or of a `.npy` of rows of text.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: as `read_privacy_meter`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} to read records from.")
    blocks = array_blocks(path) if path.suffix == ".npy" else text_blocks(path)
    unit = "row" if path.suffix == ".npy" else "line"
    x: list[NDArray] = []
    y: list[NDArray] = []
    first, layout = 1, None
    for block in blocks:
        found = parsed(block, layout, f"{printable(path.name)}, {unit}", first)
        layout = found.layout
        x.append(found.x)
        y.append(found.y)
        first += len(found.y)
    if not x or layout is None:
        raise ValueError(f"{str(path)!r} is empty: there is no record in it.")
    flat = np.empty((first - 1, x[0].shape[1]), np.result_type(*{part.dtype for part in x}))
    start = 0
    while x:  # block by block, so that not everything is there twice
        part = x.pop(0)
        flat[start : start + len(part)] = part
        start += len(part)
    return _shaped(flat, layout, input_shape, printable(path.name)), np.concatenate(y)


def write_privacy_meter(text: PathIn, records: Records, members_npy: PathIn | None = None) -> None:
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
    with ExitStack() as complete:
        file = complete.enter_context(disk.replacing(text))
        for block in _written(records.x, records.y):
            file.write(block)
        if array is not None:
            _write_string_rows(complete.enter_context(disk.replacing(array)), records)


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


def _write_string_rows(file: BinaryIO, records: Records) -> None:
    """The members' rows, as NumPy would save the list of them; some at a time."""
    members = records.rows(records.is_member)
    if not len(members.y):
        raise ValueError("there are no members among the records, so no rows of them to write.")
    width = columns = 0
    for block in _written(members.x, members.y):
        lines = block.splitlines()
        columns = lines[0].count(b";") + 1
        width = max(width, *(len(field) for line in lines for field in line.split(b";")))
    dtype = f"<U{width}"
    shape = (len(members.y), columns)
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for block in _written(members.x, members.y):
        rows = [line.split(";") for line in block.decode().splitlines()]
        file.write(np.array(rows, dtype).tobytes())
