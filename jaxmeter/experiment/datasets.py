"""Where a study's records come from, as configs that read themselves."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.data import Records, read_npz


@dataclass(frozen=True, kw_only=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits: x `[n, 8, 8, 1]` in 0..1, ten classes.

    Attributes:
      members: how many records, drawn at random, the target is trained on.
      nonmembers: how many of the others are given to the audit; None for all.
    """

    members: int = 898
    nonmembers: int | None = None

    def files(self) -> tuple[Path, ...]:
        """None: the digits come with scikit-learn."""
        return ()

    def read(self, key: jax.Array) -> Records:
        """Members and non-members, drawn by the key."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = (digits.images[..., None] / 16).astype(np.float32)
        return _drawn(key, x, digits.target, self.members, self.nonmembers, "the digits")


@dataclass(frozen=True, kw_only=True)
class NpzRecords:
    """Records in one `.npz` file, of which members are drawn at random.

    Attributes:
      path: the file, with `x` `[n, ...]` and `y` `[n]`.
      members: how many records the target is trained on.
      nonmembers: how many of the others are given to the audit; None for all.
      x: the array's name in the file.
      y: likewise.
      scale: what `x` is divided by, e.g. 255 for images of bytes.
    """

    path: Path
    members: int
    nonmembers: int | None = None
    x: str = "x"
    y: str = "y"
    scale: float = 1.0

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, key: jax.Array) -> Records:
        """Members and non-members, drawn by the key."""
        x, y = read_npz(self.path, names=(self.x, self.y))
        x = (x / np.float32(self.scale)).astype(np.float32)
        return _drawn(key, x, y, self.members, self.nonmembers, str(self.path))


@dataclass(frozen=True, kw_only=True)
class NpzPair:
    """Records in two `.npz` files with `x` and `y`, as `jaxmeter audit` takes them.

    Attributes:
      members: what the target is, or was, trained on.
      nonmembers: drawn as the members were.
    """

    members: Path
    nonmembers: Path

    def files(self) -> tuple[Path, ...]:
        """Both files."""
        return (self.members, self.nonmembers)

    def read(self, key: jax.Array) -> Records:
        """All records, in the order of the files."""
        return Records.of(members=read_npz(self.members), nonmembers=read_npz(self.nonmembers))


def _drawn(
    key: jax.Array, x: NDArray, y: NDArray, members: int, nonmembers: int | None, what: str
) -> Records:
    """So many members and non-members, without replacement."""
    others = len(y) - members if nonmembers is None else nonmembers
    if members < 1 or others < 1 or members + others > len(y):
        raise ValueError(
            f"{what}: {members} members and {others} non-members were asked for of {len(y)} "
            "records; there must be at least one of each, and none can be both."
        )
    order = np.asarray(jax.random.permutation(key, len(y)))
    inside, outside = order[:members], order[members : members + others]
    return Records.of(members=(x[inside], y[inside]), nonmembers=(x[outside], y[outside]))


AnyData = Digits | NpzRecords | NpzPair
