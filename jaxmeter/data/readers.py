"""All formats of records in one table, by which `read_records`, the command line and studies read.

A reader is a function of a path and of its own options; `read_records` checks what it returns. So a
format more is a file and a row: docs/contributing_readers.md has an example.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmeter.data import csv, images, keras_sets, npy, npz, parquet, privacy_meter
from jaxmeter.data.npz import PathIn
from jaxmeter.data.records import Records, checked
from jaxmeter.terminal import printable, printable_messages

FOLDER = "/"  # stands among endings for a folder


class Option(NamedTuple):
    """What a reader can be told: an argument of its function, and an option of the command line."""

    name: str
    type: Any  # str, int, tuple[str, ...] or tuple[int, ...]
    help: str

    def parsed(self, text: str) -> Any:
        """The value of a text: itself, a number, or several with commas between them."""
        if self.type is str:
            return text
        pieces = tuple(piece.strip() for piece in text.split(","))
        if self.type == tuple[str, ...]:
            return pieces
        one = self.type is int
        if not all(map(str.isdecimal, pieces)) or (one and len(pieces) > 1):
            takes = "a whole number" if one else "whole numbers with commas between them"
            raise ValueError(f"{self.name} is {printable(text)!r}; it takes {takes}.")
        return int(pieces[0]) if one else tuple(map(int, pieces))


def _itself(path: Path) -> tuple[Path, ...]:
    return (path,)


class Reader(NamedTuple):
    """How records of one format are read.

    Attributes:
      name: the format's, as `format=` and `--format` take it.
      endings: of files that are read so where no format is named, in small letters; `FOLDER` for
        folders, none for what only the name tells.
      read: `(path, **options) -> (x [n, ...], y [n])`. It raises ValueError without the file's
        name, which `read_records` puts before it.
      options: what `read` takes beside the path.
      layout: `(path, **options) ->` what members' and non-members' files must agree in, e.g. the
        columns' names in order; None where the arrays' shapes say all.
      files: the files that the records follow from; none where it is no file.
    """

    name: str
    endings: tuple[str, ...]
    read: Callable[..., tuple[NDArray, NDArray]]
    options: tuple[Option, ...] = ()
    layout: Callable[..., tuple[str, ...]] | None = None
    files: Callable[[Path], tuple[Path, ...]] = _itself


_LABEL = Option("label", str, "In a table, the column of the class labels. Default: label.")
_CLASSES = Option(
    "classes",
    tuple[str, ...],
    "Names of the classes in the order of the target's outputs, where labels are names. Of folders "
    "of images, by default, their sorted names.",
)
_SHAPE = Option(
    "input_shape",
    tuple[int, ...],
    "Shape of a record of ML Privacy Meter's text, channels last; not needed for vectors and "
    "square images.",
)
_MAX_BYTES = Option("max_bytes", int, "Memory that the arrays of a compressed file may take.")

READERS = (
    Reader("npz", (".npz",), npz.read, (_MAX_BYTES,)),
    Reader("npy", (".npy",), npy.read, files=npy.pair),
    Reader("csv", (".csv",), csv.read, (_LABEL, _CLASSES), csv.column_names),
    Reader(
        "parquet",
        (".parquet", ".pq"),
        parquet.read,
        (_LABEL, _CLASSES, _MAX_BYTES),
        parquet.column_names,
    ),
    Reader("images", (FOLDER,), images.read, (_CLASSES, _MAX_BYTES), images.class_names),
    Reader("keras", (), keras_sets.read, files=lambda path: ()),
    Reader("privacy_meter", (".txt",), privacy_meter.read_rows, (_SHAPE,)),
)


def formats() -> str:
    """The formats and their endings, for messages and help."""
    kinds = {FOLDER: "a folder"}
    return ", ".join(
        f"{r.name} ({' '.join(kinds.get(e, e) for e in r.endings) or 'by name'})" for r in READERS
    )


def options_of(readers: Sequence[Reader]) -> tuple[Option, ...]:
    """The options of readers, each once."""
    return tuple(dict.fromkeys(option for reader in readers for option in reader.options))


def parsed(options: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Options from texts, by the types that the table says; one that nobody has stays a text."""
    known = {option.name: option for option in options_of(READERS)}
    return {name: known[name].parsed(text) if name in known else text for name, text in options}


def reader_of(path: Path, format: str | None = None) -> Reader:
    """The reader of a format, or of a path by its ending.

    Raises:
      FileNotFoundError: if there is no such file or folder.
      ValueError: if there is no such format, or the ending tells none.
    """
    ending = FOLDER if path.is_dir() else path.suffix.lower()
    for reader in READERS:
        if format == reader.name or (format is None and ending in reader.endings):
            is_there = path.is_dir() if FOLDER in reader.endings else path.is_file()
            if reader.endings and not is_there:
                what = "folder" if FOLDER in reader.endings else "file"
                raise FileNotFoundError(f"there is no {what} {str(path)!r} to read records from.")
            return reader
    if format is not None:
        raise ValueError(
            f"there is no format {printable(format)!r} of records. Formats are {formats()}."
        )
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file or folder {str(path)!r} to read records from. Name the format of "
            f"what is none with format= (--format): {formats()}."
        )
    raise ValueError(
        f"the ending of {str(path)!r} tells no format of records. Name the format with format= "
        f"(--format): {formats()}."
    )


@printable_messages()
def read_records(
    path: PathIn,
    *,
    format: str | None = None,
    n_classes: int | None = None,
    scale: float | None = None,
    **options: Any,
) -> tuple[NDArray, NDArray]:
    """Reads records of any format that jaxmeter knows; nothing in a file is run or unpickled.

    The formats: `.npz` with `x` and `y`; `x.npy` with `y.npy` beside it; CSV and Parquet with a
    column of labels; a folder of images, one folder a class; ML Privacy Meter's text; and the data
    sets of `keras.datasets` by name, e.g. "cifar10/train" with `format="keras"`.

    Args:
      path: the file, folder or name.
      format: "npz", "npy", "csv", "parquet", "images", "keras" or "privacy_meter"; None to go by
        the path's ending.
      n_classes: the target's number of classes; labels are checked against it.
      scale: what `x` is divided by, e.g. 255 for images of bytes; it is float32 then. None to leave
        it as it is.
      **options: the format's own. `label=`: in CSV and Parquet the column of labels, "label" if not
        named. `classes=`: there and of images, names of the classes in the order of the target's
        outputs. `input_shape=`: of a record of ML Privacy Meter's text. `max_bytes=`: that the
        arrays of npz, Parquet and images may take; 256 MiB and 100 times the file's size if not
        given.

    Returns:
      `(x [n, ...], y int32 [n])`, checked as `Records.of` does.

    Raises:
      FileNotFoundError: if there is no such file.
      OSError: for a data set that cannot be downloaded.
      ValueError: for an unknown format, an option that the format does not have, or a file that is
        damaged or holds no records; the message says where.

    >>> import tempfile; path = Path(tempfile.mkdtemp(), "records.csv")
    >>> _ = path.write_text("age,income,bought\\n31,1.5,0\\n46,2.0,1\\n")
    >>> x, y = read_records(path, label="bought")
    >>> x.tolist(), y.tolist()
    ([[31.0, 1.5], [46.0, 2.0]], [0, 1])
    """
    path = Path(path)
    reader = reader_of(path, format)
    _check_options(options, (reader,))
    return _read(path, reader, n_classes, scale, options)


@printable_messages()
def read_pair(
    members: PathIn,
    nonmembers: PathIn,
    *,
    format: str | None = None,
    n_classes: int | None = None,
    scale: float | None = None,
    **options: Any,
) -> Records:
    """Records of two files, each as `read_records` reads it; an option is for those that have it.

    Raises:
      ValueError: as `read_records` and `Records.of`, and if the files have other columns or
        classes, or the same in another order: column 3 of one would mean something else in the
        other.
    """
    paths = Path(members), Path(nonmembers)
    readers = reader_of(paths[0], format), reader_of(paths[1], format)
    _check_options(options, readers)
    each = [
        (path, reader, _own(options, reader)) for path, reader in zip(paths, readers, strict=True)
    ]
    layouts = [
        _named(path, reader.layout, path, **own) if reader.layout else ()
        for path, reader, own in each
    ]
    if readers[0] is readers[1] and layouts[0] != layouts[1]:
        raise ValueError(_difference(paths, *layouts))
    inside, outside = (_read(path, reader, n_classes, scale, own) for path, reader, own in each)
    return Records.of(members=inside, nonmembers=outside, n_classes=n_classes)


def _read(
    path: Path,
    reader: Reader,
    n_classes: int | None,
    scale: float | None,
    options: Mapping[str, Any],
) -> tuple[NDArray, NDArray]:
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; x is divided by it, so it is a positive number.")
    x, y = _named(path, reader.read, path, **options)
    x, y = checked(x, y, printable(path.name), n_classes)
    return (x if scale is None else (x / np.float32(scale)).astype(np.float32)), y


def _named(path: Path, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a reader's function returns; its complaints begin with the file's name."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        if path.name and (printable(path.name) in str(error) or str(path) in str(error)):
            raise
        raise ValueError(f"{printable(path)!r} cannot be read as records: {error}") from None


def _own(options: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    names = {option.name for option in reader.options}
    return {name: value for name, value in options.items() if name in names}


def _check_options(options: Mapping[str, Any], readers: Sequence[Reader]) -> None:
    """Refuses an option that none of the readers has."""
    known = {option.name for option in options_of(readers)}
    for name in options:
        if name in known:
            continue
        takers = [reader.name for reader in READERS if name in {o.name for o in reader.options}]
        names = " and ".join(dict.fromkeys(reader.name for reader in readers))
        raise ValueError(
            f"{printable(name)} is "
            + (f"for records of the format {', '.join(takers)}" if takers else "for no format")
            + f"; {names} has no use for it. Leave it out, or name another format."
        )


def _difference(paths: Sequence[Path], left: tuple[str, ...], right: tuple[str, ...]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    what = (
        f"{len(left):,} and {len(right):,} columns or classes"
        if at is None
        else f"{printable(left[at])!r} and {printable(right[at])!r} in place {at + 1}"
    )
    return (
        f"{printable(paths[0])} and {printable(paths[1])} do not agree: they have {what}, so their "
        "numbers mean different things. Write both tables with the same columns in the same order; "
        "of folders of images name all classes with classes= (--classes)."
    )
