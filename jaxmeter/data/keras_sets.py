"""The data sets of `keras.datasets` by name: "cifar10", or a part of one, "cifar10/train".

Keras downloads them into its cache, compares their checksums, and reads them.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxmeter.intake import frameworks
from jaxmeter.terminal import one_line, printable

SETS = ("cifar10", "cifar100", "fashion_mnist", "mnist")  # the others are ragged, or no classes
_PARTS = ("train", "test")


def read_keras(path: Path) -> tuple[NDArray, NDArray]:
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
    try:
        loaded = getattr(frameworks.keras().datasets, name).load_data()
    except Exception as error:  # Keras raises bare ones
        raise OSError(
            f"keras.datasets.{name} cannot be had: {one_line(error)}. Keras downloads it once: try "
            "again with a network, or put its archive into ~/.keras/datasets, or save the records "
            "as .npz elsewhere."
        ) from error
    parts = dict(zip(_PARTS, loaded, strict=True))
    wanted = [parts[each] for each in part or _PARTS]
    return np.concatenate([x for x, _ in wanted]), np.concatenate([y for _, y in wanted]).ravel()
