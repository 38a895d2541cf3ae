"""NumPy's files from strangers: nothing is unpickled, and no array is made that they do not hold.

A header may claim any shape, and a zip archive may unpack to thousands of times its size. Both are
looked at before any memory is asked for.
"""

import io
import math
import warnings
import zipfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmeter import disk
from jaxmeter.data.records import Records, checked
from jaxmeter.terminal import one_line, printable

_MAGIC = b"\x93NUMPY"
_ROOM = 2**28  # bytes that arrays may take beyond 100 times the file's size
_BLOCK = 2**20
_LONGEST = 10_000  # bytes of a header that NumPy evaluates
_AXES = 64  # that NumPy's arrays have at most
_ENCRYPTED = 1  # the bit of an archive's flags


class Header(NamedTuple):
    """What a `.npy` says of its array; the numbers follow in the file."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> Header:
    """Reads the header of a `.npy`.

    Raises:
      ValueError: if it is none, or the array holds Python objects.
    """
    form = np.lib.format
    start = file.read(len(_MAGIC) + 2)
    version = tuple(start[len(_MAGIC) :])
    if not start.startswith(_MAGIC) or version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError("it is no array that np.save writes, or its first bytes are damaged")
    # Version 3 is version 2 with other letters in the names of fields, which nobody needs here.
    width, read = (2, form.read_array_header_1_0) if version == (1, 0) else (
        4, form.read_array_header_2_0)  # fmt: skip
    length = file.read(width)
    if (claimed := int.from_bytes(length, "little")) > _LONGEST:
        raise ValueError(f"the header is damaged (it claims {claimed:,} bytes)")
    try:
        with warnings.catch_warnings():  # of Python 2's long integers, which are read all the same
            warnings.simplefilter("ignore")
            shape, by_columns, dtype = read(io.BytesIO(length + file.read(claimed)))
    except Exception as error:  # NumPy evaluates the header, which can fail in a dozen ways
        raise ValueError(f"the header is damaged ({type(error).__name__})") from None
    if dtype.hasobject:
        raise ValueError(
            "it holds pickled Python objects. Pickled arrays are refused, since unpickling runs "
            "code: save plain numbers, or texts as np.array(rows, dtype=str)"
        )
    if not dtype.itemsize:  # as many as one likes take no bytes in a file, and time here
        raise ValueError(f"its elements have no width (dtype {dtype.str}), so it holds nothing")
    if len(shape) > _AXES or not all(0 <= d < 2**63 for d in shape):
        raise ValueError("the header is damaged (no array has its shape)")
    return Header(shape, bool(by_columns), dtype)


def read_array(file: IO[bytes], size: int) -> NDArray:
    """Reads a `.npy` that has `size` bytes, header included.

    Raises:
      ValueError: if it is damaged, or claims more than there is.
    """
    header = read_header(file)
    if header.size > size:
        raise ValueError(f"its header claims {header.size:,} bytes, and it has {size:,} at most")
    content = np.empty(header.size, np.uint8)
    place = content.data
    while len(place):
        count = file.readinto(place[:_BLOCK])  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"it is cut short by {len(place):,} bytes")
        place = place[count:]
    file.read(1)  # at the end of a file in an archive its checksum is compared
    order: Any = "F" if header.by_columns else "C"
    return np.ndarray(header.shape, header.dtype, content, order=order)


def check_room(size: int, bytes_of_files: int, max_bytes: int | None, how: str) -> None:
    """Refuses arrays that would take far more memory than the files that they come from.

    Args:
      size: bytes of the arrays.
      bytes_of_files: likewise.
      max_bytes: that the arrays may take; None for 256 MiB and 100 times the files' size.
      how: a remedy beside max_bytes.

    Raises:
      TooLarge: if they take more.
    """
    room = _ROOM + 100 * bytes_of_files if max_bytes is None else max_bytes
    if size > room:
        raise TooLarge(
            f"it unpacks to {size:,} bytes, and {room:,} are allowed, so that a small file cannot "
            f"take all memory. If you know where it comes from, pass max_bytes=, or {how}."
        )


class TooLarge(ValueError):
    """What is said of a file whose arrays would take more memory than they may."""


def read_arrays(
    path: Path, names: Sequence[str], *, optional: Sequence[str] = (), max_bytes: int | None = None
) -> dict[str, NDArray]:
    """Reads arrays of records by name from an `.npz`.

    Args:
      path: the file.
      names: arrays that must be there.
      optional: arrays that are read if they are there.
      max_bytes: that the arrays may take together; None for 256 MiB and 100 times the file's size.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no `.npz`, is damaged, lacks an array, or the arrays would take more.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} to read records from.")
    anew = f"np.savez(path, {_arguments((*names, *optional))})"
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = _members(archive, names, optional, anew)
            total = sum(info.file_size for info in members.values())
            how = "unpack it and save it uncompressed, with np.savez"
            check_room(total, path.stat().st_size, max_bytes, how)
            return {name: _array(archive, name, info) for name, info in members.items()}
    except (_Complaint, TooLarge) as complaint:
        reason = str(complaint)
    except MemoryError:
        reason = "its arrays do not fit into this machine's memory; read them in parts."
    except Exception as error:  # zipfile and zlib have a dozen ways to fail
        with path.open("rb") as file:
            is_single = file.read(len(_MAGIC)) == _MAGIC
        reason = (
            f"it holds a single array; save with {anew}."
            if is_single
            else f"{one_line(error).rstrip('.') or type(error).__name__}. An .npz is a zip archive "
            f"of arrays: this is damaged, or something else. Copy it again, or save with {anew}."
        )
    raise ValueError(f"{str(path)!r} cannot be read as records: {reason}")


class _Complaint(Exception):
    """What is wrong with an archive, and what to do."""


def _members(
    archive: zipfile.ZipFile, names: Sequence[str], optional: Sequence[str], anew: str
) -> dict[str, zipfile.ZipInfo]:
    """The files of the arrays, refused where zipfile or NumPy would do more than read them."""
    found: dict[str, list[zipfile.ZipInfo]] = {}
    for info in archive.infolist():
        found.setdefault(info.filename.removesuffix(".npy"), []).append(info)
    missing = [name for name in names if name not in found]
    if missing:
        there = [*found][:20] + ["..."] * (len(found) > 20)
        raise _Complaint(
            f"it has the arrays {there} but no {' and no '.join(missing)}; save with {anew}."
        )
    members = {}
    for name in (*names, *(name for name in optional if name in found)):
        info, *others = found[name]
        if others:
            raise _Complaint(f"it holds {name!r} twice, so it is damaged. Save with {anew}.")
        if info.flag_bits & _ENCRYPTED:
            raise _Complaint(f"{name!r} in it is encrypted. Unpack it, and save with {anew}.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks the others without a limit.
            raise _Complaint(
                f"{name!r} in it is compressed in a way that NumPy never uses. Unpack it, and "
                f"save with {anew}."
            )
        members[name] = info
    return members


def _array(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> NDArray:
    try:
        with archive.open(info) as file:
            return read_array(file, info.file_size)
    except ValueError as error:
        raise ValueError(f"{name!r} in it cannot be read: {error}") from None


def _arguments(names: Sequence[str]) -> str:
    """The end of a call of np.savez: the first two arrays are x and y, the others their names."""
    values = ["x", "y", *names[2:]]
    return ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=False))


def read_npz(
    path: str | PathLike[str],
    *,
    n_classes: int | None = None,
    names: tuple[str, str] = ("x", "y"),
    max_bytes: int | None = None,
) -> tuple[NDArray, NDArray]:
    """Reads `x` and `y`, under these names, from an `.npz` file, never unpickling anything.

    Args:
      path: the file.
      n_classes: as for `Records.of`.
      names: the two arrays' names in the file.
      max_bytes: that the arrays may take unpacked; None for 256 MiB and 100 times the file's size.

    Returns:
      `(x [n, ...], y [n])`, checked as `Records.of` does.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not an npz file, is damaged, lacks `x` or `y`, holds Python objects, or
        would take more memory than it may.
    """
    path = Path(path)
    found = read_arrays(path, names, max_bytes=max_bytes)
    return checked(found[names[0]], found[names[1]], printable(path.name), n_classes)


def read(path: Path, *, max_bytes: int | None = None) -> tuple[NDArray, NDArray]:
    """The arrays `x` and `y` of an `.npz`, as they are."""
    found = read_arrays(path, ("x", "y"), max_bytes=max_bytes)
    return found["x"], found["y"]


PathIn = str | PathLike[str]


def write_npz(path: PathIn, records: Records) -> None:
    """Writes `x`, `y` and `is_member` to an `.npz`, whole or not at all.

    Raises:
      FileExistsError: if the file is there already.
    """
    write_arrays(path, **records._asdict())


def write_arrays(path: PathIn, **arrays: NDArray) -> None:
    """Writes arrays by name, as `write_npz`."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; nothing was written. Name another.")
    with disk.replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
