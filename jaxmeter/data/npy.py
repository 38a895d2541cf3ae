"""Two `.npy` files side by side: the records in one with an "x" in its name, the labels with "y".

`x.npy` goes with `y.npy`, `members_x.npy` with `members_y.npy`, `x_train.npy` with `y_train.npy`.
"""

import re
from pathlib import Path

from numpy.typing import NDArray

from jaxmeter.data.npz import read_array
from jaxmeter.terminal import printable

_X = re.compile(r"(?<![A-Za-z0-9])x(?![A-Za-z0-9])", re.IGNORECASE)


def read(path: Path) -> tuple[NDArray, NDArray]:
    """`(x [n, ...], y [n])` of two arrays; the path is that of `x`.

    Raises:
      ValueError: if a file is damaged or holds Python objects, or the name does not tell the other.
    """
    x, y = (_array(file) for file in pair(path))
    return x, y


def pair(path: Path) -> tuple[Path, Path]:
    """The files of `x` and of `y`.

    Raises:
      FileNotFoundError: if there is no file of labels beside.
      ValueError: if the name has no x that stands alone, or several.
    """
    if len(_X.findall(path.stem)) != 1:
        raise ValueError(
            "the labels' file is named like it with y in the place of x, as x.npy and y.npy or "
            "members_x.npy and members_y.npy; its name has no x that stands alone, or several. "
            "Rename both."
        )
    names = [_X.sub(letter, path.stem) + path.suffix for letter in ("y", "Y")]
    beside = path.with_name(names[0])  # X_train goes with y_train, as scikit-learn names them
    if not beside.is_file() and _X.findall(path.stem) == ["X"]:
        beside = path.with_name(names[1])
    if not beside.is_file():
        raise FileNotFoundError(
            f"there is no file {str(beside)!r}, which should hold the labels of {str(path)!r}."
        )
    return path, beside


def _array(path: Path) -> NDArray:
    try:
        with path.open("rb") as file:
            array = read_array(file, path.stat().st_size)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{printable(path.name)}: {reason}. Copy it again, or save with np.save."
        ) from None
    if array.dtype.kind in "US":
        raise ValueError(
            f"{printable(path.name)} holds text. The members' rows of ML Privacy Meter are read "
            "with format='privacy_meter' (--format privacy_meter); other records are numbers."
        )
    return array
