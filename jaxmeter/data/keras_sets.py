"""The data sets of `keras.datasets` by name: "cifar10", or a part of one, "cifar10/train".

Keras downloads them into its cache, compares their checksums, and reads them.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxmeter.intake import frameworks
from jaxmeter.terminal import one_line, printable

SETS = ("cifar10", "cifar100", "fashion_mnist", "mnist")  # the others are ragged, or no classes
_PARTS = ("train", "test")


def read(path: Path) -> tuple[NDArray, NDArray]:
    """`(x uint8 [n, ...], y [n])`: the training records, then the test records, or one part.

    Raises:
      ValueError: for a name that is none of a data set.
      OSError: if it cannot be downloaded.
    """
    name, *part = path.parts or ("",)
    if name not in SETS or len(part) > 1 or not set(part) <= set(_PARTS):
        raise ValueError(
            f"there is no data set {printable(path)!r}. There are {', '.join(SETS)}, and of each "
            "the parts NAME/train and NAME/test."
        )
    module = getattr(frameworks.keras().datasets, name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Keras draws its bar
            loaded = module.load_data()
    except Exception as error:  # Keras raises bare ones
        raise OSError(
            f"keras.datasets.{name} cannot be had: {one_line(error).rstrip('.')}. Keras downloads "
            "it once: try again with a network, or copy the folder ~/.keras/datasets from a "
            "machine that has it, or save the records as .npz there."
        ) from error
    parts = dict(zip(_PARTS, loaded, strict=True))
    wanted = [parts[each] for each in part or _PARTS]
    return np.concatenate([x for x, _ in wanted]), np.concatenate([y for _, y in wanted]).ravel()
