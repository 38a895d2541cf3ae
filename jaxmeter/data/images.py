"""A folder of PNG and JPEG images with one folder a class, whose sorted names are the labels.

Numbers are those in the files: no resizing, no scaling, no turning by a camera's notes.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmeter.data.npz import check_room
from jaxmeter.disk import is_litter
from jaxmeter.terminal import one_line, printable

_KINDS = {"L": (1, np.uint8), "RGB": (3, np.uint8), "RGBA": (4, np.uint8), "I;16": (1, np.uint16)}
_FORMATS = ("PNG", "JPEG")


def read(
    path: Path, *, classes: Sequence[str] = (), max_bytes: int | None = None
) -> tuple[NDArray, NDArray]:
    """`(x uint8 or uint16 [n, height, width, channels], y [n])`, class by class, sorted by name.

    Raises:
      ValueError: for a file that is no image, or of another size or mode than the first; a folder
        that is none of the classes; or images that would take more memory than they may.
    """
    names = class_names(path, classes=classes)
    there = _folders(path)
    files = [
        (file, i) for i, name in enumerate(names) if name in there for file in _files(path / name)
    ]
    if not files:
        raise ValueError("there is no image in its folders.")
    first = _header(files[0][0], path)
    channels, dtype = _KINDS[first[0]]
    shape = (len(files), first[1][1], first[1][0], channels)
    size = sum(file.stat().st_size for file, _ in files)
    how = "save the records uncompressed, with np.savez(path, x=x, y=y)"
    check_room(math.prod(shape) * np.dtype(dtype).itemsize, size, max_bytes, how)
    x = np.empty(shape, dtype)
    for row, (file, _) in zip(x, files, strict=True):
        row[...] = _pixels(file, path, first).reshape(row.shape)
    return x, np.array([label for _, label in files], np.int32)


def class_names(path: Path, *, classes: Sequence[str] = (), **_: Any) -> tuple[str, ...]:
    """The classes in the order of their labels: those given, or else the sorted folders' names."""
    found = _folders(path)
    unknown = sorted(set(found) - set(classes)) if classes else []
    if unknown:
        raise ValueError(
            f"its folder {printable(unknown[0])!r} is none of the classes "
            f"{', '.join(map(printable, classes))}. Name all the target's classes."
        )
    if not found:
        raise ValueError("it holds no folders; images are in one folder a class.")
    return tuple(classes) or found


def _folders(path: Path) -> tuple[str, ...]:
    if not path.is_dir():
        raise ValueError("it is no folder; images are in a folder with one folder a class.")
    entries = [entry for entry in path.iterdir() if not is_litter(entry.name)]
    for entry in sorted(entries):
        if not entry.is_dir():
            raise ValueError(
                f"{printable(entry.name)!r} in it is no folder; images are in one folder a class."
            )
        if not any(not is_litter(inner.name) for inner in entry.iterdir()):
            # Copies and archives lose empty folders, and with one all labels after it would move.
            raise ValueError(
                f"its folder {printable(entry.name)!r} is empty. Remove it, and name all the "
                "target's classes with classes= (--classes), so that labels do not depend on it."
            )
    return tuple(sorted(entry.name for entry in entries))


def _files(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not is_litter(entry.name))


def _header(file: Path, top: Path) -> tuple[str, tuple[int, int]]:
    """Mode and size `(width, height)`, from an image's first bytes."""
    with _opened(file, top) as image:
        if image.mode not in _KINDS:
            raise ValueError(
                f"{_name(file, top)} has mode {image.mode!r}; images are grey (L, I;16) or in "
                "colour (RGB, RGBA). Convert all as for the target's training."
            )
        return image.mode, image.size


def _pixels(file: Path, top: Path, first: tuple[str, tuple[int, int]]) -> NDArray:
    """The image's numbers; its size and mode are compared before it is unpacked."""
    if (found := _header(file, top)) != first:
        raise ValueError(
            f"{_name(file, top)} has mode {found[0]} and {found[1][0]} x {found[1][1]} pixels, the "
            f"first image {first[0]} and {first[1][0]} x {first[1][1]}. Records have one shape: "
            "convert all as for the target's training."
        )
    with _opened(file, top) as image:
        try:
            return np.asarray(image)
        except Exception as error:  # decoders fail in a dozen ways
            raise _damaged(file, top, error) from None


def _opened(file: Path, top: Path) -> Any:
    from PIL import Image  # Here, since few who import the package read images.

    if not file.is_file():
        raise ValueError(f"{_name(file, top)} is no file; a class's folder holds images alone.")
    try:
        with warnings.catch_warnings():
            # Our own limit counts all images together, and is looked at before one is unpacked.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=_FORMATS)
    except Exception as error:
        raise _damaged(file, top, error) from None


def _damaged(file: Path, top: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{_name(file, top)} cannot be read as PNG or JPEG "
        f"({one_line(error, 300) or type(error).__name__}). Copy it again, or remove it."
    )


def _name(file: Path, top: Path) -> str:
    return printable(file.relative_to(top))
