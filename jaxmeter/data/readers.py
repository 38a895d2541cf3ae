"""Records from a file of any format that there is a reader for: one table, a row a format.

The command line, studies and the errors below go by the table, so a new format is a new row.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from jaxmeter.data import csv, images, keras_sets, npy, npz, parquet, privacy_meter
from jaxmeter.data.records import Records, checked
from jaxmeter.terminal import printable

_FOLDER = "/"  # stands among endings for a folder


def _itself(path: Path) -> tuple[Path, ...]:
    return (path,)


def _npz(path: Path, *, max_bytes: int | None = None) -> tuple[NDArray, NDArray]:
    found = npz.read_arrays(path, ("x", "y"), max_bytes=max_bytes)
    return found["x"], found["y"]


class Reader(NamedTuple):
    """How records of one format are read.

    Attributes:
      name: the format's, as `format=` and `--format` take it.
      endings: of files that are read so where no format is named; "/" for folders, none for what
        only the name tells.
      read: `(path, **options) -> (x [n, ...], y [n])`. It raises ValueError without the file's
        name, which `read_records` puts before it.
      options: names of what `read` takes beside the path.
      layout: `(path, **options) ->` what members' and non-members' files must agree in, e.g. the
        columns' names in order; None where the arrays' shapes say all.
      files: the files that the records follow from; none where it is no file.
    """

    name: str
    endings: tuple[str, ...]
    read: Callable[..., tuple[NDArray, NDArray]]
    options: tuple[str, ...] = ()
    layout: Callable[..., tuple[str, ...]] | None = None
    files: Callable[[Path], tuple[Path, ...]] = _itself


READERS = (
    Reader("npz", (".npz",), _npz, ("max_bytes",)),
    Reader("npy", (".npy",), npy.read_npy, files=npy.pair),
    Reader("csv", (".csv",), csv.read_csv, ("label", "classes"), csv.column_names),
    Reader(
        "parquet",
        (".parquet", ".pq"),
        parquet.read_parquet,
        ("label", "classes", "max_bytes"),
        parquet.column_names,
    ),
    Reader("images", (_FOLDER,), images.read_images, ("classes", "max_bytes"), images.class_names),
    Reader("keras", (), keras_sets.read_keras, files=lambda path: ()),
    Reader("privacy_meter", (".txt",), privacy_meter.read_rows, ("input_shape",)),
)


def read_records(
    path: str | PathLike[str],
    *,
    format: str | None = None,
    label: str | None = None,
    classes: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
    n_classes: int | None = None,
    max_bytes: int | None = None,
) -> tuple[NDArray, NDArray]:
    """Reads records of any format that jaxmeter knows; nothing in a file is run or unpickled.

    The formats: `.npz` with `x` and `y`; `x.npy` with `y.npy` beside it; CSV and Parquet with a
    column of labels; a folder of images, one folder a class; ML Privacy Meter's text; and the data
    sets of `keras.datasets` by name, e.g. "cifar10/train" with `format="keras"`.

    Args:
      path: the file, folder or name.
      format: "npz", "npy", "csv", "parquet", "images", "keras" or "privacy_meter"; None to go by
        the path's ending.
      label: the column of labels in CSV and Parquet; None for "label".
      classes: names of the classes in the order of the target's outputs, where a file has names
        and no numbers; of images, empty for the sorted folders' names.
      input_shape: shape of a record of ML Privacy Meter's text; None for vectors and square images.
      n_classes: the target's number of classes; labels are checked against it.
      max_bytes: that a compressed file's arrays may take; None for 256 MiB and 100 times its size.

    Returns:
      `(x [n, ...], y int32 [n])`.

    Raises:
      FileNotFoundError: if there is no such file.
      OSError: for a data set that cannot be downloaded.
      ValueError: for an unknown format, an option that the format has no use for, or a file that is
        damaged or holds no records; the message says where.

    >>> import tempfile; path = Path(tempfile.mkdtemp(), "records.csv")
    >>> _ = path.write_text("age,income,bought\\n31,1.5,0\\n46,2.0,1\\n")
    >>> x, y = read_records(path, label="bought")
    >>> x.tolist(), y.tolist()
    ([[31.0, 1.5], [46.0, 2.0]], [0, 1])
    """
    path = Path(path)
    reader = reader_of(path, format)
    options = _options(reader, label, classes, input_shape, max_bytes)
    x, y = _named(path, reader.read, path, **options)
    return checked(x, y, printable(path.name), n_classes)


def read_pair(
    members: Path,
    nonmembers: Path,
    *,
    format: str | None = None,
    label: str | None = None,
    classes: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
    n_classes: int | None = None,
) -> Records:
    """Records of two files, which must have the same columns or classes in the same order.

    Raises:
      ValueError: as `read_records` and `Records.of`, and if the files do not agree: what one calls
        column 3 or class 3 would be something else in the other.
    """
    paths = members, nonmembers
    readers = [reader_of(path, format) for path in paths]
    given = (label, classes, input_shape, None)
    if readers[0] is readers[1] and (layout := readers[0].layout):
        options = _options(readers[0], *given)
        _check_layouts(*((path, _named(path, layout, path, **options)) for path in paths))
    parts = [
        checked(
            *_named(path, reader.read, path, **_options(reader, *given)),
            printable(path.name),
            n_classes,
        )
        for path, reader in zip(paths, readers, strict=True)
    ]
    return Records.of(members=parts[0], nonmembers=parts[1], n_classes=n_classes)


def reader_of(path: Path, format: str | None = None) -> Reader:
    """The reader of a format, or of a path by its ending.

    Raises:
      FileNotFoundError: if no format is named and the path is neither file nor folder.
      ValueError: if there is no such format, or the ending tells none.
    """
    if format is not None:
        for reader in READERS:
            if reader.name == format:
                return reader
        raise ValueError(
            f"there is no format {printable(format)!r} of records. There are {_NAMES}."
        )
    ending = _FOLDER if path.is_dir() else path.suffix.lower()
    for reader in READERS:
        if ending in reader.endings:
            return reader
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r} to read records from.")
    endings = ", ".join(e for reader in READERS for e in reader.endings if e != _FOLDER)
    raise ValueError(
        f"the ending of {str(path)!r} tells no format of records: known are {endings} and folders "
        f"of images. Name the format with format= (on the command line --format): {_NAMES}."
    )


_NAMES = ", ".join(reader.name for reader in READERS)


def _options(
    reader: Reader,
    label: str | None,
    classes: Sequence[str],
    input_shape: Sequence[int] | None,
    max_bytes: int | None,
) -> Mapping[str, Any]:
    """What was given of a reader's options.

    Raises:
      ValueError: for one that it has no use for.
    """
    every = {"label": label, "classes": tuple(classes) or None, "input_shape": input_shape,
             "max_bytes": max_bytes}  # fmt: skip
    given = {name: value for name, value in every.items() if value is not None}
    for name in given.keys() - set(reader.options):
        takers = [other.name for other in READERS if name in other.options]
        raise ValueError(
            f"{name} is for records of the format {', '.join(takers)}; {reader.name} has no use "
            "for it. Leave it out, or name another format."
        )
    return given


def _named(path: Path, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a reader's function returns; its complaints begin with the file's name."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        if path.name and (printable(path.name) in str(error) or str(path) in str(error)):
            raise
        raise ValueError(f"{printable(path)!r} cannot be read as records: {error}") from None


def _check_layouts(*named: tuple[Path, tuple[str, ...]]) -> None:
    (first, left), (second, right) = named
    if left == right:
        return
    names = [printable(str(path)) for path in (first, second)]
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    what = (
        f"{len(left):,} and {len(right):,} columns or classes"
        if at is None
        else f"{printable(left[at])!r} and {printable(right[at])!r} in place {at + 1}"
    )
    raise ValueError(
        f"{names[0]} and {names[1]} do not agree: they have {what}. Members and non-members have "
        "the same columns in the same order; of folders of images name all classes with classes= "
        "(on the command line --classes)."
    )
